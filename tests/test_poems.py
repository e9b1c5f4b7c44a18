"""records/poems.py: cleaning, reading, and requests."""

import json
import os
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import records.poems
from data.corpora import open_corpus
from reading.options import DEFAULTS
from records.dialogues import poem_dialogues
from records.poems import GENERAL_REQUESTS, clean, parse_poem, read_poems, requests
from records.report import DataReport
from utils.errors import UserError

SONG = Path(__file__).parents[2] / "shared" / "data" / "poems" / "song_ci.json"

FILE = "title:偶然\ndate:1926\n\n我是天空里的一片云，\n偶尔投影在你的波心——\n\n你我相逢在黑夜的海上，\n"
POEM = {"title": "偶然", "author": "徐志摩",
        "para": ["我是天空里的一片云，", "偶尔投影在你的波心——", "", "你我相逢在黑夜的海上，"]}
POEMS = [{"title": f"诗{i:03}", "para": [f"第{i:03}首", "", "月亮"], "author": f"作者{i % 7}"} for i in range(100)]


@pytest.fixture
def folder(tmp_path):
    """The folder of an author, with one valid poem."""
    author = tmp_path / "poems" / "徐志摩_xuzhimo"
    author.mkdir(parents=True)
    (author / "偶然.pt").write_text(FILE, encoding="utf-8", newline="")
    return author


# ---- Cleaning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [
    FILE.encode(), FILE.encode("utf-8-sig"), FILE.encode("gb18030"), FILE.encode("utf-16"),
    FILE.replace("\n", "\r\n").encode(), FILE.replace("\n", "\r").encode(), FILE.rstrip("\n").encode(),
    FILE.replace("date:1926\n", "").encode(), FILE.replace("1926", "").encode(),
    FILE.replace(":", "：").encode(), FILE.replace(":", ": ").encode(),
    FILE.replace("\n\n你", "\n \n\u3000\n\n\t\n你").encode(), ("\n\n" + FILE + "\n \n").encode(),
    FILE.replace("\n我", "\n\n\u3000\u3000我").replace("，\n", "， \t\n").encode(),
    FILE.replace("\n\n我", "\n我").encode(),
])  # fmt: skip
def test_a_poem_is_read_in_any_encoding_and_layout(folder, content):
    (folder / "偶然.pt").write_bytes(content)
    assert clean(folder.parent) == ([POEM], [])


@pytest.mark.parametrize("name, author", [
    ("徐志摩_xuzhimo", "徐志摩"), ("向明_1_xiangming1", "向明"), ("佚名", "佚名"),
])  # fmt: skip
def test_the_author_is_the_part_of_the_folder_name_before_the_pinyin(folder, name, author):
    folder.rename(folder.with_name(name))
    [poem], _ = clean(folder.parent)
    assert poem["author"] == author


def test_poems_are_sorted_by_path_and_other_files_are_ignored(folder):
    other = folder.with_name("艾青_aiqing")
    other.mkdir()
    for name in ("b.pt", "a.pt", "README.md", "c.pt.bak"):
        (other / name).write_text(f"title:{name}\ndate:\n\n诗\n", encoding="utf-8")
    (folder.parent / "top.pt").write_text(FILE, encoding="utf-8")
    (other / "folder.pt").mkdir()
    poems, broken = clean(folder.parent)
    assert [poem["title"] for poem in poems] == ["偶然", "a.pt", "b.pt"] and broken == []


DAMAGED = {
    "no_title.pt": (FILE.split("\n", 1)[1].encode(), "title"),
    "title_only_a_mark.pt": (b"title:\ndate:\n\n" + "诗".encode(), "title"),
    "text_first.pt": ("诗\n".encode() + FILE.encode(), "title"),
    "tensors.pt": (b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl\x80\x02}q\x00." + bytes(range(256)), "ZIP"),
    "no_encoding.pt": (FILE.encode() + b"\xff\xfe\xff", "0xff"),
    "cut_character.pt": (FILE.encode()[:-3], ""),
}
EMPTY = {
    "no_bytes.pt": (b"", "the file is empty"),
    "blank.pt": (" \r\n\n\u3000".encode(), "the file is empty"),
    "no_text.pt": ("title:无\ndate:\n\n \n\n".encode(), "no text"),
    "title_alone.pt": ("title:无".encode(), "no text"),
}


