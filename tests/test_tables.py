"""reading/tables.py: documents from .jsonl, .csv, .tsv, .parquet and .json files, valid, unusual and malformed."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from small_corpora import (
    TEXTS,
    documents,
    error_of,
    needs_pyarrow,
    read,
    write_csv,
    write_jsonl,
    write_parquet,
)

from data.corpora import open_corpus
from reading.options import ReadOptions

ROOT = Path(__file__).resolve().parents[1]
KINDS = ["jsonl", "csv", pytest.param("parquet", marks=needs_pyarrow)]
WRITE = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


def write(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


# ---- Every format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_from_the_text_column(tmp_path, kind):
    texts = [*TEXTS, 'comma, "quotes"\nand lines', "long " * 50_000, "null", "NA", "None", "nan"]
    path = WRITE[kind](tmp_path / f"a.{kind}", [{"label": "1", "review": text} for text in texts])
    corpus = open_corpus(path, ReadOptions("review"))
    assert sorted(documents(corpus)) == sorted(texts)
    assert documents(corpus, "val") == texts[1::10]
    named_text = WRITE[kind](tmp_path / f"b.{kind}", [{"label": "1", "text": text} for text in texts])
    only_one = WRITE[kind](tmp_path / f"c.{kind}", [{"verse": text} for text in TEXTS])
    assert read(named_text) == texts and read(only_one) == TEXTS


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig", "utf-32"])
def test_rows_may_be_in_another_encoding(tmp_path, encoding):
    path = write_csv(tmp_path / "a.csv", [{"label": "1", "review": text} for text in TEXTS], encoding)
    assert read(path, column="review") == TEXTS
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
    assert read(write(tmp_path, "a.jsonl", lines.encode(encoding))) == TEXTS
    assert read(write(tmp_path, "a.json", json.dumps(TEXTS, ensure_ascii=False).encode(encoding))) == TEXTS


@pytest.mark.parametrize("kind", ["jsonl", pytest.param("parquet", marks=needs_pyarrow)])
def test_empty_and_missing_texts_are_skipped(tmp_path, capsys, kind):
    path = WRITE[kind](tmp_path / f"a.{kind}", [{"text": text} for text in ("one", "", None, "two", "three")])
    corpus = open_corpus(path)
    for _ in range(2):
        assert [(piece.text, piece.split) for piece in corpus.pieces()] == [
            ("one", "train"), ("two", "val"), ("three", "train")]
    assert capsys.readouterr().out == f"{path}: skipped 1 of 5 rows, which have no text\n"  # once
    assert "no row has a text" in error_of(WRITE[kind](tmp_path / f"b.{kind}", [{"text": None}] * 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_raises_an_error_that_lists_the_existing_ones(tmp_path, kind):
    path = WRITE[kind](tmp_path / f"a.{kind}", [{"label": "1", "review": "good"}])
    assert "label, review" in (message := error_of(path, column="reviews")) and "reviews" in message
    assert "label, review" in (message := error_of(path)) and "--data.column" in message


@pytest.mark.parametrize("kind", [*KINDS, "tsv"])
def test_an_empty_table_is_an_empty_text(tmp_path, kind):
    assert read(write(tmp_path, f"a.{kind}", b"")) == []
    if kind != "parquet":
        assert read(write(tmp_path, f"a.{kind}", b"\n \r\n\x1a")) == []
    text = write(tmp_path, "b.txt", "0123456789")
    assert documents(open_corpus([text, tmp_path / f"a.{kind}"])) == ["012345678", "9"]


@pytest.mark.parametrize("content, name", [
    (b'{"text": "a\\r\\nb\\u00e9"}', "a.jsonl"), (b'text\r\n"a\r\nb\xc3\xa9"\r\n', "a.csv"),
    (b'text\r"a\rb\xc3\xa9"\r', "a.csv"), (b'["a\\r\\nb\\u00e9"]', "a.json")])
def test_line_ends_inside_texts_become_line_feeds(tmp_path, content, name):
    assert read(write(tmp_path, name, content)) == ["a\nbé"]


@pytest.mark.parametrize("name, content", [
    ("a.jsonl", '{"text": "a"}\n{"text": "%s"}\n'), ("a.csv", "text,n\na,1\n%s,2\n"),
    ("a.csv", 'text,n\na,1\n"%s",2\n'),
    ("a.csv", 'text,n\na,1\n"' + "%s" % ("y" * 50 + "\n") * 200 + '%s",2\n')])
def test_a_huge_field_is_refused_with_its_line(tmp_path, monkeypatch, name, content):
    for module in ("text_files", "csv_files"):
        monkeypatch.setattr(f"reading.{module}.LIMIT", 5000)
    path = write(tmp_path, name, content.replace("%s", "x" * 4000))
    if len(content) < 1000:
        assert read(path)[1] == "x" * 4000
    message = error_of(write(tmp_path, name, content.replace("%s", "x" * 6000)))
    assert f"{path}, line " in message and ("line 2" in message or "line 3" in message)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_memory_does_not_grow_with_the_file_or_its_lines(tmp_path, monkeypatch, name):
    monkeypatch.setattr("reading.text_files.LIMIT", 1 << 20)
    row = {"a.jsonl": '{"text": "%s"}\n', "a.csv": '"%s"\n'}[name] % ("word " * 200)
    head = "" if name == "a.jsonl" else "text\n"
    endless = write(tmp_path, f"b{name}", head + '{"text": "' + "x" * 40_000_000)
    path = write(tmp_path, name, head + row * 40_000)  # 40 MB
    tracemalloc.start()
    try:
        assert sum(1 for _ in open_corpus(path).pieces()) == 40_000
        error_of(endless)
        assert tracemalloc.get_traced_memory()[1] < 25_000_000
    finally:
        tracemalloc.stop()


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, expected, skipped", [
    ([{"text": "one", "lang": "en"}, {"lang": "en"}, {"text": "three", "lang": "en"}], ["one", "three"], "1 of 3"),
    ([{"lang": "en"}, {"lang": "en", "text": "two"}], ["two"], "1 of 2"),
    ([{"poem": "a", "n": 1}, {"poem": "b"}, {}], ["a", "b"], "1 of 3"),
    ([{"a": "x", "text": "t"}, *[{"a": "y"}] * 200], ["t"], "200 of 201"),
])
def test_the_column_of_a_jsonl_file_is_decided_once(tmp_path, capsys, rows, expected, skipped):
    assert read(write_jsonl(tmp_path / "a.jsonl", rows)) == expected
    assert f"skipped {skipped} rows" in capsys.readouterr().out


def test_the_given_column_may_first_appear_late(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 200 + [{"verse": "late"}])
    assert read(path, column="verse") == ["late"]


def test_an_unpaired_surrogate_becomes_the_replacement_character(tmp_path):
    assert read(write(tmp_path, "a.jsonl", r'{"text": "a\ud83d b\ud83d\ude00"}')) == ["a\ufffd b😀"]


@pytest.mark.parametrize("lines, words", [
    (['{"text": "a"}', '{"text": "b"'], ["line 2", "JSON"]),
    (['{"text": "a"}', "", '["b"]'], ["line 3", "list"]),
    (['{"text": 7}'], ["line 1: text is a number, not text"]),
    (['{"item": 7}'], ["line 1: item is a number, not text: pass"]),
    (['{"text": ' + "9" * 5000 + "}"], ["line 1"]),
    (['{"a": "x", "b": "y"}'], ["a, b", "--data.column"]),
    (['{"a": "x"}', '{"b": "y"}'], ["a, b", "--data.column"]),
    (["[" * 100_000], ["line 1", "JSON"]),
    (['{"text": ' + '{"a": ' * 100_000], ["line 1", "JSON"]),
    (["{}"], ["--data.column"]),
])
def test_a_bad_jsonl_line_is_reported_with_its_number(tmp_path, lines, words):
    message = error_of(write(tmp_path, "a.jsonl", "\n".join(lines) + "\n"))
    assert all(word in message for word in [str(tmp_path / "a.jsonl"), *words]), message


@pytest.mark.parametrize("items", [
    TEXTS, [{"text": text} for text in TEXTS], [{"text": text, "id": i} for i, text in enumerate(TEXTS)],
    [{"body": text} for text in TEXTS], [None, *TEXTS]])
def test_a_json_file_may_be_a_list_of_documents(tmp_path, items):
    path = write(tmp_path, "a.json", json.dumps(items))
    corpus = open_corpus(path)
    assert documents(corpus) == TEXTS and documents(corpus, "val") == TEXTS[1::10]
    assert corpus.title() == "a text of your own" and list(corpus.pieces())[-1].position == path.stat().st_size
    more = write(tmp_path, "b.txt", "0123456789")
    assert documents(open_corpus([path, more])) == ["012345678", "9", *TEXTS]


@pytest.mark.parametrize("content, words", [
    (b"", ["not valid JSON"]), (b"[{]", ["not valid JSON"]), (b"[" * 100_000, ["not valid JSON"]),
    (b'{"text": "a"}', ["is an object, not a list"]), (b"null", ["is null, not a list"]),
    (b"[7]", ["item 1 is a number, not text"]), (b'["a", ["b"]]', ["item 2 is a list, not text"]),
    (b'[{"a": "x", "b": "y"}]', ["a, b", "--data.column"]), (b"[null]", ["no row has a text"]),
    (b'[{"text": 1}]', ["item 1: text is a number, not text"]), (b'[{"text": 0.5}]', ["text is a number"]),
    (b'[{"text": true}]', ["text is true or false, not text"]), (b'[{"text": {}}]', ["text is an object, not text"]),
])
def test_bad_json_is_one_line(tmp_path, content, words):
    message = error_of(write(tmp_path, "a.json", content))
    assert all(word in message for word in [str(tmp_path / "a.json"), *words]), message


def test_a_large_json_file_is_refused_before_it_is_read(tmp_path):
    path = write(tmp_path, "a.json", b"")
    os.truncate(path, (1 << 28) + 1)  # takes no space
    assert "save it as .jsonl" in error_of(path)


# ---- CSV -------------------------------------------------------------------------------------------------------------

PROSE = ['He said: "no, never; not me"', "One, two, three; four | five", "Nothing here", "Tabs\tand, commas"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoted", [True, False])
def test_the_delimiter_is_detected_though_the_texts_contain_others(tmp_path, delimiter, quoted):
    texts = [text.replace(delimiter, " ") for text in PROSE]
    if quoted:
        cells = ['"{}"'.format(text.replace('"', '""')) for text in PROSE]
        texts = PROSE
    else:
        cells = texts
    rows = [delimiter.join(["id", "text", "n"])]
    rows += [delimiter.join([str(i), cell, "7"]) for i, cell in enumerate(cells)]
    for suffix in ("csv", "tsv"):
        assert read(write(tmp_path, f"a.{suffix}", "\r\n".join(rows))) == texts
    assert read(write(tmp_path, "a.csv", "\n".join(rows).replace("text", "review", 1)), column="review") == texts
    given = ReadOptions(column="text", delimiter={"\t": "tab"}.get(delimiter, delimiter))
    assert documents(open_corpus(write(tmp_path, "a.csv", "\n".join(rows)), given)) == texts


def test_a_given_delimiter_may_be_any_character(tmp_path):
    path = write(tmp_path, "a.csv", "id~text\n1~a, b; c\n")
    assert read(path, delimiter="~") == ["a, b; c"]
    for delimiter in ("ab", "", '"', "\n"):
        assert "--data.delimiter" in error_of(path, delimiter=delimiter)


@pytest.mark.parametrize("content, expected", [
    ('id, text\n1, one\n2, "two, 2"\n', ["one", "two, 2"]),
    ("sep=,\nid,text\n1,one\n", ["one"]),
    ("sep=;\r\nid;text\r\n1;a, b\r\n", ["a, b"]),
    ('"sep=|"\nid|text\n1|a\n', ["a"]),
    ("\ufeffsep=\t\nid\ttext\n1\ta\n", ["a"]),
    ("\n\n \nid,text\n\n1,one\n \n2,two\n\n", ["one", "two"]),
    ("id,text\r\n1,one\r\n\x1a", ["one"]),
    ("id,text\n1,one\n,\n", ["one"]),
    ('id,text\n1,"one\r\n\r\ntwo"\n', ["one\n\ntwo"]),
    ("text ,n\none,1\n", ["one"]),
    ("id,text\r1,one\r2,two\r", ["one", "two"]),
    ('text\n"one, two"\nthree\n', ["one, two", "three"]), ('"text"\n"a ""quoted"" word"\n', ['a "quoted" word']),
    ("text,n\nnull,1\nNA,2\n007,3\n1e5,4\nTrue,5\n", ["null", "NA", "007", "1e5", "True"]),
    ("text,n\n  indented,1\n", ["  indented"]),
])
def test_unusual_csv_is_read(tmp_path, content, expected):
    assert read(write(tmp_path, "a.csv", content)) == expected


@pytest.mark.parametrize("content, expected", [
    ("It was the best of times\nIt was the worst\n", ["It was the best of times", "It was the worst"]),
    ('"Hello, world."\n"Yes, you"\n', ["Hello, world.", "Yes, you"]),
    ("床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n", ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。"]),
    ("verse\nIt was the best of times\nIt was the worst\n", ["It was the best of times", "It was the worst"]),
    ("text\nfox\nowl\n", ["fox", "owl"]), ("评论\n很好，不错。\n", ["很好，不错。"]),
])
def test_a_single_column_without_a_header_keeps_its_first_row(tmp_path, capsys, content, expected):
    assert read(write(tmp_path, "a.csv", content)) == expected
    first = content.partition("\n")[0]
    out = capsys.readouterr().out
    assert ("the first row is the name of the column" in out) == (first in ("verse", "评论"))
    assert ("the first row is a text" in out) == (expected[0] == first.strip('"'))


def test_a_single_column_of_words_is_ambiguous(tmp_path):
    path = write(tmp_path, "a.csv", "fox\nowl\nhen\n")
    assert all(word in error_of(path) for word in ("fox", "--data.column", "`text`"))
    assert read(path, column="fox") == ["owl", "hen"]


@pytest.mark.parametrize("content, words", [
    ("text,n\none,1\ntwo, with a comma,2\n", ["line 3", "3 fields"]),
    ("text,n\none\n", ["line 2", "1 field,"]),
    ('text,n\n"one,1\ntwo,2\n', ["line 2", "quotes"]),
    ('text,n\nzero,0\n"one,1\n' + "two,2\n" * 500, ["line 3", "quotes"]),
    ('text,n\nzero,0\n\n"one,1\ntwo,"2"\n', ["line 4", "quotes"]),
    ('text\tn\nzero, or so\t0\n"one\t1\ntwo\t2\n', ["line 3", "quotes"]),
    ('text,n\n"one"x,1\n', ["line 2", "CSV"]),
    ("Good hotel,1\nBad hotel,0\n", ["first row", "Good hotel, 1", "--data.column"]),
    ("It was the best, I think, of times\nIt was the worst\n", ["line 2", "first row", "--data.delimiter"]),
])
def test_a_bad_csv_row_is_reported_with_the_line_where_it_starts(tmp_path, content, words):
    message = error_of(write(tmp_path, "a.csv", content))
    assert all(word in message for word in [str(tmp_path / "a.csv"), *words]), message


# ---- Parquet ---------------------------------------------------------------------------------------------------------


@needs_pyarrow
def test_bad_parquet_raises_one_line(tmp_path):
    whole = write_parquet(tmp_path / "a.parquet", [{"text": text} for text in TEXTS]).read_bytes()
    for content in (b"no parquet", whole[:-20], whole[:100] + bytes(200) + whole[300:]):
        assert str(tmp_path / "a.parquet") in error_of(write(tmp_path, "a.parquet", content))
    write_parquet(tmp_path / "a.parquet", [{"text": 1}])
    assert "row 1: text is a number, not text" in error_of(tmp_path / "a.parquet")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in error_of(write(tmp_path, "a.parquet", b"PAR1"))


@needs_pyarrow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_parquet_metadata_cannot_claim_more_memory_than_the_file_is_long(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{"text": f"Text {i}", "n": i} for i in range(5)])
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    schema = content.index(b"\x19", footer)
    hostile = [content[:schema + 1] + b"\xfc\xff\xff\x1c" + content[schema + 5:]]
    code = ("import sys; from data.corpora import open_corpus; from utils.errors import UserError\n"
            "import pyarrow.parquet\n"
            "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
            "before = peak()\n"
            "try: list(open_corpus(sys.argv[1]).pieces())\n"
            "except UserError: print(peak() - before)\n")
    for content in hostile:
        path.write_bytes(content)
        done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, text=True, capture_output=True)
        assert int(done.stdout) < 50_000, done.stderr  # KiB


@needs_pyarrow
def test_parquet_that_expands_a_thousandfold_is_refused(tmp_path):
    import pyarrow.parquet

    path = write_parquet(tmp_path / "a.parquet", [{"text": " " * 50_000_000}], compression="zstd", use_dictionary=False,
                         write_statistics=False)
    assert path.stat().st_size < 50_000
    before = pyarrow.total_allocated_bytes()
    assert "would expand" in error_of(path) and pyarrow.total_allocated_bytes() <= before
    ordinary = [{"text": "the same text"}] * 100_000
    assert len(read(write_parquet(path, ordinary, compression="zstd"))) == 100_000
