"""A run: settings in, a folder with checkpoints, metrics and a picture out."""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

from data.prepare import open_tokens
from data.readers import ReadOptions
from data.tokenizer import tokenizer_from_dict
from data.windows import check_length, make_windows
from models.generate import generate_text
from models.zoo import ZOO
from training.checkpoint import save_checkpoint
from training.evaluate import estimate_loss
from training.loop import Progress, Trainer, check_finite, fit
from training.optim import WeightAverage, lr_factor, make_optimizers
from training.plots import plot_losses
from training.precision import autocast, pick_device, pick_dtype
from training.preflight import fit_to_memory, memory_advice
from training.run_state import check_averages, check_optimizer_states, read_run
from training.step import TrainStep, accelerate
from utils.errors import UserError
from utils.files import replacing
from utils.parameters import count_parameters


def model_config(s, vocab_size):
    """The ModelConfig of the model that ModelSettings describe, for a tokenizer of so many tokens. Raises UserError."""
    if s.name not in ZOO:
        raise UserError(f"there is no model {s.name}: choose one of {', '.join(ZOO)}")
    given = {name: value for name, value in vars(s).items() if name != "name" and value is not None}
    config = dataclasses.replace(ZOO[s.name].config, **{"vocab_size": vocab_size} | given)
    if config.vocab_size < vocab_size:
        raise UserError(f"--model.vocab_size {config.vocab_size:,} is too few for the {vocab_size:,} tokens of the "
                        "tokenizer: leave it out, or give more")
    return config


def train(settings):
    """Do a run by `Settings`. Raises UserError."""
    s, folder = settings.training, Path(settings.output.folder) / settings.run
    last_path = folder / "last.pt"
    saved = read_run(last_path) if settings.resume else None
    if not saved and any((folder / name).exists() for name in ("best.pt", "last.pt")):
        raise UserError(f"{folder} holds a model already: --resume goes on with its run, --run NAME names another")

    d = settings.data
    wanted = tokenizer_from_dict(saved["tokenizer"]) if saved else d.tokenizer
    text = open_tokens(d.path, ReadOptions(column=d.column), wanted, d.vocab_size, d.max_bytes)
    tokenizer, val_tokens = text.tokenizer, text.val
    print(f"text: {d.path} ({text.title}), {len(text.train):,} tokens for training and {len(val_tokens):,} for "
          f"validation, of {tokenizer.vocab_size:,} different ones")

    torch.manual_seed(s.seed)
    device = pick_device(s.device)
    config = model_config(settings.model, tokenizer.vocab_size)
    if saved:
        check_same(saved, config, settings, val_tokens, last_path)
        s = as_begun(s, saved["settled"], device)
    dtype = pick_dtype(device, s.dtype)
    s, plan = fit_to_memory(s, settings.optim, config, device, dtype)  # before anything of that size is built
    settings.training = s
    model = ZOO[settings.model.name](**vars(config)).to(device)
    check_length(val_tokens, model.block_size, "the validation split")
    model.activation_checkpointing = s.activation_checkpointing
    print(f"model: {settings.model.name}, {count_parameters(config):,} parameters, on {device} in "
          f"{str(dtype).removeprefix('torch.')}")

    optimizers = make_optimizers(model, settings.optim, dtype)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    average = None if settings.optim.ema is None else WeightAverage(model, settings.optim.ema)
    progress, metrics = Progress(), []
    if saved:
        check_optimizer_states(optimizers, saved["optimizer_states"], last_path)
        model.load_state_dict(saved["weights"])
        for optimizer, state in zip(optimizers, saved["optimizer_states"], strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})  # its settings are those of today
        if saved["scaler"]:  # empty, where the run was in another precision until now
            scaler.load_state_dict(saved["scaler"])
        if average and saved.get("average"):
            check_averages(average, saved["average"], last_path)
            average.load(saved["average"])
        elif average:
            average.load(dict(model.named_parameters()))  # the run had none so far: it starts here
        progress, metrics = Progress(**saved["progress"]), saved["metrics"]
        print(f"going on from step {progress.step}")
    del saved  # as large as the model and its optimizers
    windows = make_windows(text.train, d, model.block_size, s.batch_size, s.accumulation, s.seed)
    train_step = TrainStep(model, optimizers, s.grad_clip, dtype, scaler, average)
    steps_left = s.max_iters - progress.step
    compiled = accelerate(train_step, windows.batch(0, 0), s.compile, steps_left * s.accumulation)
    record = Record(folder, settings, model, tokenizer, optimizers, scaler, val_tokens, dtype, metrics, average)
    record.settled["compile"] = "yes" if compiled else "no"
    trainer = Trainer(train_step, windows.batch, lambda step: lr_factor(step, settings.optim, s.max_iters),
                      record.evaluated, s.accumulation, s.max_iters, s.eval_interval, s.seed)
    with memory_advice(config, plan):
        fit(trainer, progress)
    minutes = progress.seconds / 60
    print(f"{progress.step} steps in {minutes:.1f} minutes, best validation loss {progress.best_loss:.4f}")
    print(f"talk to it: python terminal_demo.py {folder / 'best.pt'}")


def digest(tokens):
    """What tells one text's tokens from another's."""
    return hashlib.sha256(np.ascontiguousarray(tokens)).hexdigest()


