"""The training of models: schedules, the loop, resuming, and train.py and estimate.py as commands."""

import dataclasses
import json
import math
import os
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from small_runs import HERE, ROOT, TINY, command, losses, tiny_settings
from small_tasks import CONTEXT, FILES, write_data
from small_text import TEXT

import estimate
import train
import transformer_4d
from data.ngram import ngram_loss
from data.prepare import open_tokens
from data.windows import ConsecutiveWindows
from models.zoo import ZOO, DevModel
from tasks.kinds import answers_class
from tokenization.characters import CharTokenizer
from training.arguments import parse_settings
from training.checkpoint import load_checkpoint, load_model, save_checkpoint
from training.evaluate import estimate_loss
from training.inputs import model_config
from training.loop import Progress, Trainer, fit
from training.optim import Muon, lr_factor, make_optimizers
from training.run import train as run
from training.settings import OptimSettings
from training.shares import Shares
from training.step import TrainStep, compile_forward
from utils.errors import UserError

TEXT_HERE = ("--data", "data/input.txt", "--device", "cpu")  # options of estimate.py

# ---- Optimizers and schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule, expected", [
    ("linear", [1 / 3, 2 / 3, 1.0, 0.775, 0.55, 0.325]),
    ("cosine", [1 / 3, 2 / 3, 1.0, 0.1 + 0.45 * (1 + 0.5**0.5), 0.55, 0.1 + 0.45 * (1 - 0.5**0.5)]),
    ("wsd", [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
])
def test_the_learning_rates_rise_and_fall_as_computed_by_hand(schedule, expected):
    s = OptimSettings(schedule=schedule, warmup_iters=2, final_lr=0.1)
    assert [lr_factor(step, s, max_iters=6) for step in range(6)] == pytest.approx(expected)


def test_warmup_stable_decay_falls_in_the_last_fifth():
    s = OptimSettings(schedule="wsd", warmup_iters=0)
    assert [lr_factor(step, s, max_iters=100) for step in (0, 50, 80, 90, 99)] == pytest.approx([1, 1, 1, 0.5, 0.05])


def test_both_implementations_of_muon_take_the_same_steps():
    torch.manual_seed(0)
    weights = [torch.randn(12, 5).requires_grad_() for _ in range(2)]
    weights[1].data.copy_(weights[0].data)
    muons = (Muon([weights[0]], 0.02, weight_decay=0.1, momentum=0.9, dtype=torch.float32),
             transformer_4d.Muon([weights[1]], torch.tensor(0.02), 0.1, torch.float32))
    for _ in range(3):
        grad = torch.randn(12, 5)
        for weight, muon in zip(weights, muons, strict=True):
            weight.grad = grad.clone()
            muon.step()
    torch.testing.assert_close(weights[0], weights[1])  # one of them computes in stacks, which round differently


def test_fused_matrices_take_the_same_muon_steps_as_separate_ones():
    torch.manual_seed(0)
    apart = [torch.randn(rows, 12) for rows in (16, 8, 8)]
    joined = torch.cat(apart)
    muons = (Muon([joined], 0.02, weight_decay=0.1, momentum=0.9, dtype=torch.float32, rows={joined: [16, 8, 8]}),
             Muon(apart, 0.02, weight_decay=0.1, momentum=0.9, dtype=torch.float32))
    for _ in range(3):
        joined.grad = torch.randn(32, 12)
        for weight, grad in zip(apart, joined.grad.split([16, 8, 8]), strict=True):
            weight.grad = grad.clone()
        for muon in muons:
            muon.step()
        torch.testing.assert_close(joined, torch.cat(apart))


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_each_weight_has_one_optimizer_and_only_matrices_in_blocks_decay(name):
    model = ZOO["EasyGPT"](**TINY | {"num_kv_heads": 2, "n_hidden": 24, "vocab_size": 11})  # a tied head, and norms
    groups = [group for optimizer in make_optimizers(model, OptimSettings(name=name), torch.float32)
              for group in optimizer.param_groups]
    seen = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(seen) == sorted(id(weight) for weight in model.parameters())
    decayed = {id(weight) for group in groups if group["weight_decay"] for weight in group["params"]}
    expected = {id(weight) for name, weight in model.named_parameters() if "blocks" in name and weight.ndim == 2}
    assert decayed == expected


