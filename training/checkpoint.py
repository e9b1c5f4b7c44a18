"""The only way that a model is saved and loaded."""

import pickle
import zipfile
from pathlib import Path

import torch

from data.tokenizer import tokenizer_from_dict
from models.zoo import ZOO
from utils.errors import UserError
from utils.files import replacing

FORMAT_VERSION = 1
SHIPPED = Path(__file__).parents[1] / "checkpoints" / "shakespeare" / "best.pt"


def save_checkpoint(path, model, tokenizer, half=False, **more):
    """Write a model and its tokenizer to one file, whole or not at all; `half` turns the weights into float16.

    `more` is kept as it is: the optimizers' states and the like. Raises UserError if it cannot be written.
    """
    weights = model.state_dict()
    if half:  # a tied weight is one tensor under two names, and stays one
        halves = {weight.data_ptr(): weight.half() for weight in weights.values()}
        weights = {name: halves[weight.data_ptr()] for name, weight in weights.items()}
    with replacing(Path(path)) as file:
        torch.save({"format_version": FORMAT_VERSION, "model_class": type(model).__name__, "config": vars(model.config),
                    "tokenizer": tokenizer.to_dict(), "weights": weights, **more}, file)


def read_checkpoint(path, device="cpu"):
    """The dictionary that a checkpoint file holds. Raises UserError for a file that is none; never runs code of it."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:  # the first part whose checksum is wrong; torch.load looks at none
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: python train.py config/bard_gpt.yaml or python transformer_4d.py makes a "
                        "checkpoint, say then where it is") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than numbers and text, which could run code: it was not loaded") from None
    except Exception:  # whatever zipfile and torch make of bytes that are none of theirs
        raise UserError(f"{path} is damaged, or is no checkpoint at all: train again, or fetch it again") from None
    types = {"format_version": int, "model_class": str, "config": dict, "tokenizer": dict, "weights": dict}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), types[key]) for key in types):
        raise UserError(f"{path} is not a checkpoint of this project: give one of train.py or transformer_4d.py")
    if checkpoint["format_version"] != FORMAT_VERSION:
        raise UserError(f"{path} has format {checkpoint['format_version']}, and {FORMAT_VERSION} is what is read here: "
                        "update the project")
    return checkpoint


def read_run(path):
    """The dictionary that the last.pt of a run holds. Raises UserError if the run cannot go on from it."""
    if not Path(path).exists():
        raise UserError(f"there is no {path} to go on from: leave out --resume, and the run begins")
    checkpoint = read_checkpoint(path)
    if not {"progress", "optimizer_states", "scaler", "metrics", "settled"} <= checkpoint.keys():
        raise UserError(f"{path} does not hold the state of a run: train.py goes on from a last.pt that this version "
                        "of it wrote")
    return checkpoint


def load_model(path, device="cpu"):
    """The model, in evaluation mode and float32, and the tokenizer of a checkpoint file. Raises UserError."""
    checkpoint = read_checkpoint(path, device)
    name = checkpoint["model_class"]
    if name not in ZOO:
        raise UserError(f"{path} holds a {name}, which models/zoo.py does not know")
    try:
        # Checkpoints of transformer_4d.py from before QK norm lack the key.
        model = ZOO[name](**{"qk_norm": False} | checkpoint["config"]).to(device)
    except TypeError as error:
        raise UserError(f"{path} has a configuration that {name} does not take: {error}") from None
    load_weights(model, checkpoint["weights"], path)
    tokenizer = tokenizer_from_dict(checkpoint["tokenizer"])
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"{path} has a tokenizer of {tokenizer.vocab_size} tokens for a model of "
                        f"{model.config.vocab_size}: they do not belong together")
    return model.eval(), tokenizer


def load_weights(model, weights, path):
    """Put the weights of the file `path` into a model. A missing, extra or misshapen one is a UserError naming it."""
    expected = model.state_dict()
    for name in [*expected, *weights]:
        if name not in weights:
            raise UserError(f"{path} lacks the weight {name}")
        if name not in expected:
            raise UserError(f"{path} has a weight {name}, for which {type(model).__name__} has no place")
        if expected[name].shape != weights[name].shape:
            raise UserError(f"{path} has {name} of shape {tuple(weights[name].shape)}, "
                            f"{type(model).__name__} takes {tuple(expected[name].shape)}")
    model.load_state_dict(weights)
