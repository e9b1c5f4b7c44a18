"""reading/encodings.py and reading/blocks.py: encodings are detected or refused, and binary files are named."""

import codecs
import io
import os
import random
import struct
import wave
import zipfile

import numpy as np
import pytest
from small_corpora import error_of, read, text_of

from data.corpora import open_corpus
from reading import blocks, encodings
from reading.encodings import inspect
from reading.options import ReadOptions
from reading.text_files import read_text

SIMPLIFIED = ("今天天气很好，我们一起去公园散步吧。他说这本书是去年在北京买的，一共花了三十五元。\n"
              "“你好，”她笑着说，“请问图书馆怎么走？”老人指了指前面的大楼，告诉她就在那里。\n")
TRADITIONAL = ("今天天氣很好，我們一起去公園散步吧。他說這本書是去年在臺北買的，一共花了三百五十元。\n"
               "「你好，」她笑著說，「請問圖書館怎麼走？」老人指了指前面的大樓，告訴她就在那裡。\n")
CLASSICAL = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
JAPANESE = ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
            "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。\n")
KOREAN = ("오늘은 날씨가 아주 좋아서 우리는 함께 공원을 산책했다. 그는 이 책을 작년에 서울에서 샀다고 말했다.\n"
          "인공지능의 발전은 사람들의 생활 방식을 바꾸었고 사회에 새로운 문제를 가져왔다.\n")
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"
FRENCH = "Longtemps, je me suis couché de bonne heure. « Je m’endors. » Où étaient les élèves, à peine éveillés ?\n"
GERMAN = "Als Gregor Samsa aus unruhigen Träumen erwachte, fühlte er sich müde: „Was ist mit mir geschehen?“\n"
SPANISH = "No ha mucho tiempo que vivía un hidalgo. ¿Dónde está? ¡Aquí, señor! El corazón también.\n"
DANISH = "Rødgrød med fløde på en smuk lørdag, æbler og ål\n"
ITALIAN = "Perché non c'è più città? Così è la verità, lunedì.\n"
ENGLISH = "The quick brown fox jumps over the lazy dog, again and again.\n"
QUOTES = "He said “it’s fine” — and left… ‘Really?’\n"
WORDS = {"gb18030": ["床前明月光，疑是地上霜。", "def f():\n    # 返回列表的长度\n", "hello 你好 world\n"],
         "big5": ["今天天氣很好。\n"], "euc_jp": ["名前はまだ無い。"], "shift_jis": ["名前はまだ無い。"],
         "euc_kr": ["안녕하세요. 만나서 반갑습니다."], "cp1251": ["Мой дядя самых честных правил."],
         "cp1252": ["Déjà vu, naïve café", "It’s fine."], "latin-1": ["Schöne Grüße aus München"]}
LONG = {"gb18030": [SIMPLIFIED, CLASSICAL], "big5": [TRADITIONAL], "euc_jp": [JAPANESE], "shift_jis": [JAPANESE],
        "euc_kr": [KOREAN], "cp1251": [RUSSIAN], "latin-1": [ITALIAN],
        "cp1252": [FRENCH, GERMAN, SPANISH, DANISH, QUOTES, ENGLISH * 16_000 + QUOTES]}  # 1 MB of ASCII, then quotes
ALL = [SIMPLIFIED, TRADITIONAL, CLASSICAL, JAPANESE, KOREAN, RUSSIAN, FRENCH, ENGLISH, "plain\n"]


def write(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    return tmp_path / "a.txt"


# ---- Detection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding, text", [
    (encoding, text) for samples in (WORDS, LONG) for encoding, texts in samples.items() for text in texts])
def test_an_encoding_without_a_mark_is_detected_in_short_and_long_texts(tmp_path, encoding, text):
    path = write(tmp_path, text.encode(encoding))
    assert read_text(path) == text
    assert read_text(write(tmp_path, (text * 50).encode(encoding))) == text * 50


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("encoding, mark", [
    ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE),
    ("utf-32-le", codecs.BOM_UTF32_LE), ("utf-32-be", codecs.BOM_UTF32_BE)])
def test_unicode_encodings_are_detected_with_and_without_a_mark(tmp_path, encoding, mark, text):
    assert read_text(write(tmp_path, mark + text.encode(encoding))) == text
    assert read_text(write(tmp_path, text.encode(encoding))) == text


