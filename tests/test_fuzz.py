"""Mutated files of every kind: each is read as what it now contains, or refused in one line.

More of them: `pytest tests/test_fuzz.py tests/test_checkpoint.py tests/test_tokenizer.py tests/test_token_files.py
--fuzz 20`.
"""

import dataclasses
import json
import random
import re

import numpy as np
import pytest
import yaml
from small_corpora import TEXTS, documents, needs_pyarrow, text_of, write_csv, write_jsonl, write_parquet
from small_text import TEXT

from data.corpora import open_corpus
from data.prepare import open_tokens
from tokenization.characters import CharTokenizer
from training.arguments import parse_settings
from utils.errors import UserError

ROWS = [{"label": str(i), "text": text} for i, text in enumerate(TEXTS[:8])]
EDGES = [b"\0", b"\xff", b"\n", b"\r\n", b'"', b",", b"null", b"[" * 50, b"1e999", b"\\ud800",
         b"\xef\xbb\xbf", b": ", b"- "]


def mutate(content, draw):
    """Change a few random places of `content`: flip bits, insert, delete, repeat, or truncate."""
    for _ in range(draw.randrange(1, 4)):
        place, length = draw.randrange(len(content) + 1), draw.choice((1, 1, 2, 8, 100))
        before, part, after = content[:place], content[place : place + length], content[place + length :]
        kind = draw.randrange(6)
        if kind == 0:
            part = bytes(byte ^ 1 << draw.randrange(8) for byte in part)
        elif kind == 1:
            part = draw.randbytes(len(part))
        elif kind == 2:
            part = b""
        elif kind == 3:
            part = part * 3
        elif kind == 4:
            part = draw.choice(EDGES) + part
        else:
            after = after if draw.random() < 0.8 else b""
        content = before + part + after
    return content


def load_mutated(path, content, load, n):
    """Yield (mutated content, what `load()` returned) for those of n mutations of the file that load; check that the
    others are refused in one line, which names the file or what is in it."""
    draw = random.Random(path.name)
    loaded = 0
    for _ in range(n):
        mutated = mutate(content, draw)
        path.write_bytes(mutated)
        try:
            result = load()
        except UserError as error:
            assert str(error) and "\n" not in str(error)
        else:
            loaded += 1
            yield mutated, result
    assert loaded > n / 100  # or the comparison compares nothing


def with_line_feeds(text):
    return "\n".join(re.split("\r\n|\r|\n", text))


def without_surrogates(text):
    return with_line_feeds(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def test_text(tmp_path, fuzz):
    path = tmp_path / "a.txt"
    content = "".join(TEXTS).encode()
    compared = 0
    for mutated, text in load_mutated(path, content, lambda: text_of(open_corpus(path)), 300 * fuzz):
        try:
            expected = mutated.decode("utf-8-sig")
        except UnicodeDecodeError:  # read as another encoding, with the message that says so
            continue
        assert text == with_line_feeds(expected)
        compared += 1
    assert compared > 20


def test_jsonl(tmp_path, fuzz):
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    for mutated, texts in load_mutated(path, path.read_bytes(), lambda: documents(open_corpus(path)), 300 * fuzz):
        lines = with_line_feeds(mutated.decode("utf-8-sig", "surrogateescape")).split("\n")
        rows = [json.loads(line) for line in lines if line.strip(" \t\r\n\x1a")]
        expected = [without_surrogates(row["text"]) for row in rows if row.get("text")]
        if "text" in {name for row in rows for name in row}:  # else another column is the only one
            assert texts == expected


def test_json(tmp_path, fuzz):
    path = tmp_path / "a.json"
    content = json.dumps(ROWS, ensure_ascii=False).encode()
    for mutated, texts in load_mutated(path, content, lambda: documents(open_corpus(path)), 300 * fuzz):
        items = json.loads(with_line_feeds(mutated.decode("utf-8-sig")))
        expected = [without_surrogates(item["text"] if isinstance(item, dict) else item) for item in items
                    if isinstance(item, str) or item and item.get("text")]
        assert texts == [text for text in expected if text]


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_csv(tmp_path, fuzz, delimiter):
    path = write_csv(tmp_path / ("a.csv" if delimiter == "," else "a.tsv"), ROWS)
    content = path.read_bytes() if delimiter == "," else b"label\ttext\n1\tone word\n2\ttwo words\n3\tthree words\n"
    for mutated, texts in load_mutated(path, content, lambda: documents(open_corpus(path)), 300 * fuzz):
        assert sum(len(text.encode()) for text in texts) <= 4 * len(mutated)  # at most UTF-8 for one byte each


@needs_pyarrow
def test_parquet(tmp_path, fuzz):
    import pyarrow.parquet

    path = write_parquet(tmp_path / "a.parquet", ROWS)
    for _, texts in load_mutated(path, path.read_bytes(), lambda: documents(open_corpus(path)), 200 * fuzz):
        column = pyarrow.parquet.read_table(path, columns=["text"]).column("text")
        expected = [value.as_py() for value in column]
        assert texts == [without_surrogates(text) for text in expected if text]


def test_token_files(tmp_path, fuzz):
    vocab = "".join(sorted(set(TEXT)))
    CharTokenizer(vocab).save(tmp_path / "tokenizer.json")
    path = tmp_path / "train.bin"
    content = np.array(CharTokenizer(vocab).encode(TEXT), "<u2").tobytes()
    (tmp_path / "val.bin").write_bytes(content[:200])
    for mutated, prepared in load_mutated(path, content, lambda: open_tokens(tmp_path), 300 * fuzz):
        assert np.array_equal(prepared.train, np.frombuffer(mutated, "<u2"))


def test_yaml(tmp_path, fuzz):
    path = tmp_path / "mine.yaml"
    settings = dataclasses.asdict(parse_settings(["--run=a", "--model.name=GPT2", "--training.batch_size=3"]))
    del settings["resume"]
    content = yaml.safe_dump(settings, sort_keys=False).encode()
    defaults = parse_settings([])
    for mutated, parsed in load_mutated(path, content, lambda: parse_settings([str(path)]), 300 * fuzz):
        found = yaml.load(mutated.decode("utf-8-sig"), yaml.BaseLoader)  # every value as text
        for section in ("data", "model", "optim", "training", "lora", "output", "sampling"):
            for name, value in (found.get(section) or {}).items():
                used = getattr(getattr(parsed, section), name)
                if value == "":  # a blank value is left out
                    assert used == getattr(getattr(defaults, section), name)
                elif isinstance(used, str) and isinstance(value, str) and "path" not in name and name != "folder":
                    assert used == value
                elif type(used) is int:
                    assert float(value.strip("\ufeff")) == used
