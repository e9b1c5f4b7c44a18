"""Export of a model as a Hugging Face folder."""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from formats.export.architectures import TRANSFORMERS, Checkpoint, ExportedModel, prepare_export
from formats.export.config import EXPORTED_BY, config_json, generation_config_json
from formats.export.model_card import model_card
from formats.export.tokenizer import end_marker, tokenizer_config_json, tokenizer_json
from formats.export.verification import verify_folder
from formats.huggingface import TABLES, WEIGHTS
from formats.huggingface_config import ARCHITECTURES
from formats.weight_names import export_weights
from models.config import ModelConfig
from utils.errors import UserError
from utils.files import read_if_there, replacing_folder

REMOTE_CODE = Path(__file__).parent / "remote" / "modeling_your_gpt.py"
EXPORTED_FILES = {"README.md", "config.json", "generation_config.json", WEIGHTS, REMOTE_CODE.name, "tokenizer.json",
                  "tokenizer_config.json"}


def export_folder(folder: Path, loaded: Checkpoint, val_loss: float | None = None) -> str:
    """Write a model to a Hugging Face folder; return the name of the class of transformers that computes it.

    The folder is verified, and then replaces an earlier export. The largest differences are printed. The model card
    has the validation loss. Raises UserError if no class of transformers computes the model, if the folder is not an
    earlier export, or if the verification fails.
    """
    folder = Path(os.path.realpath(folder))  # unlike Path.resolve, without an exception for a loop of links
    check_replaceable(folder)
    exported = prepare_export(loaded.model, loaded.tokenizer, TRANSFORMERS, "transformers")
    with replacing_folder(folder) as partial:
        write_json_files(partial, exported.class_name, exported.config, loaded)
        write_weights(partial / WEIGHTS, exported)
        shutil.copymode(partial / "config.json", partial / WEIGHTS)  # safetensors lets nobody else read it
        card = model_card(folder.name, exported.class_name, exported.config, loaded.task["kind"], val_loss)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if exported.class_name == "YourGPTForCausalLM":
            shutil.copy(REMOTE_CODE, partial)
        verify_folder(partial, loaded)
    return exported.class_name


def check_replaceable(folder: Path) -> None:
    """Raise UserError unless the folder is missing, empty, or an earlier export without other files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_export(folder / "config.json"):
        raise UserError(f"{folder} is not an earlier export, and is not replaced: choose another folder")
    other_files = sorted({path.name for path in folder.iterdir()} - EXPORTED_FILES)
    if other_files:
        raise UserError(f"{folder} is not replaced, as {other_files[0]} in it is not from an export: move it out, or "
                        "choose another folder")


def is_export(path: Path) -> bool:
    """Return whether a config.json is from an export, unchanged: transformers may have saved the model again."""
    fields = read_if_there(path)
    return fields.items() >= EXPORTED_BY.items() and "transformers_version" not in fields


def write_json_files(folder: Path, class_name: str, config: ModelConfig, loaded: Checkpoint) -> None:
    tokenizer, task = loaded.tokenizer, loaded.task["kind"]
    end = end_marker(tokenizer, task)
    end_id = None if end is None else getattr(tokenizer, end)
    start_id = tokenizer.start_id if task == "language" else None
    contents = {
        "config.json": config_json(class_name, config, end_id),
        "generation_config.json": generation_config_json(config, loaded.reply, start_id, end_id, tokenizer.padding),
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_config_json(tokenizer, task, config.block_size),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def write_weights(path: Path, exported: ExportedModel) -> None:
    """Write model.safetensors. Raises UserError if it cannot be written."""
    table = TABLES[ARCHITECTURES[exported.class_name].model_class]
    try:
        save_file(dict(export_weights(table, exported.config, exported.weights)), path, {"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"cannot write {path} ({error}): free some space, or choose another folder") from None