@pytest.mark.parametrize("encoding, text", [
    ("cp1250", "Zażółć gęślą jaźń"), ("iso8859_2", "Příliš žluťoučký kůň úpěl ďábelské ódy."),
    ("cp1250", "Minden emberi lény szabadon születik és egyenlő méltósága van, tűz és őrült.\n"),
    ("cp1254", "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar, güneşli.\n"),
    ("cp1253", "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι\n"), ("koi8_r", RUSSIAN), ("cp866", RUSSIAN),
    ("cp1255", "כל בני אדם נולדו בני חורין ושווים בערכם\n"), ("cp874", "มนุษย์ทั้งหลายเกิดมามีอิสระ\n"),
    ("cp1256", "يولد جميع الناس أحراراً متساوين\n"), ("mac_roman", FRENCH), ("cp850", "Déjà vu, naïve café"),
    ("shift_jis", "東京都新宿区\n"), ("gb18030", "\ue000\ue001\ue002\ue003"),
])  # fmt: skip
def test_an_encoding_without_strong_evidence_is_refused_and_the_option_named_reads_it(tmp_path, encoding, text):
    path = write(tmp_path, text.encode(encoding))
    message = error_of(path)
    assert str(path) in message and "--data.encoding" in message
    assert text_of(open_corpus(path, ReadOptions(encoding=encoding))) == text


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"])
def test_the_block_size_changes_nothing(tmp_path, monkeypatch, encoding, block):
    text = "床前明月光，\r\n疑是地上霜。\r\r\nMoon 4 me\n\r\n𠮷" * 3
    monkeypatch.setattr(blocks, "BLOCK", block)
    assert read_text(write(tmp_path, text.encode(encoding))) == text.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("text, encoding, printed", [
    (SIMPLIFIED, "gb18030", True), (FRENCH, "cp1252", True), (FRENCH, "utf-16", True), (FRENCH, "utf-8", False),
    (FRENCH, "utf-8-sig", False)])
def test_an_encoding_other_than_utf_8_is_printed_with_the_first_40_characters(
        tmp_path, capsys, text, encoding, printed):
    path = write(tmp_path, text.encode(encoding))
    corpus = open_corpus(path)
    assert text_of(corpus) == text_of(corpus) == text
    note = f"{path} is read as {encoding} (--data.encoding overrides): {text[:40]}\n"
    assert capsys.readouterr().out == (note if printed else "")  # once


def test_the_option_overrides_the_detection(tmp_path):
    path = write(tmp_path, SIMPLIFIED.encode("gb18030"))
    assert text_of(open_corpus(path, ReadOptions(encoding="latin-1"))) == SIMPLIFIED.encode("gb18030").decode("latin-1")
    assert read_text(write(tmp_path, codecs.BOM_UTF8 + b"text"), "utf8") == "text"
    for name in ("klingon", "hex", "rot13", "\0"):
        assert "--data.encoding" in error_of(path, encoding=name)
    assert "byte 0xbd at offset 0" in error_of(write(tmp_path, SIMPLIFIED.encode("gb18030")), encoding="utf-8")


@pytest.mark.parametrize("content, words", [
    (("中文 " * 9999).encode() + b"\xd6\xd0", ["damaged UTF-8", "0xd6", "offset 69993"]),
    ("今天".encode() * 99 + b"\xff" + "今天".encode() * 99, ["damaged UTF-8", "0xff", f"offset {99 * 6}"]),
    ((FRENCH * 9_000).encode() + b"\xff", ["damaged UTF-8", "0xff", str(len((FRENCH * 9_000).encode()))]),
    (b"\xef\xbb\xbf" + "中".encode() + b"abc\xd6\xd0", ["utf-8", "0xd6", "offset 9"]),
    ("\ufeff中文".encode("utf-16-le") + b"\x00", ["utf-16", "0x00"]),
    ((ENGLISH * 99).encode() + b"\xff", ["0xff", str(len(ENGLISH) * 99), "candidates"]),
    (bytes(range(256)) * 30, ["0x80", "offset 128"]),
], ids=["cut off", "one byte", "late", "after its mark", "half a character", "ASCII and a byte", "all bytes"])
def test_damaged_text_is_refused_with_byte_and_offset(tmp_path, content, words):
    path = write(tmp_path, content)
    message = error_of(path)
    assert all(word in message for word in [str(path), *words]), message


