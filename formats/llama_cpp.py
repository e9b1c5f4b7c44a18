"""Export of a model as a GGUF file, for llama.cpp."""

import json
from collections import defaultdict
from functools import partial

import numpy as np

from data.tokenizer import CharTokenizer
from formats.export_tokenizer import DIALOGUE, END_MARKERS, end_marker
from formats.names import GPT2, LLAMA, to_theirs
from formats.targets import LLAMA_CPP, exported_model
from formats.verify import failed
from utils.errors import UserError
from utils.files import replacing
from utils.printable import one_line

LINEAR = tuple(layer._replace(transposed=False) for layer in GPT2.layers)  # in a GGUF, weights are (outputs, inputs)
TABLES = {"gpt2": GPT2._replace(layers=LINEAR), "llama": LLAMA}
MAGIC, MARK = b"GGUF", "exported_by"  # the mark is a field of the files that another export may replace
# How a tokenizer.json splits text into words, by steps with their option: those of llama.cpp that are tested here.
PRE_TOKENIZERS = {(("ByteLevel", True),): "gpt-2", (("Digits", True), ("ByteLevel", True)): "smollm"}


def export_gguf(path, loaded):
    """Write a model, as `Loaded` of training/checkpoint.py, to a GGUF file in float32, and verify it before it replaces
    an earlier one. Returns its architecture.

    Raises UserError if llama.cpp does not compute the model or does not know its tokenizer, if the file is not an
    earlier export, or if the verification fails.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("the package gguf is not installed: pip install gguf") from None
    if path.suffix != ".gguf":
        raise UserError(f"{path} is not the name of a GGUF file: give one that ends with .gguf")
    if path.exists() and not is_export(path):
        raise UserError(f"{path} is not an earlier export, and is not replaced: choose another name")
    arch, config, weights = exported_model(loaded.model, loaded.tokenizer, LLAMA_CPP, "llama.cpp")
    with replacing(path) as file:
        writer = gguf.GGUFWriter(file.name, arch)
        writer.add_string(MARK, "YourGPT")  # near the start of the file
        writer.add_name(path.stem)
        add_sizes(writer, arch, config)
        add_tokenizer(writer, loaded.tokenizer, loaded.task["kind"])
        arrays = partial(arrays_of, arch, config, weights)
        write_file(writer, arrays)
        verify_file(file.name, writer.kv_data[0], arrays())
    return arch


def is_export(path):
    with open(path, "rb") as file:
        start = file.read(200)
    return start.startswith(MAGIC) and MARK.encode() in start


def add_sizes(writer, arch, c):
    """Write the ModelConfig c."""
    writer.add_file_type(0)  # float32
    writer.add_context_length(c.block_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(c.hidden_size)
    writer.add_block_count(c.n_blocks)
    writer.add_head_count(c.num_heads)
    writer.add_head_count_kv(c.kv_heads)
    if arch == "gpt2":
        writer.add_layer_norm_eps(c.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(c.norm_eps)
        writer.add_rope_freq_base(c.rope_theta)
        writer.add_rope_dimension_count(c.head_size)
        writer.add_key_length(c.head_size)
        writer.add_value_length(c.head_size)
        writer.add_vocab_size(c.vocab_size)


def arrays_of(arch, config, weights):
    """Yield (name in a GGUF file, array) of all weights."""
    import gguf

    names = gguf.get_tensor_name_map({"gpt2": gguf.MODEL_ARCH.GPT2, "llama": gguf.MODEL_ARCH.LLAMA}[arch],
                                     config.n_blocks)
    for name, tensor in to_theirs(TABLES[arch], config, weights):
        yield names.get_name(name, (".weight", ".bias")), rotated_pairs(name, tensor, config).numpy()


def write_file(writer, arrays):
    """Write what the writer was given, and the arrays that `arrays` yields: twice, so that they are not in memory all
    at once."""
    for name, array in arrays():
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, array in arrays():
        writer.write_tensor_data(array)
    writer.close()


def rotated_pairs(name, tensor, c):
    """A weight of queries or keys with its rows in the order of llama.cpp; any other tensor unchanged.

    Here, channels i and i + hs / 2 of a head are rotated together, and there, channels 2 i and 2 i + 1.
    """
    if "q_proj" not in name and "k_proj" not in name:
        return tensor
    return tensor.unflatten(0, (-1, 2, c.head_size // 2)).transpose(1, 2).flatten(0, 2).contiguous()


# ---- Tokenizer -------------------------------------------------------------------------------------------------------


def add_tokenizer(writer, tokenizer, task):
    """Write the tokens, their types and how a text is split. Raises UserError if llama.cpp does not know that."""
    import gguf

    if isinstance(tokenizer, CharTokenizer):
        writer.add_tokenizer_model("rwkv")  # the longest token that the text starts with
        tokens = [escape(token.decode()) for token in tokenizer.tokens]
    else:
        description = json.loads(tokenizer.library.to_str())
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer(description, tokenizer))
        merges = description["model"]["merges"]
        if not merges:
            raise UserError("the tokenizer has no merges, and llama.cpp opens no such file: use a tokenizer that was "
                            "trained on a longer text")
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
        tokens = [tokenizer.library.id_to_token(i) for i in range(tokenizer.vocab_size)]
    kinds = dict.fromkeys(range(len(tokens)), gguf.TokenType.NORMAL)
    kinds |= dict.fromkeys(added_words(tokenizer), gguf.TokenType.USER_DEFINED)
    kinds |= dict.fromkeys(tokenizer.special_ids, gguf.TokenType.CONTROL)
    writer.add_token_list(tokens)
    writer.add_token_types([*kinds.values()])
    writer.add_add_bos_token(False)
    end = end_marker(tokenizer, task)
    if end is not None:
        writer.add_eos_token_id(getattr(tokenizer, end))
        writer.add_bos_token_id(getattr(tokenizer, end))
    if tokenizer.padding is not None:
        writer.add_pad_token_id(tokenizer.padding)
    if END_MARKERS.get(task) == "message_end":
        writer.add_chat_template(DIALOGUE)


def escape(token):
    r"""A token as those of RWKV are written.

    >>> escape("\\")
    '\\\\'
    """
    return token.replace("\\", "\\\\").replace("\0", "\\x00")


def pre_tokenizer(description, tokenizer):
    """The name that llama.cpp has for the way in which a tokenizer splits text into words. Raises UserError."""
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


def added_words(tokenizer):
    """The ids of the words that a tokenizer finds in a text before it splits the rest. Raises UserError if llama.cpp
    would find them elsewhere: it knows none of their options, and takes the longest word first, not the leftmost."""
    if isinstance(tokenizer, CharTokenizer):
        return []
    words = {i: token for i, token in tokenizer.added.items() if i not in tokenizer.special_ids}
    for token in words.values():
        if token.single_word or token.lstrip or token.rstrip:
            raise UserError(f"the tokenizer has a condition for where it finds {quoted(token.content)}, and llama.cpp "
                            "has none: remove that word from its added tokens")
    overlap = overlapping([token.content for token in words.values()])
    if overlap:
        first, second = map(quoted, overlap)
        raise UserError(f"where {first} and {second} overlap in a text, llama.cpp does not find the same word as the "
                        "tokenizer: remove one of them from its added tokens")
    return [*words]


def overlapping(words):
    """Two words of which one can end with the start of the other, None if there are none. Runs of the same character
    do not count: the longest is the leftmost, too.

    >>> overlapping(["cat", "attic", "  ", "   "])
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


