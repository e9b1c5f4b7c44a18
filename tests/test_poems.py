"""Poems: what cleaning keeps and leaves out, and the examples that are made of them."""

import doctest
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

import data.poems
from data.corpora import open_corpus
from data.poems import GENERAL_REQUESTS, clean, parse_poem, read_poems, requests
from data.prepare import open_tokens
from utils.errors import UserError

SONG = Path(__file__).parents[2] / "shared" / "data" / "poems" / "song_ci.json"

FILE = "title:偶然\ndate:1926\n\n我是天空里的一片云，\n偶尔投影在你的波心——\n\n你我相逢在黑夜的海上，\n"
POEM = {"title": "偶然", "author": "徐志摩",
        "para": ["我是天空里的一片云，", "偶尔投影在你的波心——", "", "你我相逢在黑夜的海上，"]}
POEMS = [{"title": f"诗{i:03}", "para": [f"第{i:03}首", "", "月亮"], "author": f"作者{i % 7}"} for i in range(100)]


@pytest.fixture
def folder(tmp_path):
    """A folder with one good poem, and a function that puts a file of some bytes beside it."""
    author = tmp_path / "poems" / "徐志摩_xuzhimo"
    author.mkdir(parents=True)
    (author / "偶然.pt").write_text(FILE, encoding="utf-8", newline="")
    return author


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(data.poems).failed == 0


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
def test_a_poem_is_read_however_it_is_written(folder, content):
    (folder / "偶然.pt").write_bytes(content)
    assert clean(folder.parent) == ([POEM], [])


@pytest.mark.parametrize("name, author", [
    ("徐志摩_xuzhimo", "徐志摩"), ("向明_1_xiangming1", "向明"), ("佚名", "佚名"),
])  # fmt: skip
def test_the_author_is_what_stands_before_the_pinyin(folder, name, author):
    folder.rename(folder.with_name(name))
    [poem], _ = clean(folder.parent)
    assert poem["author"] == author


def test_poems_come_in_the_order_of_their_names_and_other_files_are_left_alone(folder):
    other = folder.with_name("艾青_aiqing")
    other.mkdir()
    for name in ("b.pt", "a.pt", "README.md", "c.pt.bak"):
        (other / name).write_text(f"title:{name}\ndate:\n\n诗\n", encoding="utf-8")
    (folder.parent / "top.pt").write_text(FILE, encoding="utf-8")
    (other / "folder.pt").mkdir()
    poems, broken = clean(folder.parent)
    assert [poem["title"] for poem in poems] == ["偶然", "a.pt", "b.pt"] and broken == []