# ---- The loop --------------------------------------------------------------------------------------------------------


def plain_step(model, lr=0.1, average=None):
    """Return a TrainStep with gradient descent, in float32, without effective gradient clipping."""
    sgd = torch.optim.SGD(model.parameters(), lr=torch.tensor(lr))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainStep(model, [sgd], grad_clip=1e9, dtype=torch.float32, scaler=scaler, average=average)


def trainer_for(train_step, batches, evaluate=lambda *_: False, **changes):
    trainer = Trainer(train_step, Shares(batches), lambda step: 1.0, evaluate, max_iters=1, eval_interval=1000)
    return dataclasses.replace(trainer, **changes)


def fit_once(model, batches):
    """Return the weights after one step of plain gradient descent on these micro-batches."""
    fit(trainer_for(plain_step(model), lambda step: batches), Progress())
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def tiny_model():
    torch.manual_seed(0)
    model = DevModel(**TINY, vocab_size=11)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def test_micro_batches_with_unequal_targets_equal_one_large_batch():
    x, y = torch.randint(11, (2, 6, 12))
    y[0], y[1, 3:], y[4, :10] = -100, -100, -100
    whole = fit_once(tiny_model(), [(x, y)])
    parts = fit_once(tiny_model(), list(zip(x.split(2), y.split(2), strict=True)))
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-6)
    equal_weights = fit_once(tiny_model(), [(x[:2], y[:2])])
    assert not torch.allclose(equal_weights, whole, atol=1e-4)


def test_dropout_depends_on_seed_and_step_only():
    x, y = torch.randint(11, (2, 6, 12))

    def first_loss(seed, step):
        losses = []
        model = tiny_model()
        model.dropout.p = 0.5
        train_step = plain_step(model)
        train_step.seed = seed
        trainer = trainer_for(train_step, lambda step: [(x, y)], lambda _, loss: losses.append(loss) or False,
                              max_iters=step + 1)
        fit(trainer, Progress(step=step, best_loss=0.0))
        return losses[-1]

    seen = [first_loss(seed, step) for seed, step in ((1, 0), (1, 1), (2, 0), (2**40, 1), (2**40, 2))]
    assert len(set(seen)) == 5 and first_loss(1, 1) == seen[1]


def test_the_loss_of_a_split_equals_that_of_its_sequences_one_by_one():
    model, tokens = tiny_model().eval(), np.random.default_rng(0).integers(11, size=12 * 3 + 8)
    total = 0.0
    for start in range(0, len(tokens) - 1, 12):
        window = torch.from_numpy(tokens[start : start + 13])
        total += F.cross_entropy(model(window[None, :-1])[0][0], window[1:], reduction="sum").item()
    windows = ConsecutiveWindows(tokens, 12, batch_size=2)
    assert estimate_loss(model, windows) == pytest.approx(total / (len(tokens) - 1), rel=1e-5)
    assert estimate_loss(model, windows) == estimate_loss(model, windows)
    assert len(windows) == len(list(windows)) == 3


def test_the_loss_of_batches_is_the_mean_over_their_targets():
    class Losses(torch.nn.Linear):
        """3 over one target, and 60 over nine: means of 3 and 6.67."""

        def forward(self, x, y):
            return None, torch.tensor(3.0 if len(y) == 1 else 60 / 9)

    one, nine = torch.zeros(1, 1, dtype=torch.long), torch.zeros(9, 2, dtype=torch.long)
    nine[:, 0] = -100
    assert estimate_loss(Losses(1, 1), [(one, one), (nine, nine)]) == pytest.approx(6.3)


