"""data/prepare.py: train.bin and val.bin against ids made by hand, kills, changes, and files as nanoGPT writes them."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data import prepare as module
from data import readers
from data.corpora import Files, open_corpus
from data.prepare import is_prepared, open_prepared, open_tokens, prepare, tokenizer_for
from data.tokenizer import BPETokenizer, CharTokenizer
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TEXT = "".join(f"{i} times 中文, and so on.\n" for i in range(3000))


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text of one's own in a folder of its own; the working folder is another."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "poem.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "mine" / "poem.txt"


def read(path, dtype):
    return np.fromfile(path, dtype).tolist()


# ---- What is written -------------------------------------------------------------------------------------------------


def test_a_text_becomes_the_ids_of_its_first_nine_tenths_and_of_the_rest(text):
    tokenizer = CharTokenizer.of_text(TEXT)
    prepared = prepare(open_corpus(text), tokenizer)
    alphabet = sorted(set(TEXT))
    ids = [alphabet.index(character) for character in TEXT]
    cut = int(0.9 * len(ids))
    assert prepared.train.tolist() == ids[:cut] and prepared.val.tolist() == ids[cut:]
    assert read(prepared.folder / "train.bin", "<u2") == ids[:cut]  # and nothing else is in the file
    assert prepared.train.dtype == np.uint16 and isinstance(prepared.train.base, np.memmap)
    assert prepared.tokenizer.to_dict() == tokenizer.to_dict()


def test_a_vocabulary_above_65536_takes_four_bytes(text):
    wide = CharTokenizer("".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000 + 4096)])))
    assert wide.vocab_size > 65536
    text.write_text("a\U00010fffb" * 50, encoding="utf-8")
    prepared = prepare(open_corpus(text), wide)
    assert prepared.train.dtype == np.uint32
    assert wide.decode(read(prepared.folder / "train.bin", "<u4")) == ("a\U00010fffb" * 50)[:135]


def test_documents_end_with_the_token_for_it_where_there_is_one(tmp_path, text):
    texts = [f"document {i}: {'long ' * (9000 if i == 5 else i)}" for i in range(25)]
    path = tmp_path / "mine" / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = CharTokenizer.of_text("".join(texts) + "|")
    tokenizer.end_of_text = tokenizer.ids["|"]
    prepared = prepare(open_corpus(path), tokenizer)
    assert tokenizer.decode(prepared.val) == f"{texts[1]}|{texts[11]}|{texts[21]}|"
    assert tokenizer.decode(prepared.train) == "".join(f"{text}|" for i, text in enumerate(texts) if i % 10 != 1)
    one_text = prepare(open_corpus(text), CharTokenizer.of_text(TEXT + "|"))
    assert one_text.tokenizer.ids["|"] not in one_text.train


def test_the_size_of_a_batch_changes_nothing(text, monkeypatch):
    folders = []
    for size in (1 << 20, 1):
        monkeypatch.setattr(module, "BATCH", size)
        monkeypatch.setattr(module, "VERSION", size)
        folders.append(prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder)
    first, second = folders
    assert first != second
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in ("train.bin", "val.bin"))


# ---- Once ------------------------------------------------------------------------------------------------------------


def test_what_was_prepared_is_not_prepared_again_until_text_or_tokenizer_change(text, monkeypatch):
    calls = []
    monkeypatch.setattr(CharTokenizer, "encode_batch",
                        lambda self, texts: calls.append(1) or [self.encode(text) for text in texts])
    tokenizer = CharTokenizer.of_text(TEXT)
    first = prepare(open_corpus(text), tokenizer).folder
    assert prepare(open_corpus(text), tokenizer).folder == first and len(calls) == 1
    other = prepare(open_corpus(text), CharTokenizer.of_text(TEXT + "€")).folder
    assert other != first and len(calls) == 2
    text.write_text(TEXT[::-1], encoding="utf-8")
    changed = prepare(open_corpus(text), tokenizer)
    assert changed.folder not in (first, other) and len(calls) == 3
    assert tokenizer.decode(changed.val) == TEXT[::-1][int(0.9 * len(TEXT)) :]


def test_it_lies_beside_the_text_and_its_folder_holds_the_tokenizer(text):
    folder = prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder
    assert folder.parent == text.parent / "prepared" and folder.name.startswith("poem-")
    assert {"train.bin", "val.bin", "tokenizer.json"} <= set(os.listdir(folder))
    assert not list(folder.parent.glob("*.partial"))
    assert is_prepared(folder) and not is_prepared(text.parent) and not is_prepared(text)
    assert open_prepared(folder).val.tolist() == prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).val.tolist()


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not read-only there")
def test_beside_a_text_in_a_read_only_folder_nothing_is_written(text):
    text.parent.chmod(0o555)
    try:
        prepared = prepare(open_corpus(text), CharTokenizer.of_text(TEXT))
        assert prepared.folder.parent == Path("data/prepared") and os.listdir(text.parent) == ["poem.txt"]
        Path.cwd().chmod(0o555)
        assert prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder == prepared.folder
        Path("data").chmod(0o555)
        Path("data/prepared").chmod(0o555)
        with pytest.raises(UserError, match="can be written"):
            prepare(open_corpus(text), CharTokenizer.of_text(TEXT + "€"))
    finally:
        for folder in (text.parent, Path.cwd(), Path("data"), Path("data/prepared")):
            folder.chmod(0o755)


def test_a_tokenizer_is_built_once_for_a_text_and_a_description(text):
    calls = []

    def build(texts):
        calls.append(1)
        return CharTokenizer.of_text("".join(texts))

    for _ in range(2):
        assert tokenizer_for(open_corpus(text), {"kind": "char"}, build).vocab == "".join(sorted(set(TEXT)))
    assert len(calls) == 1
    tokenizer_for(open_corpus(text), {"kind": "other"}, build)
    text.write_text("new", encoding="utf-8")
    assert tokenizer_for(open_corpus(text), {"kind": "char"}, build).vocab == "enw"
    assert len(calls) == 3


def test_two_at_once_prepare_once(text, monkeypatch):
    calls, folders = [], []

    def slow(self, texts):
        calls.append(1)
        time.sleep(0.3)
        return [self.encode(text) for text in texts]

    monkeypatch.setattr(CharTokenizer, "encode_batch", slow)
    tokenizer = CharTokenizer.of_text(TEXT)
    threads = [threading.Thread(target=lambda: folders.append(prepare(open_corpus(text), tokenizer).folder))
               for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3 and len(set(folders)) == 1 and len(calls) == 1


# ---- Stopped on the way ----------------------------------------------------------------------------------------------

SLOW = """
import sys, time
sys.path.insert(0, {root!r})
import data.prepare
from data.corpora import Files, open_corpus
from data.tokenizer import CharTokenizer
data.prepare.BATCH, data.prepare.SAVE_SECONDS = 1000, 0
class Slow(CharTokenizer):
    def encode_batch(self, texts):
        time.sleep(0.1)
        return super().encode_batch(texts)
