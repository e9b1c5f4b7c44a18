"""data/prepare.py and data/cache.py: what is written, when it is reused, and what interruptions do."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

from data import cache
from data import prepare as module
from data.cache import cache_key, cached_file
from data.corpora import Files, open_corpus
from data.prepare import open_tokens, prepare
from data.token_files import is_prepared, open_prepared
from reading import blocks, encodings
from tokenization import load
from tokenization.bpe import BPETokenizer
from tokenization.characters import CharTokenizer
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TEXT = "".join(f"{i} times 中文, and so on.\n" for i in range(3000))


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text in a folder of its own. The project's folder for what is prepared is replaced by `fallback`."""
    monkeypatch.setattr(cache, "FALLBACK", tmp_path / "fallback" / "prepared")
    (tmp_path / "fallback").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "poem.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "mine" / "poem.txt"


@pytest.fixture
def encoded(monkeypatch):
    """A list of the number of characters in each batch that a CharTokenizer encodes."""
    lengths = []
    monkeypatch.setattr(CharTokenizer, "encode_batch", lambda self, texts: lengths.append(sum(map(len, texts))) or
                        [self.encode(text) for text in texts])
    return lengths


def read(path, dtype):
    return np.fromfile(path, dtype).tolist()


def rows(tmp_path, texts):
    path = tmp_path / "mine" / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


# ---- What is written -------------------------------------------------------------------------------------------------


def test_text_becomes_ids_of_its_first_nine_tenths_and_the_rest(text):
    tokenizer = CharTokenizer.of_text(TEXT)
    prepared = prepare(open_corpus(text), tokenizer)
    alphabet = sorted(set(TEXT))
    ids = [alphabet.index(character) for character in TEXT]
    cut = int(0.9 * len(ids))
    assert prepared.train.tolist() == ids[:cut] and prepared.val.tolist() == ids[cut:]
    assert read(prepared.folder / "train.bin", "<u2") == ids[:cut]  # and the file contains nothing else
    assert prepared.train.dtype == np.uint16 and isinstance(prepared.train.base, np.memmap)
    assert prepared.tokenizer.to_dict() == tokenizer.to_dict()


def test_vocabulary_above_65536_takes_four_bytes(text):
    wide = CharTokenizer("".join(map(chr, [*range(0xD800), *range(0xE000, 0x10000 + 4096)])))
    assert wide.vocab_size > 65536
    text.write_text("a\U00010fffb" * 50, encoding="utf-8")
    prepared = prepare(open_corpus(text), wide)
    assert prepared.train.dtype == np.uint32
    assert wide.decode(read(prepared.folder / "train.bin", "<u4")) == ("a\U00010fffb" * 50)[:135]


def test_documents_end_with_the_end_of_text_token_if_there_is_one(tmp_path, text):
    texts = [f"document {i}: {'long ' * (9000 if i == 5 else i)}" for i in range(25)]
    tokenizer = CharTokenizer.of_text("".join(texts) + "|")
    tokenizer.end_of_text = tokenizer.ids["|"]
    prepared = prepare(open_corpus(rows(tmp_path, texts)), tokenizer)
    assert tokenizer.decode(prepared.val) == f"{texts[1]}|{texts[11]}|{texts[21]}|"
    assert tokenizer.decode(prepared.train) == "".join(f"{text}|" for i, text in enumerate(texts) if i % 10 != 1)
    one_text = prepare(open_corpus(text), CharTokenizer.of_text(TEXT + "|"))
    assert one_text.tokenizer.ids["|"] not in one_text.train


def test_batch_size_does_not_change_the_files(text, monkeypatch):
    folders = []
    for size in (1 << 20, 1):
        monkeypatch.setattr(module, "BATCH", size)
        monkeypatch.setattr(cache, "VERSION", size)
        folders.append(prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder)
    first, second = folders
    assert first != second
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in ("train.bin", "val.bin"))


