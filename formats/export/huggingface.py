"""Export of a model as a Hugging Face folder."""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from formats.export.architectures import TRANSFORMERS, exported_model
from formats.export.config import EXPORTED_BY, write_config, write_generation_config
from formats.export.model_card import write_card
from formats.export.tokenizer import end_marker, write_tokenizer, write_tokenizer_config
from formats.export.verification import verify_folder
from formats.huggingface import TABLES, WEIGHTS
from formats.huggingface_config import ARCHITECTURES
from formats.weight_names import export_weights
from utils.errors import UserError
from utils.files import read_if_there, replacing_folder

REMOTE_CODE = Path(__file__).parent / "remote" / "modeling_your_gpt.py"
FILES = {"README.md", "config.json", "generation_config.json", WEIGHTS, REMOTE_CODE.name, "tokenizer.json",
         "tokenizer_config.json"}  # of an export


def export_folder(folder, loaded, val_loss=None):
    """Write a model, as `Loaded` of training/checkpoint.py, to a Hugging Face folder, and verify it before it replaces
    an earlier export. Prints the largest differences; returns the name of the class of transformers.

    The validation loss is for the model card. Raises UserError if no class of transformers computes the model, if the
    folder is not an earlier export, or if the verification fails.
    """
    folder = Path(os.path.realpath(folder))  # unlike resolve, without an exception for a loop of links
    check_replaceable(folder)
    class_name, config, weights = exported_model(loaded.model, loaded.tokenizer, TRANSFORMERS, "transformers")
    with replacing_folder(folder) as partial:
        write_descriptions(partial, class_name, config, loaded)
        write_weights(partial / WEIGHTS, class_name, config, weights)
        shutil.copymode(partial / "config.json", partial / WEIGHTS)  # safetensors lets nobody else read it
        card = write_card(folder.name, class_name, config, loaded.task["kind"], val_loss)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if class_name == "YourGPTForCausalLM":
            shutil.copy(REMOTE_CODE, partial)
        verify_folder(partial, loaded)
    return class_name


def check_replaceable(folder):
    """Raise UserError unless there is no folder, or an empty one, or an earlier export without other files."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not is_export(folder / "config.json"):
        raise UserError(f"{folder} is not an earlier export, and is not replaced: choose another folder")
    others = sorted({path.name for path in folder.iterdir()} - FILES)
    if others:
        raise UserError(f"{folder} is not replaced, as {others[0]} in it is not from an export: move it out, or choose "
                        "another folder")


def is_export(config):
    """Whether a config.json is from an export, and not from a model that transformers has loaded from one and saved."""
    fields = read_if_there(config)
    return fields.items() >= EXPORTED_BY.items() and "transformers_version" not in fields


def write_weights(path, class_name, config, weights):
    """Write model.safetensors. Raises UserError if it cannot be written."""
    table = TABLES[ARCHITECTURES[class_name].model_class]
    try:
        save_file(dict(export_weights(table, config, weights)), path, {"format": "pt"})
    except SafetensorError as error:
        raise UserError(f"cannot write {path} ({error}): free some space, or choose another folder") from None


def write_descriptions(folder, class_name, config, loaded):
    """Write the JSON files."""
    tokenizer, task = loaded.tokenizer, loaded.task["kind"]
    end = end_marker(tokenizer, task)
    end_id = None if end is None else getattr(tokenizer, end)
    start_id = tokenizer.start_id if task == "language" else None
    contents = {
        "config.json": write_config(class_name, config, end_id),
        "generation_config.json": write_generation_config(config, loaded.reply, start_id, end_id, tokenizer.padding),
        "tokenizer.json": write_tokenizer(tokenizer),
        "tokenizer_config.json": write_tokenizer_config(tokenizer, task, config.block_size),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