path = sys.argv[1]
data.prepare.prepare(open_corpus(path), Slow.of_text(open(path, encoding="utf-8").read()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_preparing_that_is_killed_goes_on_where_it_was(text, capsys, monkeypatch):
    long_text = TEXT * 12
    text.write_text(long_text, encoding="utf-8")
    code = SLOW.format(root=str(ROOT))
    process = subprocess.Popen([sys.executable, "-c", code, str(text)], stderr=subprocess.PIPE, text=True)
    deadline, states = time.monotonic() + 60, []
    while time.monotonic() < deadline and not (states and json.loads(states[0].read_text())["pieces"] > 3):
        states = list((text.parent / "prepared").glob("poem-*.partial/done.json"))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9, process.stderr.read()
    [state] = states
    done = json.loads(state.read_text())
    assert 0 < done["train"] < 0.9 * len(long_text)
    with open(state.parent / "train.bin", "ab") as file:
        file.write(b"what was written after the last save")

    calls = []
    monkeypatch.setattr(CharTokenizer, "encode_batch",
                        lambda self, texts: calls.append(sum(map(len, texts))) or [self.encode(text) for text in texts])
    prepared = prepare(open_corpus(text), CharTokenizer.of_text(long_text))
    tokenizer = prepared.tokenizer
    assert tokenizer.decode(prepared.train) + tokenizer.decode(prepared.val) == long_text
    assert sum(calls) == len(long_text) - done["characters"] < len(long_text)
    assert "going on" in capsys.readouterr().out


def test_an_error_on_the_way_leaves_no_half_folder_and_the_next_run_goes_on(tmp_path, text, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1)
    path = tmp_path / "mine" / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nthree\n')
    for _ in range(2):
        with pytest.raises(UserError, match="line 3"):
            prepare(open_corpus(path), CharTokenizer.of_text("enotw"))
    assert not [folder for folder in (tmp_path / "mine" / "prepared").iterdir() if is_prepared(folder)
                and folder.suffix != ".partial"]


def test_a_character_that_the_tokenizer_lacks_is_one_line(text):
    with pytest.raises(UserError, match="'中'"):
        prepare(open_corpus(text), CharTokenizer.of_text("abc"))


def test_a_full_disk_is_one_line(text, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*No space left"):
        prepare(open_corpus(text), CharTokenizer.of_text(TEXT))


def test_memory_does_not_grow_with_the_text(text, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1 << 13)
    monkeypatch.setattr(readers, "BLOCK", 1 << 13)
    monkeypatch.setattr(readers, "HEAD", 1 << 13)
    monkeypatch.setattr(Files, "title", lambda self: "")  # reads a text of 2 MB at most
    peaks = []
    for repeats in (5, 20):
        text.write_text(TEXT * repeats, encoding="utf-8")
        tracemalloc.start()
        prepare(open_corpus(text), CharTokenizer.of_text(TEXT))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 15 * len(TEXT) / 4  # a byte for each character more would be four times as much


# ---- nanoGPT's files -------------------------------------------------------------------------------------------------


def write_like_nanogpt(folder, text, meta=True):
    """What https://github.com/karpathy/nanoGPT's data/shakespeare_char/prepare.py does."""
    folder.mkdir()
    chars = sorted(list(set(text)))
    stoi = {ch: i for i, ch in enumerate(chars)}
    n = len(text)
    for name, data in (("train", text[: int(n * 0.9)]), ("val", text[int(n * 0.9) :])):
        np.array([stoi[c] for c in data], dtype=np.uint16).tofile(folder / f"{name}.bin")
    if meta:
        with open(folder / "meta.pkl", "wb") as f:
            pickle.dump({"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}, f)
    return folder


def test_files_as_nanogpt_writes_them_open_and_are_the_same_bytes_as_ours(tmp_path, text):
    folder = write_like_nanogpt(tmp_path / "shakespeare_char", TEXT)
    theirs, ours = open_prepared(folder), prepare(open_corpus(text), CharTokenizer.of_text(TEXT))
    assert theirs.tokenizer.to_dict() == ours.tokenizer.to_dict()
    for name in ("train.bin", "val.bin"):
        assert (folder / name).read_bytes() == (ours.folder / name).read_bytes()
    assert theirs.tokenizer.decode(theirs.val) == TEXT[int(0.9 * len(TEXT)) :]


def test_without_a_tokenizer_file_the_one_given_is_taken(tmp_path):
    folder = write_like_nanogpt(tmp_path / "no_meta", TEXT, meta=False)
    with pytest.raises(UserError, match="--data.tokenizer"):
        open_prepared(folder)
    tokenizer = CharTokenizer.of_text(TEXT)
    assert tokenizer.decode(open_prepared(folder, tokenizer).val) == TEXT[int(0.9 * len(TEXT)) :]


@pytest.mark.parametrize("spoil, words", [
    (lambda folder: (folder / "train.bin").write_bytes(b"\0\0\0"), ["train.bin", "3 bytes"]),
    (lambda folder: (folder / "val.bin").write_bytes(b"\0\0\xff\xff"), ["val.bin", "65535"]),
    (lambda folder: (folder / "meta.pkl").write_bytes(b"no pickle"), ["meta.pkl"]),
    (lambda folder: (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 3})), ["meta.pkl"]),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), ["tokenizer.json"]),
    (lambda folder: (folder / "tokenizer.json").write_text("[1]"), ["tokenizer.json"]),
])
def test_a_prepared_folder_that_is_spoilt_is_one_line(tmp_path, spoil, words):
    folder = write_like_nanogpt(tmp_path / "spoilt", TEXT)
    spoil(folder)
    with pytest.raises(UserError) as error:
        open_prepared(folder)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_meta_file_that_would_run_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_like_nanogpt(tmp_path / "evil", TEXT)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": Evil()}))
    with pytest.raises(UserError, match="meta.pkl"):
        open_prepared(folder)
    assert not Path("ran").exists()


def test_another_tokenizer_than_the_folder_s_own_is_an_error(text):
    folder = prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder
    with pytest.raises(UserError, match="another tokenizer"):
        open_prepared(folder, CharTokenizer.of_text(TEXT + "€"))


def test_an_empty_text_is_no_tokens(text):
    text.write_text("")
    prepared = prepare(open_corpus(text), CharTokenizer.of_text("ab"))
    assert len(prepared.train) == len(prepared.val) == 0


# ---- By name ---------------------------------------------------------------------------------------------------------


def test_a_bpe_is_trained_on_the_text_and_kept_as_the_library_s_own_file(text):
    from tokenizers import Tokenizer

    prepared = open_tokens(text, tokenizer="bpe", vocab_size=400)
    library = Tokenizer.from_file(str(prepared.folder / "tokenizer.json"))
    cut = int(0.9 * len(TEXT))
    assert library.get_vocab_size() == prepared.tokenizer.vocab_size == 400
    assert prepared.train.tolist() == library.encode(TEXT[:cut]).ids and len(prepared.train) < cut
    assert prepared.val.tolist() == library.encode(TEXT[cut:]).ids
    assert open_tokens(text, tokenizer=prepared.folder / "tokenizer.json").folder == prepared.folder
    assert open_tokens(prepared.folder).tokenizer.to_dict() == prepared.tokenizer.to_dict()


def test_bpe_documents_end_with_its_end_of_text(tmp_path, text):
    path = tmp_path / "mine" / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(4)))
    prepared = open_tokens(path, tokenizer="bpe", vocab_size=300)
    assert prepared.tokenizer.decode(prepared.train) == "row 0<|endoftext|>row 2<|endoftext|>row 3<|endoftext|>"
    assert prepared.tokenizer.end_of_text in prepared.val


