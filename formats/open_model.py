"""Opening a model of another project: which format it has, and which importer reads it."""

import os
from pathlib import Path

from formats.foreign_model import ForeignModel
from formats.hub import download_model, hub_name
from formats.huggingface import INDEX, WEIGHTS, open_huggingface
from formats.llama2c import open_llama2c
from formats.nanogpt import is_nanogpt, open_nanogpt
from formats.tensorflow import open_tensorflow
from utils.errors import UserError

TANH = ":tanh"  # suffix of the path of a nanoGPT checkpoint
HUGGING_FACE_FILES = ("config.json", WEIGHTS, INDEX, "pytorch_model.bin")  # any of them identifies a folder


def open_foreign(path: str | Path) -> ForeignModel | None:
    """Open the model of another project at `path`, or with this name on the Hugging Face hub; a local path wins.

    Return None if there is none; it may be a checkpoint of this project. PATH:tanh is a nanoGPT checkpoint with the
    tanh approximation of GELU. Raises UserError for a model that cannot be read.
    """
    name = hub_name(path)
    if name is not None:
        return open_huggingface(download_model(name))
    tanh = str(path).endswith(TANH)
    path = Path(str(path).removesuffix(TANH))
    if not os.path.exists(path) or os.path.isfile(path / "best.pt"):  # unlike Path.is_file, for any text
        return None
    file = path / "ckpt.pt" if path.is_dir() else path
    if tanh or is_nanogpt(file):
        return open_nanogpt(file, tanh)
    if path.suffix == ".safetensors" or path.name in HUGGING_FACE_FILES:
        raise UserError(f"{path} is one file of a Hugging Face model: give the folder with all of its files")
    if any((path / name).is_file() for name in HUGGING_FACE_FILES):
        return open_huggingface(path)
    if (path / "hparams.json").is_file():
        return open_tensorflow(path)
    if path.suffix == ".bin" and path.is_file():
        return open_llama2c(path)
    return None