def test_damaged_and_empty_poems_are_skipped_with_the_reason(folder):
    for name, (content, _) in (DAMAGED | EMPTY).items():
        (folder / name).write_bytes(content)
    poems, skipped = clean(folder.parent)
    assert poems == [POEM]
    reasons = {path.name: reason for path, reason in skipped}
    assert reasons.keys() == (DAMAGED | EMPTY).keys()
    for name, (_, quoted) in (DAMAGED | EMPTY).items():
        assert quoted in reasons[name]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links without privileges")
def test_a_dangling_link_is_skipped(folder):
    (folder / "link.pt").symlink_to(folder / "nothing")
    _, [(path, reason)] = clean(folder.parent)
    assert path.name == "link.pt" and "cannot read" in str(reason)


@pytest.mark.skipif(sys.platform != "linux", reason="needs file names of arbitrary bytes")
def test_a_folder_name_that_is_not_utf_8_is_skipped(folder):
    os.rename(folder, os.path.join(os.fsencode(folder.parent), "徐志摩_xuzhimo".encode("gb18030")))
    poems, [(_, reason)] = clean(folder.parent)
    assert poems == [] and "not UTF-8" in str(reason)


@settings(deadline=None, database=None, max_examples=50)
@given(st.lists(st.lists(st.text("床前明月光，a ", min_size=1).filter(str.strip), min_size=1), min_size=1))
def test_all_stanzas_are_kept(stanzas):
    stanzas = [[line.strip() for line in stanza] for stanza in stanzas]
    text = "title:诗\ndate:\n\n" + "\n\n".join("\n".join(stanza) for stanza in stanzas)
    _, lines = parse_poem(text)
    assert "\n".join(lines).split("\n\n") == ["\n".join(stanza) for stanza in stanzas]


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(run_main):
    return partial(run_main, records.poems.main)


def test_the_command_writes_all_poems_and_lists_skipped_files(folder, command, tmp_path):
    for name, (content, _) in (DAMAGED | EMPTY).items():
        (folder / name).write_bytes(content)
    lines = command("clean", folder.parent, "--out", tmp_path / "new" / "all_poems.json").splitlines()
    assert json.loads((tmp_path / "new" / "all_poems.json").read_text(encoding="utf-8")) == [POEM]
    assert read(tmp_path / "new" / "all_poems.json")[0] == [POEM]
    assert lines[-2:] == ["1 poem of 1 author; skipped 10 files", f"written to {lines[-1].split()[-1]}"]
    named = [Path(line.split(": ")[1]).name for line in lines if line.startswith("skipped: ")]
    assert sorted(named) == sorted(DAMAGED | EMPTY)


@pytest.mark.parametrize("change, quoted", [
    (lambda folder: (folder / "偶然.pt").unlink(), "no folders that contain .pt files"),
    (lambda folder: (folder / "偶然.pt").write_bytes(b""), "contains no valid poem"),
    (lambda folder: folder.rename(folder.parents[1] / "elsewhere"), "no folders that contain .pt files"),
])  # fmt: skip
def test_without_a_poem_nothing_is_written(folder, command, capsys, tmp_path, change, quoted):
    (tmp_path / "all.json").write_text("before")
    change(folder)
    with pytest.raises(SystemExit) as end:
        command("clean", folder.parent, "--out", tmp_path / "all.json")
    assert end.value.code == 2 and (tmp_path / "all.json").read_text() == "before"
    assert re.fullmatch(r"error: .*\n", err := capsys.readouterr().err) and quoted in err


# ---- Reading ---------------------------------------------------------------------------------------------------------


def read(*files):
    """(poems, report) of .json files."""
    report = DataReport(files[0] if len(files) == 1 else [*files], "poems")
    return read_poems(files, DEFAULTS, report), report


def test_invalid_poems_in_a_file_are_skipped_and_counted(tmp_path):
    found = [POEM, {}, POEM | {"para": []}, POEM | {"para": ["", " "]}, POEM | {"title": " "},
             POEM | {"author": None}, POEM | {"para": "text"}, POEM | {"para": [1]}, "poem", None,
             POEM | {"author": ""}, POEM | {"date": "1926"}]
    (tmp_path / "all.json").write_text(json.dumps(found))
    poems, report = read(tmp_path / "all.json")
    assert poems == [POEM, POEM | {"author": ""}, POEM]
    assert report.skipped == {
        "no title, author, para": (1, "item 2"), "no title or no text": (3, "item 3"), "no author": (1, "item 6"),
        "values that are not text": (2, "item 7"), "it is text, not an object": (1, "item 9"),
        "it is null, not an object": (1, "item 10"),
    }