def test_empty_text_has_no_tokens(text):
    text.write_text("")
    prepared = prepare(open_corpus(text), CharTokenizer.of_text("ab"))
    assert len(prepared.train) == len(prepared.val) == 0


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_an_empty_text_is_named_if_a_tokenizer_is_trained_on_it(text, kind):
    text.write_text("")
    with pytest.raises(UserError, match=f"{text.name} is empty"):
        open_tokens(text, tokenizer=kind)


def test_text_of_one_letter_a_line_is_not_mistaken_for_wider_ids(text):
    text.write_text("a\nb\n" * 100)  # every second id is 0
    prepared = open_tokens(text)
    assert prepared.tokenizer.decode(prepared.train) == ("a\nb\n" * 100)[:360]


# ---- By name ---------------------------------------------------------------------------------------------------------


def test_bpe_is_trained_on_the_text_and_kept_as_a_file_of_the_library(text):
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
    prepared = open_tokens(rows(tmp_path, [f"row {i}" for i in range(4)]), tokenizer="bpe", vocab_size=300)
    assert prepared.tokenizer.decode(prepared.train) == "row 0<|endoftext|>row 2<|endoftext|>row 3<|endoftext|>"
    assert prepared.tokenizer.end_of_text in prepared.val


def test_char_is_all_characters_of_the_text_and_an_object_is_used_as_it_is(text, monkeypatch):
    monkeypatch.setattr(Files, "title", lambda self: "a poem")
    prepared = open_tokens(text)
    assert prepared.tokenizer.vocab == "".join(sorted(set(TEXT)))
    assert open_tokens(text, tokenizer=prepared.tokenizer).folder == prepared.folder
    assert (prepared.title, open_prepared(prepared.folder).title) == ("a poem", "a text of your own")


def test_gpt2_is_downloaded_from_its_mirrors(text, monkeypatch, tmp_path):
    requested = []
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setattr(load, "GPT2_FOLDER", tmp_path)
    monkeypatch.setattr(load, "download", lambda urls, path, sha256: requested.append((urls, path.name)))
    with pytest.raises(UserError, match="contains no tokenizer"):  # nothing was downloaded
        open_tokens(text, tokenizer="gpt2")
    assert [name for _, name in requested] == ["encoder.json", "vocab.bpe"]
    assert requested[1][0][-1] == "https://mirror.example/openai-community/gpt2/resolve/main/merges.txt"


@pytest.mark.parametrize("options, words", [
    ({"tokenizer": "none.json"}, "none.json"), ({"tokenizer": "nonsense"}, "nonsense"), ({"dtype": "uint16"}, "dtype"),
    ({"tokenizer": CharTokenizer("abc")}, "'中'"), ({"val_path": "none.txt"}, "none.txt"),
])  # fmt: skip
def test_bad_arguments_are_one_line(text, options, words):
    with pytest.raises(UserError) as error:
        open_tokens(text, **options)
    assert words in str(error.value) and "\n" not in str(error.value)


# ---- A separate validation text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_separate_validation_text(text, tmp_path, kind):
    val = tmp_path / "val.txt"
    val.write_text("Only the validation has ö.\n" * 9, encoding="utf-8")
    prepared = open_tokens(text, tokenizer=kind, vocab_size=300, val_path=val)
    assert prepared.tokenizer.decode(prepared.train) == TEXT
    assert prepared.tokenizer.decode(prepared.val) == "Only the validation has ö.\n" * 9
    assert prepared.folder.parent == text.parent / "prepared"
    assert open_tokens(text, tokenizer=kind, vocab_size=300).folder != prepared.folder
    val.write_text("ö" * 50, encoding="utf-8")
    again = open_tokens(text, tokenizer=kind, vocab_size=300, val_path=val)
    assert again.folder != prepared.folder and again.tokenizer.decode(again.val) == "ö" * 50


def test_separate_validation_documents(text, tmp_path):
    path = rows(tmp_path, [f"row {i}" for i in range(30)])
    prepared = open_tokens(path, tokenizer="bpe", vocab_size=300, val_path=[text])
    assert prepared.tokenizer.decode(prepared.train) == "".join(f"row {i}<|endoftext|>" for i in range(30))
    assert prepared.tokenizer.decode(prepared.val) == TEXT
    with pytest.raises(UserError, match="leave out val_path"):
        open_tokens(prepared.folder, val_path=text)