def test_char_is_the_characters_of_the_whole_text_and_a_tokenizer_is_itself(text, monkeypatch):
    monkeypatch.setattr(Files, "title", lambda self: "a poem")
    prepared = open_tokens(text)
    assert prepared.tokenizer.vocab == "".join(sorted(set(TEXT)))
    assert open_tokens(text, tokenizer=prepared.tokenizer).folder == prepared.folder
    assert (prepared.title, open_prepared(prepared.folder).title) == ("a poem", "a text of your own")


def test_a_prepared_folder_is_a_path_like_any_other(tmp_path):
    folder = write_like_nanogpt(tmp_path / "shakespeare_char", TEXT)
    assert open_tokens(folder).tokenizer.vocab == "".join(sorted(set(TEXT)))
    trained = BPETokenizer.train([TEXT], 300)
    trained.save(tmp_path / "tokenizer.json")
    (folder / "meta.pkl").unlink()
    assert open_tokens(folder, tokenizer=tmp_path / "tokenizer.json").tokenizer.to_dict() == trained.to_dict()


def test_gpt2_is_fetched_from_the_first_mirror_that_has_it(tmp_path, text, monkeypatch):
    asked = []

    def download(urls, path, sha256):
        asked.append((urls, path.name))

    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setattr(module, "download", download)
    with pytest.raises(UserError, match="cannot read the tokenizer"):  # nothing came
        open_tokens(text, tokenizer="gpt2")
    assert [name for _, name in asked] == ["encoder.json", "vocab.bpe"]
    assert asked[1][0][-1] == "https://mirror.example/openai-community/gpt2/resolve/main/merges.txt"


def test_a_tokenizer_that_is_not_there_is_one_line(text):
    with pytest.raises(UserError, match="none.json"):
        open_tokens(text, tokenizer="none.json")