def quoted(word):
    return one_line(repr(word), 80)


# ---- Verification ----------------------------------------------------------------------------------------------------


def verify_file(path, metadata, arrays):
    """Read a GGUF file again, and print what was compared.

    Raises UserError unless it has the metadata, {name: GGUFValue}, and the arrays, pairs of name and array, with the
    same bits, and one embedding per token.
    """
    import gguf

    reader = gguf.GGUFReader(path)
    for name, expected in metadata.items():
        field = reader.get_field(name)
        if field is None or field.contents() != as_stored(expected.value):
            raise failed(f"the GGUF file has another {name}")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    n_tensors, n_rows = len(tensors), len(tensors["token_embd.weight"])
    for name, array in arrays:
        found = tensors.pop(name, None)
        if found is None or not np.array_equal(found.view(np.int32), array.view(np.int32)):  # bits, for NaN
            raise failed(f"the GGUF file has another tensor {name}")
    n_tokens = len(metadata["tokenizer.ggml.tokens"].value)
    if tensors or n_rows != n_tokens:
        raise failed(f"the GGUF file has {n_tokens} tokens, {n_rows} embeddings, and surplus tensors {[*tensors]}")
    print(f"gguf: {n_tensors} tensors, {n_tokens:,} tokens and {len(metadata)} fields were read again and are equal; "
          "llama.cpp was not run")


def as_stored(value):
    """A value of the metadata as it is read from a file, where a number is a float32."""
    return float(np.float32(value)) if isinstance(value, float) else value