# ---- Kept for later runs ---------------------------------------------------------------------------------------------


def test_key_does_not_change_between_versions():
    """The keys that version 1 gave, so that what was prepared with it is found."""
    identity = {"files": [("/texts/poem.txt", 1000, 1700000000123456789)], "column": None}
    bpe = {"kind": "bpe", "vocab_size": 300, "max_bytes": 1000}
    assert [cache_key(identity, description) for description in (CharTokenizer("abc").to_dict(), {"kind": "char"}, bpe)
            ] == ["b406006edebf", "5ed0b05d5acc", "85ce9293f4e9"]


def test_prepared_text_is_reused_until_text_or_tokenizer_change(text, encoded):
    tokenizer = CharTokenizer.of_text(TEXT)
    first = prepare(open_corpus(text), tokenizer).folder
    assert prepare(open_corpus(text), tokenizer).folder == first and len(encoded) == 1
    other = prepare(open_corpus(text), CharTokenizer.of_text(TEXT + "€")).folder
    assert other != first and first.exists() and len(encoded) == 2
    text.write_text(TEXT[::-1], encoding="utf-8")
    changed = prepare(open_corpus(text), tokenizer)
    assert changed.folder not in (first, other) and len(encoded) == 3
    assert tokenizer.decode(changed.val) == TEXT[::-1][int(0.9 * len(TEXT)) :]


def test_prepared_folder_lies_beside_the_text_and_contains_the_tokenizer(text):
    folder = prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder
    assert folder.parent == text.parent / "prepared" and folder.name.startswith("poem-")
    assert {"train.bin", "val.bin", "tokenizer.json"} <= set(os.listdir(folder))
    assert set(os.listdir(folder.parent)) == {folder.name, f"{folder.name}.source.json"}
    assert open_prepared(folder).val.tolist() == prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).val.tolist()


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not read-only there")
def test_nothing_is_written_beside_a_text_in_a_read_only_folder(text):
    fallback = cache.FALLBACK
    text.parent.chmod(0o555)
    try:
        prepared = prepare(open_corpus(text), CharTokenizer.of_text(TEXT))
        assert prepared.folder.parent == fallback and os.listdir(text.parent) == ["poem.txt"]
        fallback.chmod(0o555)
        assert prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder == prepared.folder
        with pytest.raises(UserError, match="can be written"):
            prepare(open_corpus(text), CharTokenizer.of_text(TEXT + "€"))
    finally:
        text.parent.chmod(0o755)
        fallback.chmod(0o755)


def test_tokenizer_is_built_once_for_a_text_and_a_description(text, monkeypatch):
    calls = []
    monkeypatch.setattr(BPETokenizer, "save", lambda self, path: calls.append(path) or path.write_text(
        self.to_dict()["tokenizer.json"], encoding="utf-8"))
    for vocab_size in (300, 300, 310):
        assert module.build_tokenizer(open_corpus(text), "bpe", vocab_size, 100_000).vocab_size == vocab_size
    assert len(calls) == 2
    text.write_text(TEXT * 2, encoding="utf-8")
    module.build_tokenizer(open_corpus(text), "bpe", 300, 100_000)
    assert len(calls) == 3


def test_three_at_once_prepare_once(text, monkeypatch):
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


@pytest.mark.parametrize("name", ["n" * 230, "名" * 76, "n" * 199 + "名" * 10])
def test_file_names_of_230_bytes_work(text, name):
    path = text.with_name(f"{name}.txt")
    text.rename(path)
    for kind in ("char", "bpe"):
        prepared = open_tokens(path, tokenizer=kind, vocab_size=300)
        assert prepared.tokenizer.decode(prepared.train) + prepared.tokenizer.decode(prepared.val) == TEXT
        assert name.startswith(prepared.folder.name[:60]) and prepared.folder.parent == text.parent / "prepared"