def test_a_run_writes_its_checkpoints_metrics_plot_and_settings(folder, capsys):
    run(tiny_settings())
    out = folder / "checkpoints" / "tiny"
    assert {path.name for path in out.iterdir()} == {"best.pt", "last.pt", "metrics.jsonl", "loss.png", "settings.yaml"}
    assert [step for step, _, _ in losses(out)] == [0, 2, 4, 6]
    assert losses(out)[0][1] is None and losses(out)[0][2] == pytest.approx(math.log(len(set(TEXT))), abs=0.1)
    assert min(loss for _, _, loss in losses(out)) < losses(out)[0][2]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((out / "settings.yaml").read_text())["model"]["n_embd"] == 16
    model, tokenizer = load_model(out / "best.pt")
    tokens = np.array(tokenizer.encode(TEXT))
    best = min(loss for _, _, loss in losses(out))
    windows = ConsecutiveWindows(tokens[int(0.9 * len(tokens)):], 12, 4)
    assert estimate_loss(model, windows) == pytest.approx(best, rel=1e-6)
    assert f"best validation loss {best:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("more, silent", [([], [0]), (["--init=checkpoints/base"], [])])
def test_samples_are_printed_after_each_evaluation_except_of_random_weights(folder, capsys, more, silent):
    run(tiny_settings("--run=base"))
    capsys.readouterr()
    run(tiny_settings("--run=more", *more))
    without = [int(step) for step in re.findall(r"^step +(\d+) .*\n(?!    )", capsys.readouterr().out, re.MULTILINE)]
    assert without == silent


def test_a_run_of_one_step_says_so(folder, capsys):
    run(tiny_settings("--training.max_iters=1"))
    assert "\n1 step in " in capsys.readouterr().out


def test_half_precision_halves_the_file_and_keeps_the_loss(folder):
    for name, half in (("whole", "false"), ("half", "true")):
        run(tiny_settings(f"--run={name}", f"--output.half={half}", "--model.n_embd=64"))
    paths = [folder / "checkpoints" / name / "best.pt" for name in ("whole", "half")]
    sizes = [path.stat().st_size for path in paths]
    assert sizes[1] < 0.6 * sizes[0]
    tokens = np.array(load_model(paths[0])[1].encode(TEXT))
    whole, half = (estimate_loss(load_model(path)[0], ConsecutiveWindows(tokens, 12, 4)) for path in paths)
    assert half == pytest.approx(whole, abs=1e-3)


def test_patience_stops_a_run_that_does_not_improve(folder):
    run(tiny_settings("--training.patience=2", "--training.max_iters=100", "--optim.muon_lr=1e-30",
                      "--optim.adamw_lr=1e-30"))
    assert [step for step, _, _ in losses(folder / "checkpoints" / "tiny")] == [0, 2, 4]


def test_a_nan_loss_stops_the_run_and_keeps_saved_files(folder):
    run(tiny_settings())
    before = {name: (folder / "checkpoints" / "tiny" / name).read_bytes() for name in ("best.pt", "last.pt")}
    with pytest.raises(UserError, match="the loss is nan at step"):
        run(tiny_settings("--resume", "--training.max_iters=30", "--optim.adamw_lr=1e30", "--optim.muon_lr=1e30"))
    assert before == {name: (folder / "checkpoints" / "tiny" / name).read_bytes() for name in before}


def test_a_run_does_not_overwrite_another(folder):
    run(tiny_settings())
    with pytest.raises(UserError, match="already contains a run: add --resume"):
        run(tiny_settings())
    (folder / "checkpoints" / "tiny" / "last.pt").unlink()  # as in a folder that ships a model
    with pytest.raises(UserError, match="no last.pt to resume from: pick another --run NAME"):
        run(tiny_settings())
    with pytest.raises(UserError, match="there is no .*none.*last.pt"):
        run(tiny_settings("--resume", "--run=none"))


# ---- Commands --------------------------------------------------------------------------------------------------------


every_yaml = pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)


@every_yaml
def test_every_yaml_file_describes_a_model(path):
    settings = parse_settings([str(path)])
    assert settings.run == path.stem
    with torch.device("meta"):
        ZOO[settings.model.name](**vars(model_config(settings.model, vocab_size=65, head={})))


