"""Reading nanoGPT's ckpt.pt (https://github.com/karpathy/nanoGPT), with the meta.pkl of its data."""

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from formats.foreign_model import ForeignModel, check_tokenizer
from formats.huggingface_config import Fields, make_config
from formats.weight_names import GPT2, NameTable, check_weights, import_weights
from tokenization.base import Tokenizer
from tokenization.load import load_from_folder, load_tokenizer
from utils.archive import read_archive
from utils.errors import UserError
from utils.printable import one_line

MAX_PICKLE_BYTES = 1 << 24  # GPT-2 XL with optimizer states has 0.5 MB
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NORM = r"transformer\.(h\.\d+\.)?ln_\w+\.weight"
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
GPT2_VOCAB_SIZES = (50257, 50304)  # the tokens of GPT-2, and padded to a multiple of 64
NAMES = NameTable(tuple(layer._replace(transposed=False) for layer in GPT2.layers), GPT2.buffers)


def is_nanogpt(path: Path) -> bool:
    """Return whether there is a file that torch.save wrote, with the key `model_args`."""
    if not path.is_file():  # reading from a pipe may never end
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(pickled) as file:
                return b"model_args" in file.read(MAX_PICKLE_BYTES)
    except Exception:  # zipfile raises many exception types for invalid files
        return False


def open_nanogpt(path: Path, tanh: bool = False) -> ForeignModel:
    """Open the model in a checkpoint file. Raises UserError.

    `tanh` selects the tanh approximation of GELU, which nanoGPT used before June 2023; the file does not record it.
    """
    checkpoint = read_archive(path, mmap=True)  # two thirds of it are optimizer states
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    weights, arguments, settings = (checkpoint.get(key) for key in ("model", "model_args", "config"))
    if not isinstance(weights, dict) or not isinstance(arguments, dict):
        raise UserError(f"{path} is not a checkpoint of nanoGPT, with the dictionaries model and model_args: use one")
    if "dim" in arguments:
        raise UserError(f"{path} is a training checkpoint of llama2.c: use the model.bin beside it")
    fields = Fields(f"{path}, model_args", arguments)
    bias = fields.get("bias", bool, True)
    tensors = CheckpointTensors(path, weights, bias)
    config = make_config(fields.path, {
        "n_embd": fields.size("n_embd"),
        "block_size": fields.size("block_size"),
        "n_blocks": fields.size("n_layer"),
        "num_heads": fields.size("n_head"),
        "vocab_size": fields.size("vocab_size"),
        "dropout": fields.get("dropout", float, 0.0),
        "feed_forward": "gelu" if tanh else "gelu_exact",
        "bias": bias,
        "tied": HEAD not in tensors.shapes,
    })
    check_weights(NAMES, config, tensors.shapes, path)
    if not config.tied:  # the file has a head, but it may be a copy of the embedding
        config = replace(config, tied=torch.equal(tensors.read(HEAD), tensors.read(EMBEDDING)))
    tokenizer = find_tokenizer(path, settings, config.vocab_size)
    check_tokenizer(tokenizer, config, path)
    return ForeignModel("GPT2", config, tokenizer, import_weights(NAMES, config, tensors.read, path))


class CheckpointTensors:
    """The tensors of the model in a checkpoint file; `shapes` maps their names to their shapes.

    They are mapped into memory, and count as used from when they are read until the file is closed, so it is opened
    again after each eighth of the model. Without `bias`, the file has no biases of LayerNorm, which are zeros here.
    Raises UserError.
    """

    def __init__(self, path: Path, tensors: dict[str, Tensor], bias: bool):
        self.path, self.tensors = path, drop_prefix(tensors)
        for name, tensor in self.tensors.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in DTYPES or not tensor.is_contiguous():
                raise UserError(f"{path}: {one_line(str(name), 200)} is not a weight of nanoGPT: use another "
                                "checkpoint")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        self.bytes_read, self.limit = 0, sum(tensor.nbytes for tensor in self.tensors.values()) / 8
        norms = [] if bias else [name for name in self.tensors if re.fullmatch(NORM, name)]
        for norm in norms:
            name = norm.removesuffix("weight") + "bias"
            if name in self.tensors:
                raise UserError(f"{path} has an unexpected weight {name}: by its model_args there are no biases")
            self.shapes[name] = self.shapes[norm]

    def read(self, name: str) -> Tensor:
        if name not in self.tensors:
            return torch.zeros(self.shapes[name])
        if self.bytes_read > self.limit:
            checkpoint = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
            self.tensors, self.bytes_read = drop_prefix(checkpoint["model"]), 0
        self.bytes_read += self.tensors[name].nbytes
        return self.tensors[name].detach()


def drop_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return {name: tensor} without the prefix that torch.compile puts before the names."""
    return {str(name).removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}


def find_tokenizer(path: Path, settings: object, vocab_size: int) -> Tokenizer:
    """Return the tokenizer beside a checkpoint, else in the data folder that its settings name, else GPT-2's.

    Raises UserError.
    """
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    dataset = dataset if isinstance(dataset, str) and re.fullmatch(r"\w[\w.-]*", dataset) else "NAME"
    for folder in (path.parent, path.absolute().parent.parent / "data" / dataset):
        tokenizer = load_from_folder(folder)
        if tokenizer:
            return tokenizer
    if vocab_size in GPT2_VOCAB_SIZES:
        return load_tokenizer("gpt2")
    raise UserError(f"{path} has {vocab_size:,} tokens, and there is no meta.pkl that lists them: copy "
                    f"data/{dataset}/meta.pkl of nanoGPT to {path.parent}")