# ---- What is stale ---------------------------------------------------------------------------------------------------


def test_stale_files_of_the_same_text_are_removed_and_nothing_else(text):
    """A killed process left a partial folder, a lock and a temporary file of an earlier version of the text."""
    folder = text.parent / "prepared"
    other = text.with_name("poem.md")
    other.write_text("another text of the same name")
    kept = {open_tokens(other).folder.name, "poem", "poem-0123456789ab", "notes.source.json", "poem-x.lock"}
    kept |= set(os.listdir(folder))
    (folder / "poem").mkdir()
    (folder / "poem-0123456789ab").mkdir()  # prepared by a version that kept no record
    (folder / "notes.source.json").write_text("not a record")
    (folder / "poem-x.lock").touch()
    for changed in range(3):
        text.write_text(TEXT + changed * "x", encoding="utf-8")
        current = open_tokens(text).folder
        (folder / f"{current.name}.partial").mkdir()
        (folder / f"{current.name}.partial" / "train.bin").write_bytes(b"half")
        (folder / f"{current.name}.lock").touch()
        (folder / f"{current.name}.tokenizer.json.partial").touch()
    text.write_text(TEXT + "the last", encoding="utf-8")
    current = open_tokens(text).folder
    names = set(os.listdir(folder)) - kept
    assert current.name in names
    assert {name.split(".", 1)[-1] for name in names - {current.name}} == {"source.json", "tokenizer.json"}
    assert len(names) == 4 and kept <= set(os.listdir(folder))  # tokens and tokenizer, each with its record


def test_a_stale_folder_that_a_process_is_preparing_is_left(text):
    folder = prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        text.write_text(TEXT[::-1], encoding="utf-8")
        new = prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder
    assert is_prepared(folder) and is_prepared(new)
    text.write_text(TEXT + TEXT, encoding="utf-8")
    newest = prepare(open_corpus(text), CharTokenizer.of_text(TEXT)).folder
    assert not folder.exists() and not new.exists() and newest.exists()


def test_tokens_in_use_can_still_be_read_after_the_text_changes(text):
    prepared = open_tokens(text)
    text.write_text(TEXT[::-1], encoding="utf-8")
    open_tokens(text)
    assert prepared.tokenizer.decode(prepared.train) == TEXT[: len(prepared.train)]


def test_lock_is_removed_once_nothing_waits_for_it(text):
    folder = open_tokens(text).folder
    folder.with_name(f"{folder.name}.lock").touch()  # of a version that left it
    open_tokens(text)
    assert not list(folder.parent.glob("*.lock"))


# ---- Interrupted -----------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
sys.path.insert(0, {root!r})
import data.prepare
from data.corpora import open_corpus
from tokenization.characters import CharTokenizer
data.prepare.BATCH, data.prepare.SAVE_SECONDS = 1000, 0
class Slow(CharTokenizer):
    def encode_batch(self, texts):
        time.sleep(0.1)
        return super().encode_batch(texts)
