"""Folders of Hugging Face models: config.json, weights in safetensors, and the files of a tokenizer."""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from data.chat_template import config_token, read_chat_template
from data.tokenizer import load_tokenizer
from formats.foreign_model import Foreign, check_tokenizer
from formats.huggingface_config import Fields, read_config
from formats.weight_names import GPT2, LLAMA, PERSIMMON, check_weights, to_ours
from models.config import ReplyConfig
from utils.errors import UserError
from utils.files import read_if_there, read_json_object
from utils.printable import one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
TABLES = {"GPT2": GPT2, "Llama": LLAMA, "BardGPT": PERSIMMON, "TransformerModel": GPT2}
DTYPES = ("F32", "F16", "BF16")
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")


def open_huggingface(folder):
    """The model in a folder as `Foreign`. Only the headers of its weights are read, until they are asked for. Raises
    UserError."""
    folder = Path(folder)
    model_class, config = read_config(folder)
    table = TABLES[model_class]
    tensors = Tensors(folder, table.buffers)
    table = without_prefix(table, tensors.shapes)
    shapes = dict(tensors.shapes)
    stored_head = config.tied and shapes.pop(HEAD, None) is not None
    check_weights(table, config, shapes, folder)
    if stored_head:
        check_tied_head(tensors, table, folder)
    check_tokenizer_config(folder)
    tokenizer = load_tokenizer(folder.absolute())  # `gpt2` alone is a name there
    check_tokenizer(tokenizer, config, folder)
    weights = to_ours(table, config, tensors.read, folder)
    return Foreign(model_class, config, tokenizer, weights, read_chat_template(folder),
                   read_stop_tokens(folder, tokenizer), read_sampling(folder))


def without_prefix(table, names):
    """The table of a GPT-2 whose names in a file lack `transformer.`, as in the files of OpenAI's models."""
    prefix = "transformer."
    if any(name.startswith(prefix) for name in names):
        return table
    layers = [layer._replace(theirs=layer.theirs.removeprefix(prefix)) for layer in table.layers]
    return table._replace(layers=tuple(layers))


def check_tied_head(tensors, table, folder):
    """Raise UserError if a tied head is in the file, too, and is not the token embedding."""
    embedding = next(layer.theirs for layer in table.layers if layer.ours == ("token_embedding",))
    name = f"{embedding}.weight"
    if not torch.equal(tensors.read(HEAD), tensors.read(name)):
        raise UserError(f"{folder} has tie_word_embeddings, but {HEAD} differs from {name}: correct its config.json")


# ---- Weights ---------------------------------------------------------------------------------------------------------


class Tensors:
    """The weights in model.safetensors, or in the shards of the index, of a folder."""

    def __init__(self, folder, buffers):
        """Read the headers. Tensors with a name that matches `buffers`, a regular expression, are ignored. Raises
        UserError for files that are missing or damaged."""
        self.files, self.shapes = {}, {}  # by the name of a tensor
        index = read_index(folder)
        for file in [folder / WEIGHTS] if index is None else sorted(set(index.values())):
            for name, shape in read_header(file, buffers).items():
                if index is None or index.get(name) == file:
                    self.files[name], self.shapes[name] = file, shape
        for name in index or ():
            if name not in self.files and not re.fullmatch(buffers, name):
                raise UserError(f"{index[name]} is missing the weight {one_line(name, 200)}: download it again")

    def read(self, name):
        """The tensor of a name. Its file is opened anew, as its memory counts until the file is closed."""
        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)


def read_index(folder):
    """The path of the shard of every tensor by name, None for a model in one file. Raises UserError."""
    path = folder / INDEX
    if not path.exists():
        if (folder / WEIGHTS).exists():
            return None
        others = [file.name for pattern in ("*.bin", "*.pt", "*.h5", "*.msgpack") for file in folder.glob(pattern)]
        found = f" {others[0]} is not read, as such files can contain code:" if others else ""
        raise UserError(f"{folder} has no {WEIGHTS}:{found} save the model with save_pretrained of transformers")
    names = Fields(path, read_json_object(path)).get("weight_map", dict, {})
    shards = {}
    for name, shard in names.items():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]{,199}", shard, re.ASCII):
            raise UserError(f"{path} names the file {one_line(str(shard), 80)}, which is not a name in its folder: "
                            "download the model again")
        shards[name] = folder / shard
    return shards


def read_header(path, buffers):
    """The shape of every tensor in a .safetensors file by name, except for `buffers`, as in Tensors. Raises UserError
    unless all can be read."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: download it, too")
    shapes = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                if re.fullmatch(buffers, name):  # of any dtype: uint8 or bool in files of transformers before 4.29
                    continue
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in DTYPES:
                    raise UserError(f"{path}: {one_line(name, 200)} has the dtype {tensor.get_dtype()}, not "
                                    f"{', '.join(DTYPES)}: use another version of the model")
                shapes[name] = tuple(tensor.get_shape())
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or incomplete ({one_line(str(error), 200)}): download it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): give a readable model") from None
    return shapes


# ---- Other files -----------------------------------------------------------------------------------------------------


def check_tokenizer_config(folder):
    """Raise UserError if the tokenizer_config.json changes what vocab.json and merges.txt alone describe."""
    path = folder / "tokenizer_config.json"
    config = read_if_there(path)
    for name in ("add_prefix_space", "add_bos_token"):
        if config.get(name) and not (folder / "tokenizer.json").is_file():
            raise UserError(f"{path} has {name}, but there is no tokenizer.json: save the tokenizer with "
                            "save_pretrained of transformers")


def read_stop_tokens(folder, tokenizer):
    """The ids of the tokens that end what the model generates, a frozenset: eos_token of tokenizer_config.json, and
    eos_token_id, one or a list, of generation_config.json or else of config.json. Raises UserError.

    Chat models may give their end marker in only one of them. A token that the tokenizer lacks is left out.
    """
    path = folder / "generation_config.json"
    ids = read_if_there(path).get("eos_token_id")
    if ids is None:
        path = folder / "config.json"
        ids = read_if_there(path).get("eos_token_id")
    if ids is None:
        ids = []
    elif not isinstance(ids, list):
        ids = [ids]
    for i in ids:
        if type(i) is not int:
            raise UserError(f"{path} has the eos_token_id {one_line(repr(i), 80)}, which is not a token id: download "
                            "it again")
    path = folder / "tokenizer_config.json"
    config = read_if_there(path)
    if config.get("eos_token") is not None:
        i = tokenizer.library.token_to_id(config_token(config, "eos_token", path))
        ids = ids if i is None else [*ids, i]
    return frozenset(i for i in ids if 0 <= i < tokenizer.vocab_size)


def read_sampling(folder):
    """The fields of ReplyConfig in generation_config.json. Raises UserError."""
    path = folder / "generation_config.json"
    recorded = read_if_there(path)
    sampling = {name: recorded[name] for name in SAMPLING if recorded.get(name) is not None}
    if sampling.get("top_k") == 0:  # in transformers, off
        del sampling["top_k"]
    if recorded.get("do_sample") is False:
        sampling["temperature"] = 0
    try:
        ReplyConfig(**sampling)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return sampling
