"""Whether a run may resume from its last.pt, and with which settings."""

import dataclasses
from operator import attrgetter
from pathlib import Path
from typing import Any

from models.config import ModelConfig
from tasks.task import Task
from training.arguments import all_settings, parse_settings
from training.precision import pick_device
from training.record import trained_part
from training.settings import Settings, TrainingSettings
from utils.errors import UserError


def check_same_run(saved: dict, settings: Settings, config: ModelConfig, task: Task, path: Path) -> None:
    """Raise UserError unless the run saved in `path` has this model, optimizer and text; dropout may change."""
    run_config = saved["run_config"]
    before = {"model": saved["model_class"], **saved["config"], **saved.get("task", {}), **run_config}
    now = {"model": settings.model.name, **vars(config), **task.info, "optimizer": settings.optim.name,
           **trained_part(settings)}
    for name, value in now.items():
        if name != "dropout" and value != before.get(name):
            raise UserError(f"{path} has {name} {before.get(name)}, not {value}: use the same, or start a new run with "
                            "--run NAME")
    if run_config["text"] != task.digest():
        raise UserError(f"{path} was trained on another text, {run_config['path']}: use that text, or start a new run "
                        "with --run NAME")


def resolve_as_before(training: TrainingSettings, run_config: dict) -> TrainingSettings:
    """Return the settings with each `auto` resolved as when the run started."""
    same_device = pick_device(training.device) == run_config["device"]
    if training.batch_size == "auto":
        training = dataclasses.replace(training, batch_size=run_config["batch_size"],
                                       accumulation=run_config["accumulation"])
    if training.dtype == "auto" and same_device:
        training = dataclasses.replace(training, dtype=run_config["dtype"])
    if training.compile == "auto" and same_device:
        training = dataclasses.replace(training, compile=run_config.get("compile", "auto"))  # not in older files
    return training


def print_changes(path: Path, settings: Settings) -> None:
    """Print the settings of a resumed run that differ from those in its settings.yaml, if it can be read."""
    try:
        before = parse_settings([str(path)])
    except UserError:
        return
    changes = []
    for name in all_settings().keys() - {"resume"}:
        old, new = (attrgetter(name)(each) for each in (before, settings))
        if new not in (old, "auto"):
            changes.append(f"{name} {as_yaml(old)} -> {as_yaml(new)}")
    if changes:
        print(f"changed settings: {', '.join(sorted(changes))}")


def as_yaml(value: Any) -> Any:
    """Return a value as YAML has it: a tuple is a list."""
    return list(value) if isinstance(value, tuple) else value
