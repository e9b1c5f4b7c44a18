"""Checkpoints: the only code that saves and loads models."""

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
    """Save a model and its tokenizer to one file, atomically; `half` converts the weights to float16.

    `more` is saved unchanged, such as the optimizer states. Raises UserError if the file cannot be written.
    """
    weights = model.state_dict()
    if half:  # tied weights are one tensor under two names: convert it once
        halves = {weight.data_ptr(): weight.half() for weight in weights.values()}
        weights = {name: halves[weight.data_ptr()] for name, weight in weights.items()}
    with replacing(Path(path)) as file:
        torch.save({"format_version": FORMAT_VERSION, "model_class": type(model).__name__, "config": vars(model.config),
                    "tokenizer": tokenizer.to_dict(), "weights": weights, **more}, file)


def read_checkpoint(path, device="cpu"):
    """Return the dictionary in a checkpoint file, running no code from it. Raises UserError if that fails."""
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:  # a member with a wrong CRC-32, which torch.load does not check
                raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: give the path of a checkpoint, or train a model first with "
                        "python train.py config/bard_gpt.yaml or python transformer_4d.py") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give the path of a readable checkpoint") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} could run code if loaded: use a file from train.py or transformer_4d.py") from None
    except Exception:  # zipfile and torch.load raise many exception types for invalid files
        raise UserError(f"{path} is damaged or not a checkpoint: download it again, or train again") from None
    types = {"format_version": int, "model_class": str, "config": dict, "tokenizer": dict, "weights": dict}
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), types[key]) for key in types):
        raise UserError(f"{path} is not a checkpoint of this project: use one from train.py or transformer_4d.py")
    if checkpoint["format_version"] != FORMAT_VERSION:
        raise UserError(f"{path} has checkpoint format {checkpoint['format_version']}, but this version of the project "
                        f"reads format {FORMAT_VERSION}: update the project")
    return checkpoint


def read_run(path):
    """Return the dictionary in the last.pt of a run. Raises UserError if training cannot resume from it."""
    if not Path(path).exists():
        raise UserError(f"there is no {path} to resume from: leave out --resume to start a new run")
    checkpoint = read_checkpoint(path)
    if not {"progress", "optimizer_states", "scaler", "metrics", "settled"} <= checkpoint.keys():
        raise UserError(f"{path} does not contain the full training state that --resume needs: use a last.pt from this "
                        "version of train.py, or start a new run with --run NAME")
    return checkpoint


def load_model(path, device="cpu"):
    """Return the model (float32, in evaluation mode) and the tokenizer of a checkpoint. Raises UserError."""
    checkpoint = read_checkpoint(path, device)
    name = checkpoint["model_class"]
    if name not in ZOO:
        raise UserError(f"{path} has model class {name}, which models/zoo.py does not define: update the project")
    try:
        # Older checkpoints of transformer_4d.py lack this key: they were trained without QK norm.
        model = ZOO[name](**{"qk_norm": False} | checkpoint["config"]).to(device)
    except TypeError as error:
        raise UserError(f"{path} has a configuration that {name} rejects ({error}): update the project") from None
    load_weights(model, checkpoint["weights"], path)
    tokenizer = tokenizer_from_dict(checkpoint["tokenizer"])
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"{path} has a tokenizer of {tokenizer.vocab_size} tokens, but a model with vocab_size "
                        f"{model.config.vocab_size}: save the model with the tokenizer it was trained with")
    return model.eval(), tokenizer


def load_weights(model, weights, path):
    """Load weights, read from `path`, into a model. A missing, unexpected or misshapen one is named in a UserError."""
    expected, kind = model.state_dict(), type(model).__name__
    for name in [*expected, *weights]:
        if name not in weights:
            raise UserError(f"{path} is missing the weight {name} of {kind}: use another checkpoint, or train again")
        if name not in expected:
            raise UserError(f"{path} has a weight {name} unexpected in {kind}: use another checkpoint, or train again")
        if expected[name].shape != weights[name].shape:
            raise UserError(f"{path} has {name} of shape {tuple(weights[name].shape)}, but {kind} expects "
                            f"{tuple(expected[name].shape)}: use another checkpoint, or train again")
    model.load_state_dict(weights)