@every_yaml
def test_every_yaml_file_trains_at_a_small_size(path, folder, capsys):
    write_data(folder / "data")
    given = parse_settings([str(path)])
    sizes = TINY | {"n_hidden": 16, "block_size": CONTEXT[given.task]}
    char = given.data.tokenizer == "char" and given.init is None  # else that of the checkpoint
    bpe = [] if char else ["--data.tokenizer=bpe", "--data.vocab_size=300"]
    settings = parse_settings([str(path), *(f"--model.{name}={value}" for name, value in sizes.items()), *bpe, *HERE,
                               f"--data.path=data/{FILES[given.task]}", "--data.val_path=none", "--init=none",
                               "--training.batch_size=2",
                               "--training.accumulation=1", "--training.max_iters=2", "--training.eval_interval=1",
                               "--training.epochs=none", "--training.device=cpu", "--training.dtype=float32",
                               "--output.sample_tokens=5"])
    run(settings)
    out = folder / "checkpoints" / path.stem
    assert [step for step, _, _ in losses(out)] == [0, 1, 2] and "2 steps in" in capsys.readouterr().out
    loaded = load_checkpoint(out)
    assert loaded.task["kind"] == given.task
    assert loaded.reply == answers_class(loaded.task).with_max_tokens(given.sampling)
    model, tokenizer = load_model(out / "best.pt")
    assert model.config.vocab_size == (settings.model.vocab_size or tokenizer.vocab_size)


def test_a_vocab_size_below_that_of_the_tokenizer_is_refused(folder):
    with pytest.raises(UserError, match="--model.vocab_size 5 is too few"):
        run(tiny_settings("--model.vocab_size=5"))


def test_tensorboard_gets_the_losses_of_metrics_jsonl(folder):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tiny_settings("--output.tensorboard=true"))
    out = folder / "checkpoints" / "tiny"
    events = reader.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    for place, name in enumerate(("training", "validation"), start=1):
        expected = [(line[0], pytest.approx(line[place])) for line in losses(out) if line[place] is not None]
        assert [(event.step, event.value) for event in events.Scalars(f"loss/{name}")] == expected


