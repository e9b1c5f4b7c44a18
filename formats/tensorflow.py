"""Reading OpenAI's GPT-2 in TensorFlow's files: hparams.json, checkpoint, model.ckpt.*, encoder.json and vocab.bpe."""

import re
from pathlib import Path, PureWindowsPath

from torch import Tensor

from formats.foreign_model import ForeignModel, check_tokenizer, read_tensor
from formats.huggingface_config import Fields, make_config
from formats.tensor_bundle import read_bundle
from formats.weight_names import OPENAI, check_weights, import_weights
from models.config import ModelConfig
from models.zoo import GPT2
from tokenization.load import load_tokenizer
from utils.files import read_json_object


def open_tensorflow(folder: Path) -> ForeignModel:
    """Open the model in a folder. Raises UserError."""
    config = read_hparams(folder / "hparams.json")
    prefix = folder / read_checkpoint_name(folder)
    bundle = read_bundle(prefix)
    shapes = {name: drop_kernel_width(stored.shape) for name, stored in bundle.items()}
    check_weights(OPENAI, config, shapes, prefix)
    tokenizer = load_tokenizer(folder.absolute())  # absolute, as `gpt2` alone would be a name
    check_tokenizer(tokenizer, config, folder)

    def read(name: str) -> Tensor:
        return read_tensor(bundle[name].path, bundle[name].offset, shapes[name])

    return ForeignModel("GPT2", config, tokenizer, import_weights(OPENAI, config, read, prefix))


def read_hparams(path: Path) -> ModelConfig:
    """Return the ModelConfig in hparams.json. Raises UserError."""
    fields = Fields(path, read_json_object(path))
    return make_config(path, vars(GPT2.config) | {
        "n_embd": fields.size("n_embd"),
        "block_size": fields.size("n_ctx"),
        "n_blocks": fields.size("n_layer"),
        "num_heads": fields.size("n_head"),
        "vocab_size": fields.size("n_vocab"),
    })


def read_checkpoint_name(folder: Path) -> str:
    """Return the prefix of the files of the latest checkpoint, which the file `checkpoint` in the folder names."""
    path = folder / "checkpoint"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r'^model_checkpoint_path: "(.+)"', text, re.MULTILINE)
    name = PureWindowsPath(found[1]).name if found else ""  # without the folder in which it was saved
    return name or "model.ckpt"


def drop_kernel_width(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a matrix, which OpenAI saved as a convolution of width 1: (1, inputs, outputs)."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