def test_several_files_of_poems_are_joined_and_places_name_the_file(tmp_path):
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, items in zip(files, ([POEM], [1, POEM | {"title": "t"}]), strict=True):
        file.write_text(json.dumps(items))
    poems, report = read(*files)
    assert poems == [POEM, POEM | {"title": "t"}]
    assert report.skipped == {"it is a number, not an object": (1, f"{files[1]}, item 1")}


def test_paragraphs_are_lines_too(tmp_path):
    poem = {"author": POEM["author"], "paragraphs": POEM["para"], "title": POEM["title"], "id": "7"}
    (tmp_path / "all.json").write_text(json.dumps([poem]))
    assert read(tmp_path / "all.json")[0] == [POEM]


@pytest.mark.parametrize("content, quoted", [
    (b"", "all.json is not valid JSON"), (b"[{]", "not valid JSON"), (b"[" * 100_000, "not valid JSON"),
    (b"{}", "is an object, not a list"), (b"[]", "contains no poems: it is empty"),
    (b"[1]", "item 1: it is a number, not an object"),
    (b"\xff\xff\xff", "all.json"), (b'[{"author": "a", "rhythmic": "t", "paragraphs": ["x"]}]', "item 1: no title"),
    (b'[{"title": "t", "author": "a", "content": ["x"]}]', "item 1: no para"),
])  # fmt: skip
def test_a_file_without_poems_is_one_line(tmp_path, content, quoted):
    (tmp_path / "all.json").write_bytes(content)
    with pytest.raises(UserError, match=quoted) as error:
        read(tmp_path / "all.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("item, refused", [
    (POEM, True), (POEM | {"title": None}, True), ({"paragraphs": ["x"]}, True), (POEM | {"text": "x"}, False),
    ({"para": "x"}, False),
])  # fmt: skip
def test_a_language_model_is_not_trained_on_poems(tmp_path, item, refused):
    (tmp_path / "all.json").write_text(json.dumps([item]))
    (tmp_path / "b.txt").write_text("text")
    for paths in (tmp_path / "all.json", [tmp_path / "b.txt", tmp_path / "all.json"]):
        if refused:
            with pytest.raises(UserError, match="all.json contains poems, .*--task poem"):
                list(open_corpus(paths).pieces())
        else:
            assert "x" in [piece.text for piece in open_corpus(paths).pieces()]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.json"):
        poem_dialogues(tmp_path / "none.json", DEFAULTS, DataReport("none.json", "poems"))


@pytest.mark.skipif(not SONG.is_file(), reason=f"the poems are not in {SONG}")
def test_song_lyrics_are_poems():
    poems, report = read(SONG)
    assert len(poems) == 21050 and poems[0]["title"] == "导引" and report.skipped == {}


# ---- Training --------------------------------------------------------------------------------------------------------


def kinds_of(requests_and_poems):
    """The number of requests of each kind; a general request is its own kind."""
    by_text = {"\n".join(poem["para"]): poem for poem in POEMS}
    kinds = Counter()
    for request, text in requests_and_poems:
        poem = by_text[text]
        expected = {poem["title"]: "title", f"{poem['author']}《{poem['title']}》": "author"}
        kinds[expected.get(request, request)] += 1
    return kinds


def test_of_ten_requests_six_are_titles_three_name_the_author_and_one_is_general():
    found = list(requests(POEMS, seed=1))
    assert sorted(text for _, text in found) == sorted("\n".join(poem["para"]) for poem in POEMS)  # stanzas kept
    kinds = kinds_of(found)
    assert kinds["title"] == 60 and kinds["author"] == 30
    assert sum(kinds[request] for request in GENERAL_REQUESTS) == 10


def test_order_and_requests_depend_on_the_seed():
    first, again, other = ([*requests(POEMS, seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert [text for _, text in first] != [text for _, text in other]  # another order
    assert sorted(first) != sorted(other)  # and other requests for the same poems


def test_a_poem_without_an_author_is_requested_by_its_title():
    found = [request for request, _ in requests([poem | {"author": ""} for poem in POEMS], seed=1)]
    assert sum(request.startswith("诗") and len(request) == 4 for request in found) == 90