def test_without_torch_compile_one_line_says_so_and_training_continues(folder):
    tiny = [f"--model.{name}={value}" for name, value in TINY.items()]
    arguments = [*tiny, *HERE, "--training.max_iters=2", "--training.eval_interval=1", "--training.device=cpu",
                 "--training.batch_size=4", "--output.sample_tokens=0"]
    for name, compile in (("plain", "no"), ("tried", "yes")):
        done = command("train.py", *arguments, f"--run={name}", f"--training.compile={compile}", cwd=folder,
                       env=os.environ | {"CXX": str(folder / "none"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")})
        assert done.returncode == 0, done.stderr
        assert sum("torch.compile is not available on this machine" in line for line in done.stdout.splitlines()) == (
            compile == "yes")
    assert losses(folder / "checkpoints" / "plain") == losses(folder / "checkpoints" / "tried")


def test_a_model_whose_backward_pass_cannot_be_compiled_trains_eagerly(capsys, monkeypatch):
    def no_backward(model, dynamic):
        def faster(x, y):
            logits, loss = model(x, y)
            loss.register_hook(lambda gradient: (_ for _ in ()).throw(AssertionError()))  # an error without a message
            return logits, loss
        return faster

    monkeypatch.setattr(torch, "compile", no_backward)
    model = tiny_model()
    train_step = plain_step(model)
    assert not compile_forward(train_step, torch.randint(11, (2, 2, 12))) and train_step.forward is model
    assert "torch.compile is not available on this machine (AssertionError)" in capsys.readouterr().out
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("arguments, message", [
    (["--training.batch_sise=3"], "batch_sise"),
    (["--training.max_iters=many"], "max_iters"),
    (["--training.max_iters=0"], "max_iters"),
    (["--optim.name=sgd"], "optim.name"),
    (["--training.grad_clip=-1"], "grad_clip"),
    (["--optim.momentum=1"], "momentum"),
    (["--optim.betas=[0.9, 1.0]"], "betas"),
    (["--optim.final_lr=2"], "final_lr"),
    (["--training.seed=9223372036854775808"], "seed"),
    (["--sampling.temperature=-1"], "temperature"),
    (["--sampling.repetition_penalty=1e-40"], "repetition_penalty"),
    (["--model.name=GPT5"], "GPT5"),
    (["--model.num_heads=7"], "num_heads"),
    (["--data.path=none.txt"], "none.txt"),
    (["--data.path="], "data.path is empty"),
    (["--data.path=data/empty.txt"], "data/empty.txt is empty"),
    (["--data.path=data/short.txt"], "the validation split of data/short.txt is too short"),
    ([f"--data.path={'x' * 300}"], "File name too long"),
    (["--sampling.top_p=1e-300"], "top_p"),
    (["--resume"], "leave out --resume"),
    (["--output.folder=data/input.txt"], "input.txt"),
    (["none.yaml"], "none.yaml"),
])
def test_bad_settings_are_named_in_one_line(folder, capsys, monkeypatch, arguments, message):
    (folder / "data" / "empty.txt").touch()
    (folder / "data" / "short.txt").write_text("ab")
    sizes = [f"--model.{name}={value}" for name, value in TINY.items()]
    tiny = [] if arguments[0].endswith("yaml") else [*HERE, *sizes]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments[:1], *tiny, *arguments])
    with pytest.raises(SystemExit) as stop:
        train.main()
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert message in shown.err and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert list(folder.iterdir()) == [folder / "data"]


def test_estimate_evaluates_checkpoints_of_train_and_of_transformer_4d(folder, monkeypatch):
    run(tiny_settings())
    monkeypatch.setattr(transformer_4d, "HERE", folder / "single")
    (folder / "single" / "data").mkdir(parents=True)
    (folder / "single" / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    config = transformer_4d.Config(**TINY, batch_size=4, max_iters=6, eval_interval=3, max_new_chars=5, device="cpu")
    transformer_4d.train(config)
    [single] = (folder / "single" / "checkpoints").iterdir()
    checkpoint = torch.load(single, weights_only=True)
    model = transformer_4d.TransformerModel(config, checkpoint["config"]["vocab_size"])
    model.load_state_dict(checkpoint["weights"])
    ids = torch.tensor([checkpoint["tokenizer"]["vocab"].index(character) for character in TEXT])
    expected = {"single": transformer_4d.evaluate(model, ids[int(0.9 * len(ids)):], config.block_size, 4),
                "tiny": min(loss for _, _, loss in losses(folder / "checkpoints" / "tiny"))}
    for name, path in (("single", single), ("tiny", folder / "checkpoints" / "tiny" / "best.pt")):
        done = command("estimate.py", path, *TEXT_HERE, cwd=folder)
        assert done.returncode == 0, done.stderr
        loss = float(re.search(r"loss +([\d.]+)", done.stdout)[1])
        assert loss == pytest.approx(expected[name], abs=0.01)  # bfloat16, where that is fast
        assert float(re.search(r"perplexity +([\d.]+)", done.stdout)[1]) == pytest.approx(math.exp(loss), rel=1e-3)
        assert float(re.search(r"character +([\d.]+)", done.stdout)[1]) == pytest.approx(loss / math.log(2), abs=1e-3)


def test_estimate_counts_characters_and_compares_bpe_tokens_with_the_baselines_only(folder, monkeypatch, run_main):
    texts = [f"诗{i}：床前明月光，疑是地上霜。" for i in range(40)]
    (folder / "data" / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    run(tiny_settings("--data.path=data/texts.json", "--data.tokenizer=bpe", "--data.vocab_size=300"))
    text = open_tokens("data/texts.json", tokenizer=load_model("checkpoints/tiny/best.pt")[1])
    monkeypatch.setitem(estimate.REFERENCES, text.title, [(1.0, "another model")])
    out = run_main(estimate.main, "checkpoints/tiny/best.pt", "--data", "data/texts.json", "--device", "cpu")
    out = out.split("split val")[1]  # after the output of training
    loss, bits = (float(re.search(rf"{what} +([\d.]+)", out)[1]) for what in ("loss", "character"))
    characters = len(re.sub(r"<\|\w+\|>", "", text.tokenizer.decode(text.val[1:])))
    assert bits == pytest.approx(loss * (len(text.val) - 1) / characters / math.log(2), rel=1e-3)
    V = text.tokenizer.vocab_size
    assert table(out) == sorted([(loss, "<- this checkpoint"), (round(math.log(V), 4), "uniform baseline, ln V"),
                                 (round(ngram_loss(text.train, text.val, V), 4), "5-gram baseline")])


def table(out):
    """Return the rows (loss, name) of the comparison that estimate.py printed, in order."""
    return [(float(loss), name) for loss, name in re.findall(r"^  (\d+\.\d{4})  (.+)$", out, re.MULTILINE)]


def test_estimate_compares_a_known_text_with_references_in_order(folder, monkeypatch, run_main):
    run(tiny_settings())
    references = [(9.5, "a worse model"), (0.5, "a better model")]
    monkeypatch.setitem(estimate.REFERENCES, open_tokens("data/input.txt").title, references)
    rows = table(run_main(estimate.main, "checkpoints/tiny/best.pt", *TEXT_HERE))
    assert rows == sorted(rows) and len(rows) == 5 and {*references} < {*rows}


@pytest.mark.parametrize("split", ["train", "all"])
def test_estimate_compares_only_the_validation_split(folder, monkeypatch, run_main, split):
    run(tiny_settings())
    monkeypatch.delattr(estimate, "ngram_loss")
    out = run_main(estimate.main, "checkpoints/tiny/best.pt", "--split", split, *TEXT_HERE)
    assert f"split {split}:" in out and "baseline" not in out


@pytest.mark.parametrize("loss, expected", [
    (4.3, "untrained, or was trained on a different text or with a different tokenizer"),
    (4.0, "untrained, or was trained on a different text or with a different tokenizer"),  # exactly uniform
    (3.9, "undertrained"),
    (1.6, "undertrained"),  # exactly the 5-gram
    (1.5, "normal"),
])
def test_the_verdict_places_the_loss_between_the_two_baselines(loss, expected):
    line = estimate.verdict(loss, uniform=4.0, ngram=1.6)
    assert expected in line and "\n" not in line
    assert sum(word in line for word in ("different tokenizer", "undertrained", "normal")) == 1


def test_the_last_line_is_the_verdict_on_the_checkpoint(folder, run_main):
    model, tokenizer = DevModel(**TINY, vocab_size=len(set(TEXT))), CharTokenizer.of_text(TEXT)
    torch.nn.init.constant_(model.head.bias[0], 5)  # certain of one character, and mostly wrong
    save_checkpoint("untrained.pt", model, tokenizer)
    assert "untrained, or" in run_main(estimate.main, "untrained.pt", *TEXT_HERE).splitlines()[-1]
    run(tiny_settings())  # 6 steps
    out = run_main(estimate.main, "checkpoints/tiny/best.pt", *TEXT_HERE)
    assert "undertrained" in out.splitlines()[-1]


def test_estimate_rejects_a_batch_size_of_zero(run_main, capsys):
    with pytest.raises(SystemExit) as stop:
        run_main(estimate.main, "--batch_size", "0")
    assert (stop.value.code, capsys.readouterr().err) == (2, "error: batch_size must be > 0, got 0\n")


def test_estimate_names_the_characters_that_the_checkpoint_lacks(folder):
    run(tiny_settings())
    (folder / "other.txt").write_text("The fox asks 中 é" * 100, encoding="utf-8")
    done = command("estimate.py", "checkpoints/tiny/best.pt", "--data", "other.txt", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "'中', 'é'" in done.stderr
