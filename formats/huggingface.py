"""Reading a Hugging Face folder: config.json, weights in safetensors, and the files of a tokenizer."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from formats.foreign_model import ForeignModel, check_exists, check_tokenizer
from formats.huggingface_config import Fields, read_config
from formats.weight_names import GPT2, LLAMA, PERSIMMON, NameTable, check_weights, import_weights
from models.config import ReplyConfig
from tokenization.base import Tokenizer
from tokenization.chat_template import config_token, read_chat_template
from tokenization.load import load_tokenizer
from utils.errors import UserError
from utils.files import read_if_there, read_json_object
from utils.printable import one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD = "lm_head.weight"
TABLES = {"GPT2": GPT2, "Llama": LLAMA, "BardGPT": PERSIMMON, "TransformerModel": GPT2}  # by our model class
DTYPES = ("F32", "F16", "BF16")
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "repetition_penalty")


def open_huggingface(folder: str | Path) -> ForeignModel:
    """Open the model in a folder; only the headers of its weights are read now. Raises UserError."""
    folder = Path(folder)
    model_class, config = read_config(folder)
    table = TABLES[model_class]
    tensors = FolderTensors(folder, table.buffers)
    table = match_prefix(table, tensors.shapes)
    shapes = dict(tensors.shapes)
    has_tied_head = config.tied and HEAD in shapes
    if has_tied_head:
        del shapes[HEAD]
    check_weights(table, config, shapes, folder)
    if has_tied_head:
        check_tied_head(tensors, table, folder)
    check_tokenizer_config(folder)
    tokenizer = load_tokenizer(folder.absolute())  # absolute, as `gpt2` alone would be a name
    check_tokenizer(tokenizer, config, folder)
    weights = import_weights(table, config, tensors.read, folder)
    return ForeignModel(model_class, config, tokenizer, weights, read_chat_template(folder),
                        read_stop_tokens(folder, tokenizer), read_sampling(folder))


def match_prefix(table: NameTable, names: Iterable[str]) -> NameTable:
    """Return the table for the names in a file: those of OpenAI's GPT-2 on the hub lack the prefix `transformer.`."""
    prefix = "transformer."
    if any(name.startswith(prefix) for name in names):
        return table
    layers = [layer._replace(theirs=layer.theirs.removeprefix(prefix)) for layer in table.layers]
    return table._replace(layers=tuple(layers))


def check_tied_head(tensors: "FolderTensors", table: NameTable, folder: Path) -> None:
    """Raise UserError unless the head of a tied model, if a file has it, is the token embedding."""
    embedding = next(layer.theirs for layer in table.layers if layer.ours == ("token_embedding",))
    name = f"{embedding}.weight"
    if not torch.equal(tensors.read(HEAD), tensors.read(name)):
        raise UserError(f"{folder} has tie_word_embeddings, but {HEAD} differs from {name}: correct its config.json")


# ---- Weights ---------------------------------------------------------------------------------------------------------


class FolderTensors:
    """The tensors of a folder, in model.safetensors or in the shards of the index.

    `shapes` maps their names to their shapes. Names that match `buffers`, a regular expression, are ignored. Raises
    UserError for files that are missing or damaged.
    """

    def __init__(self, folder: Path, buffers: str):
        self.files, self.shapes = {}, {}  # by the name of a tensor
        index = read_index(folder)
        for file in [folder / WEIGHTS] if index is None else sorted(set(index.values())):
            for name, shape in read_header(file, buffers).items():
                if index is None or index.get(name) == file:
                    self.files[name], self.shapes[name] = file, shape
        for name in index or ():
            if name not in self.files and not re.fullmatch(buffers, name):
                raise UserError(f"{index[name]} is missing the weight {one_line(name, 200)}: download it again")

    def read(self, name: str) -> Tensor:
        """Return a tensor. Its file is opened each time, as the memory of its tensors counts until it is closed."""
        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)


def read_index(folder: Path) -> dict[str, Path] | None:
    """Return {name of a tensor: path of its shard}, or None for a model in one file. Raises UserError."""
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


def read_header(path: Path, buffers: str) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the tensors in a .safetensors file whose names do not match the expression `buffers`.

    Raises UserError if the file is missing or damaged, or a tensor has another dtype than DTYPES.
    """
    check_exists(path)
    shapes = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dictionary
                if re.fullmatch(buffers, name):  # before transformers 4.29, also in uint8 or bool
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


def check_tokenizer_config(folder: Path) -> None:
    """Raise UserError if tokenizer_config.json changes the tokenizer that vocab.json and merges.txt describe."""
    path = folder / "tokenizer_config.json"
    config = read_if_there(path)
    for name in ("add_prefix_space", "add_bos_token"):
        if config.get(name) and not (folder / "tokenizer.json").is_file():
            raise UserError(f"{path} has {name}, but there is no tokenizer.json: save the tokenizer with "
                            "save_pretrained of transformers")


def read_stop_tokens(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of the tokens that end the output: eos_token and eos_token_id, except unknown tokens.

    Chat models may have their end marker in only one of them: eos_token is in tokenizer_config.json, eos_token_id, one
    or a list, in generation_config.json or else config.json. Raises UserError.
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


def read_sampling(folder: Path) -> dict[str, Any]:
    """Return the fields of ReplyConfig in generation_config.json. Raises UserError."""
    path = folder / "generation_config.json"
    recorded = read_if_there(path)
    sampling = {name: recorded[name] for name in SAMPLING_FIELDS if recorded.get(name) is not None}
    if sampling.get("top_k") == 0:  # off in transformers
        del sampling["top_k"]
    if recorded.get("do_sample") is False:
        sampling["temperature"] = 0
    try:
        ReplyConfig(**sampling)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return sampling
