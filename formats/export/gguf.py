"""Export of a model as a GGUF file, for llama.cpp."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from formats.export.architectures import LLAMA_CPP, Checkpoint, ExportedModel, prepare_export
from formats.export.tokenizer import CHAT_TASKS, CHAT_TEMPLATE, end_marker
from formats.export.verification import verification_error
from formats.weight_names import GPT2, LLAMA, export_weights
from models.config import ModelConfig
from tokenization.base import Tokenizer
from tokenization.characters import CharTokenizer
from utils.errors import UserError
from utils.files import replacing
from utils.printable import one_line

if TYPE_CHECKING:  # gguf is not required
    from gguf import GGUFValue, GGUFWriter

NamedArray = tuple[str, np.ndarray]  # a tensor of a GGUF file, with its name there

LINEAR = tuple(layer._replace(transposed=False) for layer in GPT2.layers)  # in a GGUF, weights are (outputs, inputs)
TABLES = {"gpt2": GPT2._replace(layers=LINEAR), "llama": LLAMA}
MAGIC, MARK = b"GGUF", "exported_by"  # the mark is a field of the files that another export may replace
# {steps in which a tokenizer.json splits text into words, each with its option: llama.cpp's name for them}
PRE_TOKENIZERS = {(("ByteLevel", True),): "gpt-2", (("Digits", True), ("ByteLevel", True)): "smollm"}


def export_gguf(path: Path, loaded: Checkpoint) -> str:
    """Write a model to a GGUF file in float32; return the name of its architecture in llama.cpp.

    The file is verified, and then replaces an earlier export. Raises UserError if llama.cpp does not compute the model
    or does not know its tokenizer, if the file is not an earlier export, or if the verification fails.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is not installed: pip install gguf") from None
    if path.suffix != ".gguf":
        raise UserError(f"{path} is not the name of a GGUF file: give one that ends with .gguf")
    if path.exists() and not is_export(path):
        raise UserError(f"{path} is not an earlier export, and is not replaced: choose another name")
    exported = prepare_export(loaded.model, loaded.tokenizer, LLAMA_CPP, "llama.cpp")
    with replacing(path) as file:
        writer = gguf.GGUFWriter(file.name, exported.class_name)
        writer.add_string(MARK, "YourGPT")  # near the start of the file
        writer.add_name(path.stem)
        add_config(writer, exported.class_name, exported.config)
        add_tokenizer(writer, loaded.tokenizer, loaded.task["kind"])
        arrays = partial(export_arrays, exported)
        write_file(writer, arrays)
        verify_file(file.name, writer.kv_data[0], arrays())
    return exported.class_name


def is_export(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(200)
    return start.startswith(MAGIC) and MARK.encode() in start


def add_config(writer: "GGUFWriter", architecture: str, config: ModelConfig) -> None:
    """Add the configuration of a model to the metadata."""
    writer.add_file_type(0)  # float32
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.hidden_size)
    writer.add_block_count(config.n_blocks)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.kv_heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_rope_dimension_count(config.head_size)
        writer.add_key_length(config.head_size)
        writer.add_value_length(config.head_size)
        writer.add_vocab_size(config.vocab_size)