def check_same(saved, config, settings, val_tokens, path):
    """Raise UserError unless the run in the file `path` has this text, model and optimizer; dropout may change."""
    settled = saved["settled"]
    if settled["text"] != digest(val_tokens):
        raise UserError(f"{path} was begun on another text, {settled['path']}: give that again, or begin a new run "
                        "with --run NAME")
    now = {"model": settings.model.name, **vars(config), "optimizer": settings.optim.name}
    begun = {"model": saved["model_class"], **saved["config"], "optimizer": settled["optimizer"]}
    for name, value in now.items():
        if name != "dropout" and value != begun.get(name):
            raise UserError(f"{path} was begun with {name} {begun.get(name)}, not {value}: give that again, or begin a "
                            "new run with --run NAME")


def as_begun(s, settled, device):
    """TrainingSettings where `auto` is what the run found when it began, so that it goes on with the same numbers."""
    if s.batch_size == "auto":
        s = dataclasses.replace(s, batch_size=settled["batch_size"], accumulation=settled["accumulation"])
    if s.dtype == "auto" and device == settled["device"]:
        s = dataclasses.replace(s, dtype=settled["dtype"])
    if s.compile == "auto" and device == settled["device"]:
        s = dataclasses.replace(s, compile=settled.get("compile", "auto"))  # older runs do not have it
    return s


class Record:
    """What a run leaves behind: best.pt, last.pt, metrics.jsonl, loss.png and settings.yaml in its folder."""

    def __init__(self, folder, settings, model, tokenizer, optimizers, scaler, val_tokens, dtype, metrics,
                 average):
        self.folder, self.settings, self.model, self.tokenizer = folder, settings, model, tokenizer
        self.optimizers, self.scaler, self.val_tokens, self.dtype = optimizers, scaler, val_tokens, dtype
        self.metrics, self.average, s = metrics, average, settings.training
        self.settled = {"path": settings.data.path, "text": digest(val_tokens), "optimizer": settings.optim.name,
                        "device": next(model.parameters()).device.type, "batch_size": s.batch_size,
                        "accumulation": s.accumulation, "dtype": str(dtype).removeprefix("torch.")}
        self.board = make_board(folder) if settings.output.tensorboard else None
        again = dataclasses.asdict(settings)
        del again["resume"]  # the file is for a new run
        self.write("settings.yaml", yaml.safe_dump(again, sort_keys=False, allow_unicode=True))

    def write(self, name, text):
        with replacing(self.folder / name) as file:
            file.write(text.encode())

    def evaluated(self, progress, train_loss):
        """Measure the model, save it, show what it does. Returns True to stop: patience is at its end."""
        s = self.settings.training
        device = next(self.model.parameters()).device.type
        with autocast(device, self.dtype):
            val_loss = check_finite(estimate_loss(self.model, self.val_tokens, s.batch_size), progress.step)
        line = {"step": progress.step, "tokens": progress.tokens, "train_loss": train_loss, "val_loss": val_loss,
                "seconds": round(progress.seconds, 1)}
        in_best = contextlib.nullcontext  # the context in which the model has its better weights
        if self.average:
            with autocast(device, self.dtype), self.average.in_model():
                line["ema_val_loss"] = estimate_loss(self.model, self.val_tokens, s.batch_size)
            if line["ema_val_loss"] < val_loss:
                val_loss, in_best = line["ema_val_loss"], self.average.in_model
        best = val_loss < progress.best_loss
        progress.best_loss = min(val_loss, progress.best_loss)
        scheduled = progress.step % s.eval_interval == 0  # a Ctrl-C takes nothing from the patience
        progress.evaluations_since_best = 0 if best else progress.evaluations_since_best + scheduled
        self.metrics.append(line)
        if best:
            with in_best():
                save_checkpoint(self.folder / "best.pt", self.model, self.tokenizer, half=self.settings.output.half)
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.metrics))
        save_checkpoint(self.folder / "last.pt", self.model, self.tokenizer, progress=vars(progress),
                        optimizer_states=[optimizer.state_dict()["state"] for optimizer in self.optimizers],
                        scaler=self.scaler.state_dict(), metrics=self.metrics, settled=self.settled,
                        average=self.average.averages if self.average else None)
        plot_losses(self.metrics, self.folder / "loss.png", f"{self.settings.run}: {type(self.model).__name__}")
        self.show(progress.step, train_loss, val_loss, best)
        return s.patience is not None and progress.evaluations_since_best >= s.patience

    def show(self, step, train_loss, val_loss, best):
        """The losses, and what the model writes now."""
        trained = "" if train_loss is None else f"training loss {train_loss:.4f}  "
        tqdm.write(f"step {step:5}  {trained}validation loss {val_loss:.4f}{'  best so far' if best else ''}")
        if self.board:
            for name, loss in (("training", train_loss), ("validation", val_loss)):
                if loss is not None:
                    self.board.add_scalar(f"loss/{name}", loss, step)
            self.board.flush()
        if self.settings.output.sample_tokens:
            self.model.eval()
            sample = generate_text(self.model, self.tokenizer, "", self.settings.output.sample_tokens,
                                   self.settings.sampling)
            tqdm.write("    " + "".join(sample).strip().replace("\n", "\n    "))
            self.model.train()


def make_board(folder):
    """A writer for TensorBoard. Raises UserError if that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install tensorboard") from None
    return SummaryWriter(folder / "tensorboard")
