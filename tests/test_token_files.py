"""data/token_files.py and tokenization/meta_pickle.py: folders as nanoGPT and others write them, and damaged ones."""

import json
import os
import pickle
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from data.corpora import open_corpus
from data.prepare import open_tokens, prepare
from data.token_files import is_prepared, read_tokens
from tokenization.bpe import BPETokenizer
from tokenization.characters import CharTokenizer
from tokenization.load import load_tokenizer
from tokenization.meta_pickle import characters_in_meta
from utils.errors import UserError

TEXT = "".join(f"{i} times 中文, and so on.\n" for i in range(3000))


def write_like_nanogpt(folder, text=TEXT, meta=True, dtype=np.uint16):
    """What https://github.com/karpathy/nanoGPT's data/shakespeare_char/prepare.py does."""
    folder.mkdir()
    chars = sorted(list(set(text)))
    stoi = {ch: i for i, ch in enumerate(chars)}
    n = len(text)
    for name, data in (("train", text[: int(n * 0.9)]), ("val", text[int(n * 0.9) :])):
        np.array([stoi[c] for c in data], dtype=dtype).tofile(folder / f"{name}.bin")
    if meta:
        with open(folder / "meta.pkl", "wb") as f:
            pickle.dump({"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}, f)
    return folder


def error_of(function, *arguments, **options):
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_of_nanogpt_open_and_have_the_same_bytes_as_ours(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    folder = write_like_nanogpt(tmp_path / "shakespeare_char")
    theirs, ours = open_tokens(folder), prepare(open_corpus(tmp_path / "text.txt"), CharTokenizer.of_text(TEXT))
    assert theirs.tokenizer.to_dict() == ours.tokenizer.to_dict()
    for name in ("train.bin", "val.bin"):
        assert (folder / name).read_bytes() == (ours.folder / name).read_bytes()
    assert theirs.tokenizer.decode(theirs.val) == TEXT[int(0.9 * len(TEXT)) :]
    assert load_tokenizer(folder).to_dict() == load_tokenizer(folder / "meta.pkl").to_dict() == ours.tokenizer.to_dict()
    assert is_prepared(folder) and not is_prepared(tmp_path) and not is_prepared(tmp_path / "text.txt")


def test_a_folder_without_a_tokenizer_needs_one(tmp_path):
    folder = write_like_nanogpt(tmp_path / "no_meta", meta=False)
    assert "--data.tokenizer" in error_of(open_tokens, folder)
    tokenizer = CharTokenizer.of_text(TEXT)
    assert tokenizer.decode(open_tokens(folder, tokenizer=tokenizer).val) == TEXT[int(0.9 * len(TEXT)) :]
    trained = BPETokenizer.train([TEXT], 300)
    trained.save(tmp_path / "tokenizer.json")
    opened = open_tokens(folder, tokenizer=tmp_path / "tokenizer.json")
    assert opened.tokenizer.to_dict() == trained.to_dict()


def test_another_tokenizer_than_the_folder_s_own_is_refused(tmp_path):
    folder = write_like_nanogpt(tmp_path / "own")
    assert "another tokenizer" in error_of(open_tokens, folder, tokenizer=CharTokenizer.of_text(TEXT + "€"))
    assert open_tokens(folder, tokenizer=CharTokenizer.of_text(TEXT)).folder == folder


@pytest.mark.parametrize("missing", ["train.bin", "val.bin"])
def test_half_a_folder_says_what_is_missing(tmp_path, missing):
    folder = write_like_nanogpt(tmp_path / "half")
    (folder / "input.txt").write_text(TEXT, encoding="utf-8")  # nanoGPT keeps the text there, too
    (folder / missing).unlink()
    assert f"{folder} has no {missing}" in error_of(open_tokens, folder)


@pytest.mark.parametrize("spoil, words", [
    (lambda folder: (folder / "train.bin").write_bytes(b"\0\0\0"), ["train.bin", "3 bytes"]),
    (lambda folder: (folder / "val.bin").write_bytes(b"\0\0\xff\xff"), ["val.bin", "65535"]),
    (lambda folder: (folder / "meta.pkl").write_bytes(b"no pickle"), ["meta.pkl"]),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), ["tokenizer.json"]),
    (lambda folder: (folder / "tokenizer.json").write_text("[1]"), ["tokenizer.json"]),
])
def test_damaged_folder_is_one_line(tmp_path, spoil, words):
    folder = write_like_nanogpt(tmp_path / "spoilt")
    spoil(folder)
    message = error_of(open_tokens, folder)
    assert all(word in message for word in words)


# ---- Range and width -------------------------------------------------------------------------------------------------


def test_one_token_out_of_range_in_the_middle_of_200_mb_is_found(tmp_path):
    """The first and the last tens of millions of tokens are fine."""
    tokens = np.zeros(100_000_000, np.uint16)
    tokens[50_000_000] = 300
    tokens.tofile(tmp_path / "train.bin")
    message = error_of(read_tokens, tmp_path / "train.bin", 300)
    assert "train.bin has a token 300" in message and "300 tokens" in message
    assert len(read_tokens(tmp_path / "train.bin", 301)) == 100_000_000


def test_negative_ids_are_refused(tmp_path):
    np.array([5, -1, 5]).astype("<i8").tofile(tmp_path / "train.bin")
    assert "a token -1" in error_of(read_tokens, tmp_path / "train.bin", 300, "int64")


@pytest.mark.parametrize("dtype", ["uint32", "int64"])
def test_wider_ids_are_refused_until_their_width_is_named(tmp_path, dtype):
    folder = write_like_nanogpt(tmp_path / "wide", dtype=dtype)
    message = error_of(open_tokens, folder)
    assert "train.bin was read as uint16, but looks like " + dtype in message and f"--data.dtype {dtype}" in message
    opened = open_tokens(folder, dtype=dtype)
    assert opened.train.dtype == np.dtype(dtype)
    assert opened.tokenizer.decode(opened.train) + opened.tokenizer.decode(opened.val) == TEXT


def test_unknown_widths_are_refused(tmp_path):
    folder = write_like_nanogpt(tmp_path / "wide", dtype="uint32")
    assert "uint16, uint32, int64" in error_of(open_tokens, folder, dtype="float32")
    assert "--data.dtype" in error_of(open_tokens, folder, dtype="int64")


def test_int64_is_not_read_as_uint32_for_a_large_vocabulary(tmp_path):
    ids = np.arange(90_000) % 70_001
    ids.astype("<i8").tofile(tmp_path / "train.bin")
    assert "looks like int64" in error_of(read_tokens, tmp_path / "train.bin", 70_001)
    ids.astype("<u4").tofile(tmp_path / "train.bin")
    assert read_tokens(tmp_path / "train.bin", 70_001).tolist() == ids.tolist()
    ids.astype("<u2").tofile(tmp_path / "train.bin")
    assert "--data.dtype" in error_of(read_tokens, tmp_path / "train.bin", 70_001)


@pytest.mark.parametrize("ids", [[0] * 500, [0, 7] * 500, [7] * 500, [7, 0, 0] * 500, [7, 0] * 500 + [1, 1]])
def test_ids_that_are_often_zero_are_not_mistaken_for_wider_ones(tmp_path, ids):
    np.array(ids, "<u2").tofile(tmp_path / "train.bin")
    assert read_tokens(tmp_path / "train.bin", 300).tolist() == ids


def test_naming_the_width_overrides_what_ids_look_like(tmp_path):
    np.array([7, 0] * 500, "<u2").tofile(tmp_path / "train.bin")
    assert "--data.dtype uint16" in error_of(read_tokens, tmp_path / "train.bin", 300)
    assert read_tokens(tmp_path / "train.bin", 300, "uint16").tolist() == [7, 0] * 500


# ---- meta.pkl --------------------------------------------------------------------------------------------------------

CHARACTERS = "\n !abc中🙂"
META = {"vocab_size": len(CHARACTERS), "itos": dict(enumerate(CHARACTERS)),
        "stoi": {character: i for i, character in enumerate(CHARACTERS)}}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("protocol", range(6))
def test_meta_of_every_protocol_is_read(protocol):
    large = {"itos": {i: chr(0x4E00 + i) for i in range(5000)}}  # with memo indices of two bytes
    assert characters_in_meta(pickle.dumps(META, protocol)) == CHARACTERS
    assert characters_in_meta(pickle.dumps(large, protocol)) == "".join(large["itos"].values())


@pytest.mark.parametrize("content", [
    pickle.dumps({"itos": Evil()}), pickle.dumps({"vocab_size": 3}), pickle.dumps([1]), pickle.dumps({"itos": 3}),
    pickle.dumps({"itos": ["a", "b"]}), pickle.dumps({"itos": {0: "a", 2: "b"}}), pickle.dumps({"itos": {0: "ab"}}),
    pickle.dumps({"itos": {0: 7}}), pickle.dumps({"itos": {0: "a", 1: "a"}}), pickle.dumps({"itos": {}}), b"",
    pickle.dumps({"itos": {0: "\ud800"}}), pickle.dumps(META)[:-1], pickle.dumps(META)[:40], b"\x80", b"garbage",
    b"}r\xff\xff\xff\x7f.", b"}r\xff\xff\xff\xff.", b"}p99999999999999999999\n.", b"}p-1\n.", b"h\x00.", b"0.",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", b"X\xff\xff\xff\x7fa.", b"(" * 10_000 + b".",
    b"}I1\nI2\nI" + b"9" * 5000 + b"\ns.",
])  # fmt: skip
def test_malformed_meta_is_one_line_runs_nothing_and_takes_no_memory(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    folder = write_like_nanogpt(tmp_path / "evil")
    (folder / "meta.pkl").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = error_of(open_tokens, folder)
    assert re.search(r"meta\.pkl", message) and len(message) < 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
    assert not Path("ran").exists()


def test_mutated_meta_gives_a_vocabulary_or_one_line(tmp_path, fuzz):
    random = np.random.default_rng(0)
    content = np.frombuffer(pickle.dumps(META), np.uint8)
    (tmp_path / "meta.pkl").touch()
    for _ in range(1000 * fuzz):
        mutated = content.copy()
        mutated[random.integers(len(content), size=random.integers(1, 4))] = random.integers(256)
        (tmp_path / "meta.pkl").write_bytes(mutated.tobytes())
        try:
            vocab = load_tokenizer(tmp_path).vocab
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert len(vocab) == len(set(vocab)) > 0 and json.dumps(vocab)


def test_meta_above_the_size_limit_is_not_read(tmp_path):
    with open(tmp_path / "meta.pkl", "wb") as file:
        file.truncate(10**12)  # sparse
    assert "too many" in error_of(load_tokenizer, tmp_path)