def export_arrays(exported: ExportedModel) -> Iterator[NamedArray]:
    """Yield (name in a GGUF file, array) of all weights."""
    import gguf

    architectures = {"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA}
    names = gguf.get_tensor_name_map(architectures[exported.class_name], exported.config.n_blocks)
    for name, tensor in export_weights(TABLES[exported.class_name], exported.config, exported.weights):
        if "q_proj" in name or "k_proj" in name:
            tensor = halves_to_pairs(tensor, exported.config.head_size)
        yield names.get_name(name, (".weight", ".bias")), tensor.numpy()


def halves_to_pairs(tensor: Tensor, head_size: int) -> Tensor:
    """Reorder the rows of queries or keys (nh hs, ...) for llama.cpp.

    Our Rotary rotates channels i and i + hs / 2 of a head together; llama.cpp, channels 2i and 2i + 1.
    """
    halves = tensor.unflatten(0, (-1, 2, head_size // 2))  # (nh hs, ...) -> (nh, 2, hs / 2, ...)
    return halves.transpose(1, 2).flatten(0, 2).contiguous()  # (nh, hs / 2, 2, ...) -> (nh hs, ...)


def write_file(writer: "GGUFWriter", arrays: Callable[[], Iterator[NamedArray]]) -> None:
    """Write the metadata of the writer, and the arrays that `arrays` yields.

    It is called twice, for their shapes and for their values, so that they are not all in memory at once.
    """
    for name, array in arrays():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, array in arrays():
        writer.write_tensor_data(array)
    writer.close()


# ---- Tokenizer -------------------------------------------------------------------------------------------------------


def add_tokenizer(writer: "GGUFWriter", tokenizer: Tokenizer, task: str) -> None:
    """Add a tokenizer to the metadata. Raises UserError if llama.cpp would split a text into other tokens."""
    import gguf

    if isinstance(tokenizer, CharTokenizer):
        writer.add_tokenizer_model("rwkv")  # always takes the longest token that the text starts with
        tokens = [escape_rwkv(token.decode()) for token in tokenizer.tokens]
    else:
        description = json.loads(tokenizer.library.to_str())
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(description, tokenizer))
        merges = description["model"]["merges"]
        if not merges:
            raise UserError("the tokenizer has no merges, and llama.cpp opens no such file: use a tokenizer that was "
                            "trained on a longer text")
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
        tokens = [tokenizer.library.id_to_token(i) for i in range(tokenizer.vocab_size)]
    types = dict.fromkeys(range(len(tokens)), gguf.TokenType.NORMAL)
    types |= dict.fromkeys(added_words(tokenizer), gguf.TokenType.USER_DEFINED)
    types |= dict.fromkeys(tokenizer.special_ids, gguf.TokenType.CONTROL)
    writer.add_token_list(tokens)
    writer.add_token_types([*types.values()])
    writer.add_add_bos_token(False)
    end = end_marker(tokenizer, task)
    if end is not None:
        writer.add_eos_token_id(getattr(tokenizer, end))
        writer.add_bos_token_id(getattr(tokenizer, end))
    if tokenizer.padding is not None:
        writer.add_pad_token_id(tokenizer.padding)
    if task in CHAT_TASKS:
        writer.add_chat_template(CHAT_TEMPLATE)


def escape_rwkv(token: str) -> str:
    r"""Escape a token as in RWKV's vocabulary.

    >>> escape_rwkv("\\")
    '\\\\'
    """
    return token.replace("\\", "\\\\").replace("\0", "\\x00")


def pre_tokenizer_name(description: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Return llama.cpp's name for how a tokenizer splits text into words. Raises UserError if it has none."""
    if tokenizer.end_of_text is None:
        raise UserError("the tokenizer has no end-of-text token, and llama.cpp would end a text at the token 11: use a "
                        "tokenizer with <|endoftext|>")
    found = description["pre_tokenizer"] or {"type": "Sequence", "pretokenizers": []}
    parts = found["pretokenizers"] if found["type"] == "Sequence" else [found]
    steps = tuple((part["type"], part.get("individual_digits", part.get("use_regex", True))) for part in parts)
    if steps not in PRE_TOKENIZERS:
        raise UserError("the tokenizer splits text into words in a way that is not known to be one of llama.cpp's: use "
                        "a model with the tokenizer of GPT-2 or SmolLM, or one that was trained here")
    return PRE_TOKENIZERS[steps]


def added_words(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the words that a tokenizer finds in a text before it splits the rest.

    Raises UserError if llama.cpp would find them elsewhere: it knows none of their options, and takes the longest word
    first, not the leftmost.
    """
    words = {i: token for i, token in tokenizer.added.items() if i not in tokenizer.special_ids}
    for token in words.values():
        if token.single_word or token.lstrip or token.rstrip:
            raise UserError(f"the tokenizer restricts where it finds {quote(token.content)} (single_word, lstrip or "
                            "rstrip), and llama.cpp does not: remove that word from its added tokens")
    overlap = find_overlap([token.content for token in words.values()])
    if overlap:
        first, second = map(quote, overlap)
        raise UserError(f"where {first} and {second} overlap in a text, llama.cpp does not find the same word as the "
                        "tokenizer: remove one of them from its added tokens")
    return [*words]


def find_overlap(words: list[str]) -> tuple[str, str] | None:
    """Return two words that can overlap in a text, the second starting with the end of the first, or None.

    Runs of the same character do not count, as the longest word is also the leftmost.

    >>> find_overlap(["cat", "attic", "  ", "   "])
    ('cat', 'attic')
    """
    by_start = defaultdict(list)
    for word in words:
        by_start[word[0]].append(word)
    for word in words:
        for n in range(1, len(word)):
            for other in by_start.get(word[n], ()):
                end = word[n:]
                if other not in (word, end) and other.startswith(end) and len({*word, *other}) > 1:
                    return word, other
    return None


def quote(word: str) -> str:
    return one_line(repr(word), 80)


# ---- Verification ----------------------------------------------------------------------------------------------------


def verify_file(path: str, metadata: "dict[str, GGUFValue]", arrays: Iterable[NamedArray]) -> None:
    """Read a GGUF file, and print what was compared.

    Raises UserError unless it has this metadata, these arrays with the same bits, and one embedding per token.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    for name, expected in metadata.items():
        field = reader.get_field(name)
        if field is None or field.contents() != round_floats(expected.value):
            raise verification_error(f"the GGUF file has a different {name}")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    n_tensors, n_rows = len(tensors), len(tensors["token_embd.weight"])
    for name, array in arrays:
        found = tensors.pop(name, None)
        if found is None or not np.array_equal(found.view(np.int32), array.view(np.int32)):  # bits, for NaN
            raise verification_error(f"the GGUF file has a different tensor {name}")
    n_tokens = len(metadata["tokenizer.ggml.tokens"].value)
    if tensors or n_rows != n_tokens:
        raise verification_error(f"the GGUF file has {n_tokens} tokens, {n_rows} embeddings, and surplus tensors "
                                 f"{[*tensors]}")
    print(f"gguf: {n_tensors} tensors, {n_tokens:,} tokens and {len(metadata)} fields were read again and are equal; "
          "llama.cpp was not run")


def round_floats(value: Any) -> Any:
    """Round a float to float32, as a GGUF file stores it; return any other value of the metadata unchanged."""
    return float(np.float32(value)) if isinstance(value, float) else value
