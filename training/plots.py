"""Pictures of a run."""

from matplotlib.figure import Figure

from utils.files import replacing


def plot_losses(metrics, path, title):
    """Draw the losses of a run: training and validation, over steps below and tokens seen above.

    `metrics` are the lines of its metrics.jsonl, as dictionaries.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in metrics]
    validation = [line["val_loss"] for line in metrics]
    trained = [(line["step"], line["train_loss"]) for line in metrics if line["train_loss"] is not None]
    axes.plot(*zip(*trained, strict=True) if trained else ([], []), color="tab:orange", marker=".", label="training")
    axes.plot(steps, validation, color="tab:blue", marker=".", label="validation")
    best = min(metrics, key=lambda line: line["val_loss"])
    axes.annotate(f"best {best['val_loss']:.4f}", (best["step"], best["val_loss"]), xytext=(0, 10), ha="right",
                  textcoords="offset points", color="tab:blue")
    axes.set(xlabel="steps", ylabel="loss (nats per token)", title=title)
    if len(metrics) > 3:  # the first loss, a blind guess, would press all others together
        axes.set_ylim(top=1.05 * max(max(line["val_loss"], line["train_loss"]) for line in metrics[1:]))
    axes.grid(alpha=0.3)
    axes.legend()
    per_step = max((line["tokens"] / line["step"] for line in metrics if line["step"]), default=1)
    above = axes.secondary_xaxis("top", functions=(lambda step: step * per_step / 1e6, lambda x: x * 1e6 / per_step))
    above.set_xlabel("million tokens seen")
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