BROKEN = {
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


def test_broken_and_empty_poems_are_skipped_with_the_reason(folder):
    for name, (content, _) in (BROKEN | EMPTY).items():
        (folder / name).write_bytes(content)
    poems, skipped = clean(folder.parent)
    assert poems == [POEM]
    reasons = {path.name: reason for path, reason in skipped}
    assert reasons.keys() == (BROKEN | EMPTY).keys()
    for name, (_, quoted) in (BROKEN | EMPTY).items():
        assert quoted in reasons[name]


@pytest.mark.skipif(os.name == "nt", reason="needs links that anybody may make")
def test_a_link_to_nothing_is_broken(folder):
    (folder / "link.pt").symlink_to(folder / "nothing")
    _, [(path, reason)] = clean(folder.parent)
    assert path.name == "link.pt" and "cannot read" in str(reason)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system that takes any bytes as a name")
def test_a_folder_whose_name_is_no_text_is_broken(folder):
    os.rename(folder, os.path.join(os.fsencode(folder.parent), "徐志摩_xuzhimo".encode("gb18030")))
    poems, [(_, reason)] = clean(folder.parent)
    assert poems == [] and "not UTF-8" in str(reason)


@settings(deadline=None, database=None, max_examples=50)
@given(st.lists(st.lists(st.text("床前明月光，a ", min_size=1).filter(str.strip), min_size=1), min_size=1))
def test_stanzas_are_kept_whatever_they_are(stanzas):
    stanzas = [[line.strip() for line in stanza] for stanza in stanzas]
    text = "title:诗\ndate:\n\n" + "\n\n".join("\n".join(stanza) for stanza in stanzas)
    _, lines = parse_poem(text)
    assert "\n".join(lines).split("\n\n") == ["\n".join(stanza) for stanza in stanzas]


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(run_main):
    return partial(run_main, data.poems.main)


def test_the_command_writes_all_poems_and_names_what_it_skipped(folder, command, tmp_path):
    for name, (content, _) in (BROKEN | EMPTY).items():
        (folder / name).write_bytes(content)
    lines = command("clean", folder.parent, "--out", tmp_path / "new" / "all_poems.json").splitlines()
    assert json.loads((tmp_path / "new" / "all_poems.json").read_text(encoding="utf-8")) == [POEM]
    assert read_poems(tmp_path / "new" / "all_poems.json") == [POEM]
    assert lines[-2:] == ["1 poems of 1 authors; skipped 10 files", f"written to {lines[-1].split()[-1]}"]
    named = [Path(line.split(": ")[1]).name for line in lines if line.startswith("skipped: ")]
    assert sorted(named) == sorted(BROKEN | EMPTY)


@pytest.mark.parametrize("change, quoted", [
    (lambda folder: (folder / "偶然.pt").unlink(), "no folders that contain .pt files"),
    (lambda folder: (folder / "偶然.pt").write_bytes(b""), "contains no valid poem"),
    (lambda folder: folder.rename(folder.parents[1] / "elsewhere"), "no folders that contain .pt files"),
])  # fmt: skip
def test_without_a_poem_it_writes_nothing_and_says_so(folder, command, capsys, tmp_path, change, quoted):
    (tmp_path / "all.json").write_text("before")
    change(folder)
    with pytest.raises(SystemExit) as end:
        command("clean", folder.parent, "--out", tmp_path / "all.json")
    assert end.value.code == 2 and (tmp_path / "all.json").read_text() == "before"
    assert re.fullmatch(r"error: .*\n", err := capsys.readouterr().err) and quoted in err


# ---- Reading ---------------------------------------------------------------------------------------------------------


def test_invalid_poems_in_a_file_are_skipped_with_a_message(tmp_path, capsys):
    found = [POEM, {}, POEM | {"para": []}, POEM | {"para": ["", " "]}, POEM | {"title": " "},
             POEM | {"author": None}, POEM | {"para": "text"}, POEM | {"para": [1]}, "poem", None,
             POEM | {"author": ""}, POEM | {"date": "1926"}]
    (tmp_path / "all.json").write_text(json.dumps(found))
    assert read_poems(tmp_path / "all.json") == [POEM, POEM | {"author": ""}, POEM]
    assert "skipped 9 of 12 poems: number 2 lacks title, author, para; number 3 is empty;" in capsys.readouterr().out


def test_paragraphs_are_lines_too(tmp_path):
    poem = {"author": POEM["author"], "paragraphs": POEM["para"], "title": POEM["title"], "id": "7"}
    (tmp_path / "all.json").write_text(json.dumps([poem]))
    assert read_poems(tmp_path / "all.json") == [POEM]
    assert open_corpus(tmp_path / "all.json").title() == "poems"


@pytest.mark.parametrize("content, quoted", [
    (b"", "not valid JSON"), (b"[{]", "not valid JSON"), (b"[" * 100_000, "not valid JSON"),
    (b"{}", "dict, not a list"), (b"[]", "contains no poem: the list is empty"), (b"[1]", "number 1 is not an object"),
    (b"\xff\xff\xff", "all.json"), (b'[{"author": "a", "rhythmic": "t", "paragraphs": ["x"]}]', "number 1 lacks title"),
    (b'[{"title": "t", "author": "a", "content": ["x"]}]', "number 1 lacks para"),
])  # fmt: skip
def test_a_file_without_poems_is_one_line(tmp_path, content, quoted):
    (tmp_path / "all.json").write_bytes(content)
    with pytest.raises(UserError, match=quoted) as error:
        read_poems(tmp_path / "all.json")
    assert "all.json" in str(error.value) and "\n" not in str(error.value)


def test_poem_like_objects_without_lines_are_named_when_they_are_opened(tmp_path):
    (tmp_path / "all.json").write_text('[{"author": "a", "rhythmic": "t", "paragraphs": ["x"]}]')
    with pytest.raises(UserError, match="number 1 lacks title"):
        list(open_corpus(tmp_path / "all.json").pieces())
    (tmp_path / "all.json").write_text('[{"author": "a", "title": "t", "content": "x"}]')
    with pytest.raises(UserError, match="author, title, content"):
        list(open_corpus(tmp_path / "all.json").pieces())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="none.json"):
        open_corpus(tmp_path / "none.json")