path = sys.argv[1]
data.prepare.prepare(open_corpus(path), Slow.of_text(open(path, encoding="utf-8").read()))
"""


@pytest.fixture
def killed(text):
    """The partial folder of a preparation that was killed after a few saves."""
    text.write_text(TEXT * 12, encoding="utf-8")
    code = SLOW.format(root=str(ROOT))
    process = subprocess.Popen([sys.executable, "-c", code, str(text)], stderr=subprocess.PIPE, text=True)
    deadline, states = time.monotonic() + 60, []
    while time.monotonic() < deadline and not (states and json.loads(states[0].read_text())["pieces"] > 3):
        states = list((text.parent / "prepared").glob("poem-*.partial/done.json"))
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -9, process.stderr.read()
    return states[0].parent


def finish(text):
    prepared = prepare(open_corpus(text), CharTokenizer.of_text(TEXT))
    assert prepared.tokenizer.decode(prepared.train) + prepared.tokenizer.decode(prepared.val) == TEXT * 12


needs_sigkill = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")


@needs_sigkill
def test_killed_preparation_resumes(text, killed, capsys, encoded):
    done = json.loads((killed / "done.json").read_text())
    assert 0 < done["train"] < 0.9 * len(TEXT * 12)
    done["position"] = 7  # earlier versions saved this, too
    (killed / "done.json").write_text(json.dumps(done))
    with open(killed / "train.bin", "ab") as file:
        file.write(b"written after the last save")
    finish(text)
    assert sum(encoded) == len(TEXT * 12) - done["characters"] < len(TEXT * 12)
    assert "resuming" in capsys.readouterr().out


@needs_sigkill
@pytest.mark.parametrize("damage", [
    lambda folder: os.truncate(folder / "train.bin", 100),
    lambda folder: (folder / "val.bin").unlink(),
    lambda folder: (folder / "done.json").write_bytes(b"\0" * 60),
    lambda folder: (folder / "done.json").write_text('{"pieces": 3'),
    lambda folder: (folder / "done.json").write_text("[3]"),
    lambda folder: (folder / "done.json").write_text('{"pieces": "3", "characters": 3, "train": 3, "val": 0}'),
    lambda folder: (folder / "done.json").write_text('{"pieces": 3, "characters": 3, "train": -3, "val": 0}'),
    lambda folder: (folder / "done.json").write_text('{"pieces": 3, "characters": 3, "train": 1e400, "val": 0}'),
])
def test_damaged_partial_preparation_starts_over(text, killed, encoded, damage):
    if (killed / "val.bin").stat().st_size == 0:
        (killed / "val.bin").write_bytes(b"\0\0")
    damage(killed)
    finish(text)
    assert sum(encoded) == len(TEXT * 12)


@pytest.mark.parametrize("missing", ["train.bin", "val.bin", "both"])
def test_prepared_folder_that_lost_a_file_is_prepared_again(text, missing):
    folder = open_tokens(text).folder
    for name in ("train.bin", "val.bin") if missing == "both" else (missing,):
        (folder / name).unlink()
    prepared = open_tokens(text)
    assert prepared.folder == folder
    assert prepared.tokenizer.decode(prepared.train) + prepared.tokenizer.decode(prepared.val) == TEXT


def test_malformed_text_leaves_no_prepared_folder(tmp_path, text, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1)
    path = tmp_path / "mine" / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nthree\n')
    for _ in range(2):
        with pytest.raises(UserError, match="line 3"):
            prepare(open_corpus(path), CharTokenizer.of_text("enotw"))
    assert not [folder for folder in (tmp_path / "mine" / "prepared").iterdir() if is_prepared(folder)
                and folder.suffix != ".partial"]


def test_full_disk_is_one_line(text, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*No space left"):
        prepare(open_corpus(text), CharTokenizer.of_text(TEXT))


def test_failed_build_leaves_what_was_derived_before(tmp_path, monkeypatch):
    """A corpus changes, and building from its new version fails."""
    monkeypatch.setattr(cache, "FALLBACK", tmp_path / "fallback")
    corpus = SimpleNamespace(folder=tmp_path, name="c", identity=lambda: {"files": [["/c", 1, 2]]})
    first = cached_file(corpus, "what", ".x", lambda path: path.write_text("first"))
    corpus.identity = lambda: {"files": [["/c", 1, 3]]}
    with pytest.raises(ZeroDivisionError):
        cached_file(corpus, "what", ".x", lambda path: 1 / 0)
    assert first.read_text() == "first"


def test_memory_does_not_grow_with_the_text(text, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1 << 13)
    monkeypatch.setattr(blocks, "BLOCK", 1 << 13)
    monkeypatch.setattr(encodings, "HEAD", 1 << 13)
    monkeypatch.setattr(Files, "title", lambda self: "")  # it reads texts of up to 2 MB
    peaks = []
    for repeats in (5, 40):
        text.write_text(TEXT * repeats, encoding="utf-8")
        tracemalloc.start()
        prepare(open_corpus(text), CharTokenizer.of_text(TEXT))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 35 * len(TEXT) / 4  # one more byte per character would be four times as much
