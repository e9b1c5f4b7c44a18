"""Which format a model has."""

import os
from pathlib import Path

from formats.hub import download_model, hub_name
from formats.huggingface import INDEX, WEIGHTS, open_huggingface
from formats.llama2c import open_llama2c
from formats.nanogpt import is_nanogpt, open_nanogpt
from formats.tensorflow import open_tensorflow
from utils.errors import UserError

TANH = ":tanh"  # behind the path of a checkpoint of nanoGPT
HUGGING_FACE = ("config.json", WEIGHTS, INDEX, "pytorch_model.bin")  # files, by one of which a folder is recognized


def open_foreign(path):
    """The model of another project at `path`, or of this name on the Hugging Face hub, as `Foreign`; None if there is
    none, but maybe a checkpoint of this project. A local path wins over a name. Raises UserError.

    PATH:tanh is a checkpoint of nanoGPT with the tanh approximation of GELU.
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
    if path.suffix == ".safetensors" or path.name in HUGGING_FACE:
        raise UserError(f"{path} is one file of a Hugging Face model: give the folder with all of its files")
    if any((path / name).is_file() for name in HUGGING_FACE):
        return open_huggingface(path)
    if (path / "hparams.json").is_file():
        return open_tensorflow(path)
    if path.suffix == ".bin" and path.is_file():
        return open_llama2c(path)
    return None