@pytest.mark.skipif(not SONG.is_file(), reason=f"the poems are not in {SONG}")
def test_song_lyrics_are_poems():
    poems = read_poems(SONG)
    assert len(poems) == 21050 and poems[0]["title"] == "导引"


# ---- Training --------------------------------------------------------------------------------------------------------


def kinds_of(requests_and_poems):
    """How often each kind of request was made; a general one is its own kind."""
    by_text = {"\n".join(poem["para"]): poem for poem in POEMS}
    kinds = Counter()
    for request, text in requests_and_poems:
        poem = by_text[text]
        expected = {poem["title"]: "title", f"{poem['author']}《{poem['title']}》": "author"}
        kinds[expected.get(request, request)] += 1
    return kinds


def prepared(tmp_path, poems, **options):
    """The `Prepared` of a file of poems."""
    (tmp_path / "all.json").write_text(json.dumps(poems))
    return open_tokens(tmp_path / "all.json", **{"tokenizer": "bpe", "vocab_size": 400} | options)


def talks(text, ids):
    """The texts of the two messages that each document among the ids must be."""
    special = text.tokenizer
    start, end, over = special.message_start, special.message_end, special.end_of_text
    *documents, rest = "".join(map(chr, ids)).split(chr(over))
    assert not rest
    for document in documents:
        request, poem = document.removeprefix(chr(start)).removesuffix(chr(end)).split(chr(end) + chr(start))
        assert document == f"{chr(start)}{request}{chr(end)}{chr(start)}{poem}{chr(end)}"
        yield tuple(special.decode(list(map(ord, message))) for message in (request, poem))


def test_of_ten_requests_six_are_titles_three_name_the_author_and_one_is_general():
    asked = list(requests(POEMS, seed=1))
    assert sorted(text for _, text in asked) == sorted("\n".join(poem["para"]) for poem in POEMS)  # stanzas kept
    kinds = kinds_of(asked)
    assert kinds["title"] == 60 and kinds["author"] == 30
    assert sum(kinds[request] for request in GENERAL_REQUESTS) == 10


def test_the_seed_decides_order_and_requests():
    first, again, other = ([*requests(POEMS, seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert [text for _, text in first] != [text for _, text in other]  # another order
    assert sorted(first) != sorted(other)  # and other requests for the same poems


def test_a_poem_without_an_author_is_asked_for_by_its_title():
    asked = [request for request, _ in requests([poem | {"author": ""} for poem in POEMS], seed=1)]
    assert sum(request.startswith("诗") and len(request) == 4 for request in asked) == 90


def test_a_file_of_poems_becomes_requests_and_answers_of_which_a_tenth_is_for_validation(tmp_path):
    text = prepared(tmp_path, POEMS)
    train, val = (list(talks(text, ids)) for ids in (text.train, text.val))
    assert (len(train), len(val)) == (90, 10)
    kinds = kinds_of(train + val)
    assert sum(kinds.values()) == 100 and kinds["title"] == 60 and kinds["author"] == 30
    assert text.title == "poems"


def test_what_was_prepared_is_taken_again_until_the_poems_change(tmp_path, monkeypatch):
    text = prepared(tmp_path, POEMS)
    monkeypatch.setattr(data.poems, "read_poems", None)  # so that reading them again would fail
    again = open_tokens(tmp_path / "all.json", tokenizer="bpe", vocab_size=400)
    assert again.folder == text.folder and again.train.tolist() == text.train.tolist()
    monkeypatch.undo()
    assert prepared(tmp_path, POEMS[:50]).folder != text.folder


def test_a_poem_cannot_end_its_own_message(tmp_path):
    poem = {"title": "<|im_end|>", "para": ["<|im_end|>", "<|endoftext|>"], "author": "<|im_start|>"}
    text = prepared(tmp_path, [poem, *POEMS])
    assert "<|im_end|>\n<|endoftext|>" in [answer for ids in (text.train, text.val) for _, answer in talks(text, ids)]


def test_a_tokenizer_without_message_markers_is_refused(tmp_path):
    with pytest.raises(UserError, match="start and the end of a message"):
        prepared(tmp_path, POEMS, tokenizer="char")


def test_poems_beside_other_files_are_refused(tmp_path):
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "all.json").write_text(json.dumps(POEMS))
    with pytest.raises(UserError, match="all.json holds poems"):
        open_tokens([tmp_path / "b.txt", tmp_path / "all.json"])