def test_damage_behind_the_detected_part_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings, "SAMPLE", 1000)
    monkeypatch.setattr(blocks, "BLOCK", 4096)
    path = write(tmp_path, (SIMPLIFIED * 100).encode("gb18030") + b"\xff\xff" + b"more")
    assert "gb18030" in (message := error_of(path)) and str(len((SIMPLIFIED * 100).encode("gb18030"))) in message


# ---- Not text --------------------------------------------------------------------------------------------------------


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", ENGLISH)
    return file.getvalue()


def waves():
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(np.sin(np.arange(9000) / 9).astype("<f4").tobytes())
    return file.getvalue()


def numpy_file(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("content, kind", [
    (zipped(), "ZIP"), (b"\x1f\x8b\x08\0" + bytes(99), "gzip"), (b"%PDF-1.7\n" + ENGLISH.encode(), "PDF"),
    (numpy_file(np.arange(65, dtype=np.uint16)), "NumPy"), (waves(), "RIFF"), (b"\x89PNG\r\n\x1a\n" + bytes(9), "PNG"),
    (b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + b"(" * 999, "BMP"), (b"\xff\xd8\xff\xe0" + bytes(99), "JPEG"),
    (b"SQLite format 3\0" + bytes(99), "SQLite"), (b"PAR1" + ENGLISH.encode(), "Parquet"),
    (b"{\\rtf1 " + ENGLISH.encode(), "RTF"), (b"a.txt".ljust(257, b"\0") + b"ustar\0", "tar"),
])
def test_a_binary_file_is_named(tmp_path, content, kind):
    assert kind in error_of(write(tmp_path, content))
    (tmp_path / "b.csv").write_bytes(content)
    assert kind in error_of(tmp_path / "b.csv")


@pytest.mark.parametrize("content", [
    np.random.default_rng(0).integers(65, size=20_000).astype("<u2").tobytes(),  # character tokens
    np.random.default_rng(0).zipf(1.3, 20_000).clip(0, 50_256).astype("<u2").tobytes(),  # BPE tokens
    np.random.default_rng(0).integers(50_257, size=20_000).astype("<u2").tobytes(),
    np.random.default_rng(0).integers(50_257, size=20_000).astype("<u4").tobytes(),
    np.random.default_rng(0).normal(size=20_000).astype("<f4").tobytes(),
    (np.sin(np.arange(20_000) / 9) * 3000).astype("<i2").tobytes(),
    random.Random(0).randbytes(20_000), bytes(20_000), b"text" * 100 + bytes(100),
])
def test_numbers_are_not_text(tmp_path, content):
    (tmp_path / "a.bin").write_bytes(content)
    assert str(tmp_path / "a.bin") in error_of(tmp_path / "a.bin")


def test_a_single_control_character_is_tolerated(tmp_path):
    assert read_text(write(tmp_path, b"one\0two and some more")) == "one\0two and some more"
    assert read_text(write(tmp_path, b"a page\fand another\n" * 99)).count("\f") == 99


@pytest.mark.skipif(os.name == "nt", reason="needs devices and pipes")
def test_what_is_not_a_regular_file_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in ("/dev/zero", "/dev/stdin", tmp_path / "pipe.jsonl"):
        assert f"{path} is not a regular file" in error_of(path) or os.path.isfile(path)
    (tmp_path / "link.txt").symlink_to("/dev/zero")
    assert "link.txt is not a regular file" in error_of([tmp_path / "link.txt"])


def test_the_length_counts_a_crlf_once(tmp_path):
    assert inspect(write(tmp_path, "é\r\n\r\n".encode()))[1] == 3


# ---- Separators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_a_separator_splits_a_text_into_documents(tmp_path, monkeypatch, block):
    monkeypatch.setattr(blocks, "BLOCK", block)
    texts = [f"Story {i}.\n\nThe end of {i}." for i in range(25)]
    path = write(tmp_path, "\n<|endoftext|>\n".join(texts).encode() + b"<|endoftext|>\n")
    assert read(path, document_separator="<|endoftext|>") == texts
    corpus = open_corpus(path, ReadOptions(document_separator="<|endoftext|>"))
    assert text_of(corpus, "val") == texts[1] + texts[11] + texts[21]
    assert text_of(open_corpus(path)).count("<|endoftext|>") == 25


def test_a_document_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr("data.documents.LIMIT", 1000)
    path = write(tmp_path, b"a<|x|>" + b"b" * 1001)
    assert "1,000 characters" in error_of(path, document_separator="<|x|>")
