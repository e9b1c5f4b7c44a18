"""OpenAI's GPT-2 as TensorFlow saved it: hparams.json, checkpoint, model.ckpt.*, encoder.json and vocab.bpe."""

import re
from pathlib import PureWindowsPath

from data.tokenizer import load_tokenizer
from formats.foreign_model import Foreign, check_tokenizer, read_tensor
from formats.huggingface_config import Fields, make_config
from formats.tensor_bundle import read_bundle
from formats.weight_names import OPENAI, check_weights, to_ours
from models.zoo import GPT2
from utils.files import read_json_object


def open_tensorflow(folder):
    """The model in a folder as `Foreign`. Raises UserError."""
    config = read_hparams(folder / "hparams.json")
    prefix = folder / latest(folder)
    bundle = read_bundle(prefix)
    shapes = {name: without_kernel_width(stored.shape) for name, stored in bundle.items()}
    check_weights(OPENAI, config, shapes, prefix)
    tokenizer = load_tokenizer(folder.absolute())  # `gpt2` alone is a name there
    check_tokenizer(tokenizer, config, folder)

    def read(name):
        return read_tensor(bundle[name].path, bundle[name].offset, shapes[name])

    return Foreign("GPT2", config, tokenizer, to_ours(OPENAI, config, read, prefix))


def read_hparams(path):
    """The ModelConfig in hparams.json. Raises UserError."""
    fields = Fields(path, read_json_object(path))
    return make_config(path, vars(GPT2.config) | {
        "n_embd": fields.size("n_embd"),
        "block_size": fields.size("n_ctx"),
        "n_blocks": fields.size("n_layer"),
        "num_heads": fields.size("n_head"),
        "vocab_size": fields.size("n_vocab"),
    })


def latest(folder):
    """The start of the names of the files of the latest checkpoint in a folder, by its file `checkpoint`."""
    path = folder / "checkpoint"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r'^model_checkpoint_path: "(.+)"', text, re.MULTILINE)
    name = PureWindowsPath(found[1]).name if found else ""  # often with the folder in which it was saved
    return name or "model.ckpt"


def without_kernel_width(shape):
    """The shape of a matrix, which OpenAI saved as a convolution of width 1: (1, inputs, outputs)."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
