"""nanoGPT's ckpt.pt (https://github.com/karpathy/nanoGPT), with the meta.pkl of its data."""

import re
import zipfile
from dataclasses import replace

import torch

from data.tokenizer import load_from_folder, load_tokenizer
from formats.foreign_model import Foreign, check_tokenizer
from formats.huggingface_config import Fields, make_config
from formats.weight_names import GPT2, Table, check_weights, to_ours
from utils.archive import read_archive
from utils.errors import UserError
from utils.printable import one_line

LARGEST_PICKLE = 1 << 24  # bytes; that of GPT-2 XL with optimizer states has 0.5 MB
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NORM = r"transformer\.(h\.\d+\.)?ln_\w+\.weight"
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
GPT2_SIZES = (50257, 50304)  # of GPT-2's vocabulary: its tokens, and padded to a multiple of 64
NAMES = Table(tuple(layer._replace(transposed=False) for layer in GPT2.layers), GPT2.buffers)


def is_nanogpt(path):
    """Whether a path is that of a file that torch.save wrote, with the key `model_args`."""
    if not path.is_file():  # reading from a pipe may never end
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            [pickled] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(pickled) as file:
                return b"model_args" in file.read(LARGEST_PICKLE)
    except Exception:  # zipfile raises many exception types for invalid files
        return False


def open_nanogpt(path, tanh=False):
    """The model in a file as `Foreign`. Raises UserError.

    `tanh`: with the tanh approximation of GELU, which nanoGPT had before June 2023. The file does not record it.
    """
    checkpoint = read_archive(path, mmap=True)  # with the states of the optimizer it is three times as large
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    weights, arguments, settings = (checkpoint.get(key) for key in ("model", "model_args", "config"))
    if not isinstance(weights, dict) or not isinstance(arguments, dict):
        raise UserError(f"{path} is not a checkpoint of nanoGPT, with the dictionaries model and model_args: use one")
    if "dim" in arguments:
        raise UserError(f"{path} is what llama2.c resumes its training from: use the model.bin beside it")
    fields = Fields(f"{path}, model_args", arguments)
    bias = fields.get("bias", bool, True)
    tensors = Tensors(path, weights, bias)
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
    if not config.tied:  # by the names in the file; a copy of the embedding is no head of its own
        config = replace(config, tied=torch.equal(tensors.read(HEAD), tensors.read(EMBEDDING)))
    tokenizer = find_tokenizer(path, settings, config.vocab_size)
    check_tokenizer(tokenizer, config, path)
    return Foreign("GPT2", config, tokenizer, to_ours(NAMES, config, tensors.read, path))


def find_tokenizer(path, settings, vocab_size):
    """The tokenizer beside a checkpoint, or in nanoGPT's folder of the data that its settings name, else GPT-2's.
    Raises UserError."""
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    dataset = dataset if isinstance(dataset, str) and re.fullmatch(r"\w[\w.-]*", dataset) else "NAME"
    for folder in (path.parent, path.absolute().parent.parent / "data" / dataset):
        tokenizer = load_from_folder(folder)
        if tokenizer:
            return tokenizer
    if vocab_size in GPT2_SIZES:
        return load_tokenizer("gpt2")
    raise UserError(f"{path} has {vocab_size:,} tokens, and there is no meta.pkl that says which: copy "
                    f"data/{dataset}/meta.pkl of nanoGPT to {path.parent}")


class Tensors:
    """The tensors of the model in a checkpoint file.

    They are mapped into memory, where they count from when they are read until the file is closed: it is opened again
    after each eighth of the model.
    """

    def __init__(self, path, tensors, bias):
        """`tensors` are those of the state_dict, mapped. Without `bias`, LayerNorm has none in the file, and zeros
        here. Raises UserError."""
        self.path, self.tensors = path, without_prefix(tensors)
        for name, tensor in self.tensors.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype not in DTYPES or not tensor.is_contiguous():
                raise UserError(f"{path}: {one_line(str(name), 200)} is not a weight as nanoGPT saves it: use another "
                                "checkpoint")
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        self.n_read, self.limit = 0, sum(tensor.nbytes for tensor in self.tensors.values()) / 8  # bytes
        norms = [] if bias else [name for name in self.tensors if re.fullmatch(NORM, name)]
        for norm in norms:
            name = norm.removesuffix("weight") + "bias"
            if name in self.tensors:
                raise UserError(f"{path} has an unexpected weight {name}: by its model_args there are no biases")
            self.shapes[name] = self.shapes[norm]

    def read(self, name):
        """The tensor of a name."""
        if name not in self.tensors:
            return torch.zeros(self.shapes[name])
        if self.n_read > self.limit:
            checkpoint = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
            self.tensors, self.n_read = without_prefix(checkpoint["model"]), 0
        self.n_read += self.tensors[name].nbytes
        return self.tensors[name].detach()


def without_prefix(tensors):
    """Tensors by name, without the prefix of the names in a model that torch.compile has wrapped."""
    return {str(name).removeprefix("_orig_mod."): tensor for name, tensor in tensors.items()}
