"""Reading last.pt, checked to be complete and undamaged. Whether it is the same run, training/resume.py checks."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch

from training.checkpoint import read_checkpoint
from training.checks import check_model, check_task, tensor_problem
from training.loop import Progress
from training.optim import WeightAverage
from utils.errors import UserError
from utils.fields import has_type

ENTRIES = {"progress": dict, "optimizer_states": list, "scaler": dict, "metrics": list, "run_config": dict}
PROGRESS = {field.name: field.type for field in fields(Progress)}
METRICS = {"step": int, "tokens": int, "train_loss": float | None, "val_loss": float, "ema_val_loss": float,
           "accuracy": float, "seconds": float}
SCALER = {"scale": float, "growth_factor": float, "backoff_factor": float, "growth_interval": int,
          "_growth_tracker": int}
RUN_CONFIG = {"path": object, "text": str, "optimizer": str, "device": str, "batch_size": int, "accumulation": int,
              "dtype": Literal["float32", "bfloat16", "float16"], "compile": Literal["yes", "no"],
              "lora": list | None, "trainable_blocks": int | None, "base": list[str] | None}
OPTIONAL = {"ema_val_loss", "accuracy",  # only some runs have them
            "tokens", "compile", "lora", "trainable_blocks", "base"}  # older files lack them


def read_run(path: Path) -> dict:
    """Return the content of a last.pt, validated except for the optimizer states and the averaged weights.

    Raises UserError if training cannot resume from it.
    """
    checkpoint = read_checkpoint(path)
    if "settled" in checkpoint:
        checkpoint["run_config"] = checkpoint.pop("settled")  # its name in older files
    if not all(isinstance(checkpoint.get(name), kind) for name, kind in ENTRIES.items()):
        raise UserError(f"{path} does not contain the full training state that --resume needs: use a last.pt from this "
                        "version of train.py, or start a new run with --run NAME")
    checkpoint["config"] = vars(check_model(checkpoint, path)[0])
    check_task(checkpoint, path)
    check_values(checkpoint["progress"], PROGRESS, "progress", path)
    check_values(checkpoint["run_config"], RUN_CONFIG, "run_config", path)
    if checkpoint["scaler"]:  # empty unless the run uses float16
        check_values(checkpoint["scaler"], SCALER, "scaler", path)
    for line in checkpoint["metrics"]:
        check_values(line, METRICS, "metrics", path)
    return checkpoint


def check_values(values: Any, types: dict[str, Any], entry: str, path: Path) -> None:
    """Raise UserError unless an entry of the file `path` has the keys and the types of values in `types`.

    Keys in OPTIONAL may be missing. No float may be negative.
    """
    if not isinstance(values, dict) or not types.keys() - OPTIONAL <= values.keys() <= types.keys():
        raise damage_error(path, f"{entry} must have the keys {', '.join(types)}")
    for name, value in values.items():
        kind = types[name]
        is_negative = has_type(value, float) and value < 0
        if is_negative or not has_type(value, kind):
            raise damage_error(path, f"{entry} has an invalid {name}")


def check_optimizer_states(optimizers: list[torch.optim.Optimizer], states: list, path: Path) -> None:
    """Raise UserError unless the states read from `path` are those of the optimizers' parameters.

    The optimizers' kernels trust the shapes of their state: with another shape they access memory out of bounds.
    """
    if len(states) != len(optimizers):
        raise damage_error(path, f"it has {len(states)} optimizer states, not {len(optimizers)}")
    for optimizer, state in zip(optimizers, states, strict=True):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        numbers = set(range(len(weights)))
        if not isinstance(state, dict) or state.keys() not in (set(), numbers):  # empty before the first step
            raise damage_error(path, f"the optimizer state must have {len(weights)} entries")
        names = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.AdamW) else {"momentum"}
        for i, values in state.items():
            if not isinstance(values, dict) or values.keys() != names:
                raise damage_error(path, f"the optimizer state of parameter {i} must have the keys {', '.join(names)}")
            for name, value in values.items():
                shape = () if name == "step" else weights[i].shape
                problem = tensor_problem(value, shape, [weights[i].dtype])
                if problem is None and not value.is_contiguous():
                    problem = "is not contiguous"
                if problem is None and name in ("step", "exp_avg_sq") and value.min() < 0:
                    problem = "is negative"
                if problem:
                    raise damage_error(path, f"{name} in the optimizer state of parameter {i} {problem}")


def check_averages(average: WeightAverage, saved: Any, path: Path) -> None:
    """Raise UserError unless the averages read from `path` are those of a WeightAverage."""
    if not isinstance(saved, dict) or saved.keys() != average.averages.keys():
        raise damage_error(path, "the averaged weights are not those of the model")
    for name, tensor in average.averages.items():
        problem = tensor_problem(saved[name], tensor.shape, [tensor.dtype])
        if problem:
            raise damage_error(path, f"the averaged weight {name} {problem}")


def damage_error(path: Path, problem: str) -> UserError:
    """Return the UserError for a damaged last.pt."""
    return UserError(f"{path} is damaged: {problem}. Start a new run with --run NAME")
