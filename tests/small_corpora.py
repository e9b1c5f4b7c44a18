"""Small files of every format, and what a corpus makes of them, for tests."""

import csv
import importlib.util
import json

import pytest

from data.corpora import open_corpus
from reading.options import ReadOptions
from utils.errors import UserError

TEXTS = [f"Text {i} of many:\nit's {'very ' * (i % 7)}short, 第{i}首。" for i in range(40)]

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")


def text_of(corpus, split=None):
    return "".join(piece.text for piece in corpus.pieces() if split in (None, piece.split))


def documents(corpus, split=None):
    """The text of each document, joined from its pieces."""
    found, unfinished = [], {"train": "", "val": ""}
    for piece in corpus.pieces():
        unfinished[piece.split] += piece.text
        if piece.ends:
            found.append((piece.split, unfinished[piece.split]))
            unfinished[piece.split] = ""
    assert set(unfinished.values()) == {""}
    return [text for kind, text in found if split in (None, kind)]


def read(path, **options):
    """The documents of a file."""
    return documents(open_corpus(path, ReadOptions(**options)))


def error_of(path, **options):
    """The message of the UserError that a corpus must raise: one line."""
    with pytest.raises(UserError) as error:
        text_of(open_corpus(path, ReadOptions(**options)))
    assert "\n" not in str(error.value)
    return str(error.value)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path, rows, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path, rows, **options):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)
    return path
