"""What a run writes to its folder: last.pt, best.pt, metrics.jsonl, loss.png and settings.yaml."""

import contextlib
import dataclasses
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml
from torch import nn
from tqdm import tqdm

from formats.hub import hub_name
from models.lora import add_lora, lora_weights
from models.weights import SkipInitialization
from tasks.task import Task
from training.checkpoint import places_of_base, save_best, save_checkpoint
from training.distributed import World
from training.evaluate import estimate_loss
from training.loop import Progress, check_finite
from training.optim import WeightAverage
from training.parallel import gather_whole, is_sharded
from training.plots import plot_losses
from training.precision import autocast
from training.settings import DataSettings, OutputSettings, Settings
from utils.errors import UserError
from utils.files import replacing
from utils.printable import escape_controls

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@dataclasses.dataclass(kw_only=True)
class Record:
    """A run in progress, and the folder that the first rank writes its results to.

    last.pt decides whether a run exists: it is written before everything else, and is all that resuming needs.
    """

    folder: Path
    settings: Settings
    """With the values that `auto` was resolved to."""
    model: nn.Module
    task: Task
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    dtype: torch.dtype
    """Compute dtype of matrix products."""
    batch_size: int
    """Batch size of a rank in evaluations, in sequences."""
    world: World
    metrics: list[dict] = dataclasses.field(default_factory=list)
    """The lines of metrics.jsonl, as dictionaries."""
    compiled: bool = False

    def __post_init__(self):
        self.device = self.model.head.weight.device.type
        self.val_batches = self.task.val_batches(self.batch_size)
        self.text_digest = self.task.digest()
        self.entries = {"task": task_entry(self.settings, self.task), "sampling": vars(self.settings.sampling)}
        init = self.settings.init
        self.base = None if init is None else places_of_base(init, self.folder / "best.pt")
        self.board = None
        if self.settings.output.tensorboard and self.world.is_first:
            self.board = make_board(self.folder)

    def evaluate_and_save(self, progress: Progress, train_loss: float | None) -> bool:
        """Evaluate the model, write all files, and print losses and samples. Returns whether patience is exhausted."""
        training = self.settings.training
        line = {"step": progress.step, "tokens": progress.tokens, "train_loss": train_loss,
                "val_loss": self.validation_loss(), "seconds": round(progress.seconds, 1)}
        with self.world.together():
            check_finite(line["val_loss"], progress.step)
        if self.average:
            with self.average.in_model():
                line["ema_val_loss"] = self.validation_loss()
        with self.with_better_weights(line):
            model = self.whole_model()
            if self.world.is_first:
                with autocast(model.device.type, self.dtype):
                    line |= self.task.measure(model.eval())
        self.model.train()
        self.metrics.append(line)
        loss = min(line["val_loss"], line.get("ema_val_loss", np.inf))
        improved = loss < progress.best_loss
        if improved:
            progress.best_loss, progress.evaluations_since_best = loss, 0
        elif progress.step % training.eval_interval == 0:  # an evaluation after Ctrl-C does not count
            progress.evaluations_since_best += 1

        model = self.whole_model()
        self.save_last(progress, model)
        self.save_results(improved)
        if self.world.is_first:
            self.report(line, improved)
            if progress.step > 0 or self.settings.init is not None:  # random weights generate noise
                self.print_samples(model)
        return training.patience is not None and progress.evaluations_since_best >= training.patience

    def validation_loss(self) -> float:
        """Return the loss on the validation data, in nats per target, with the current weights."""
        with autocast(self.device, self.dtype):
            loss = estimate_loss(self.model, self.val_batches, self.world)
        if is_sharded(self.model):
            self.model.reshard()  # only a backward pass frees the weights outside the blocks
        return loss

    def with_better_weights(self, line: dict) -> AbstractContextManager[None]:
        """Context in which the model has the averaged weights if they had the lower validation loss."""
        if line.get("ema_val_loss", np.inf) < line["val_loss"]:
            return self.average.in_model()
        return contextlib.nullcontext()

    def whole_model(self) -> nn.Module | None:
        """Return the model; if it is sharded, a copy in main memory on the first rank, and None on others."""
        if not is_sharded(self.model):
            return self.model
        weights, lora = gather_whole(self.model.state_dict()), self.settings.lora
        if not self.world.is_first:
            return None
        with SkipInitialization():
            model = type(self.model)(**vars(self.model.config))
        if lora.rank is not None:
            add_lora(model, lora.rank, lora.alpha, lora.targets)
        model.load_state_dict(weights)
        return model

    def save_last(self, progress: Progress, model: nn.Module | None) -> None:
        """Write last.pt; `model` is the result of `whole_model`. If that fails, all ranks end."""
        states = [gather_whole(optimizer.state_dict()["state"]) for optimizer in self.optimizers]
        average = gather_whole(self.average.averages) if self.average else None
        self.world.decide(self.write_last, progress, model, states, average)

    def write_last(self, progress: Progress, model: nn.Module, states: list[dict], average: dict | None) -> None:
        """Write last.pt, given whole tensors."""
        training = self.settings.training
        run_config = {"path": self.settings.data.path, "text": self.text_digest, "optimizer": self.settings.optim.name,
                      "device": self.device, "batch_size": training.batch_size, "accumulation": training.accumulation,
                      "dtype": str(self.dtype).removeprefix("torch."), "compile": "yes" if self.compiled else "no",
                      "base": self.base, **trained_part(self.settings)}
        adapters = {} if self.settings.lora.rank is None else lora_weights(model)
        save_checkpoint(self.folder / "last.pt", model, self.task.tokenizer, progress=vars(progress),
                        optimizer_states=states, scaler=self.scaler.state_dict(), metrics=self.metrics,
                        run_config=run_config, average=average, adapters=adapters, **self.entries)

    def save_results(self, improved: bool) -> None:
        """Write the files that follow from last.pt: best.pt if the loss improved, metrics.jsonl and loss.png.

        If that fails, all ranks end.
        """
        if improved:
            with self.with_better_weights(self.metrics[-1]):
                self.world.decide(self.write_best, self.whole_model())
        self.world.decide(self.write_metrics)

    def write_best(self, model: nn.Module) -> None:
        """Write best.pt."""
        save_best(self.folder / "best.pt", model, self.task.tokenizer, self.settings, self.base, **self.entries)

    def write_metrics(self) -> None:
        """Write metrics.jsonl and loss.png."""
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.metrics))
        title = f"{self.settings.run}: {self.settings.model.name}"
        plot_losses(self.metrics, self.folder / "loss.png", title, self.task.train_loss_name)

    def write(self, name: str, text: str) -> None:
        """Write a text file in the folder of the run."""
        with replacing(self.folder / name) as file:
            file.write(text.encode())

    def report(self, line: dict, improved: bool) -> None:
        """Print the losses in a line of metrics, and send them to TensorBoard."""
        labels = {"train_loss": self.task.train_loss_name, "val_loss": "validation loss",
                  "ema_val_loss": "of averaged weights", "accuracy": "accuracy"}
        losses = "  ".join(f"{text} {line[name]:.4f}" for name, text in labels.items() if line.get(name) is not None)
        mark = "  best so far" if improved else ""
        tqdm.write(f"step {line['step']:5}  {losses}{mark}")
        if self.board:
            for name, tag in (("train_loss", "training"), ("val_loss", "validation"), ("ema_val_loss", "average")):
                if line.get(name) is not None:
                    self.board.add_scalar(f"loss/{tag}", line[name], line["step"])
            self.board.flush()

    def print_samples(self, model: nn.Module) -> None:
        """Print what a model answers to the samples of its task."""
        sampling, limit = self.settings.sampling, self.settings.output.sample_tokens
        if not limit:
            return
        config = dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, limit))
        model.eval()
        for sample in self.task.samples(model, config):
            tqdm.write("    " + escape_controls(sample.strip()).replace("\n", "\n    "))
        model.train()

    def write_results_again(self, progress: Progress) -> None:
        """Write the results of a resumed run again, in case it was killed after it wrote last.pt."""
        line = self.metrics[-1]
        self.save_results(improved=progress.best_loss in (line["val_loss"], line.get("ema_val_loss")))

    def write_settings(self) -> None:
        """Write settings.yaml, with which the run can be resumed or repeated."""
        settings = dataclasses.asdict(self.settings)
        del settings["resume"]  # settings.yaml starts a new run
        if self.settings.init is not None and not hub_name(self.settings.init):
            settings["init"] = os.path.abspath(self.settings.init)  # the run may be resumed in another folder
        # Default paths are left blank: they are in the project folder, which may be moved before the run is resumed.
        if self.settings.data.path == DataSettings().path:
            settings["data"]["path"] = ""
        if self.settings.output.folder == OutputSettings().folder:
            settings["output"]["folder"] = ""
        self.write("settings.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def trained_part(settings: Settings) -> dict:
    """Return the settings that decide which weights are trained, as last.pt records them."""
    lora = settings.lora
    return {"lora": None if lora.rank is None else [lora.rank, lora.alpha, *lora.targets],
            "trainable_blocks": settings.training.trainable_blocks}


def task_entry(settings: Settings, task: Task) -> dict:
    """Return what a checkpoint records about its task."""
    return {"kind": settings.task, **task.info}


def make_board(folder: Path) -> "SummaryWriter":
    """Return a TensorBoard writer. Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard")
