"""The format of a file: binary formats by signature, text encodings by the characters they give.

Encodings are compared by evidence: the share of characters that are frequent in the languages written in them. The
right encoding scores several times higher than a wrong one even on a single sentence, so the threshold can be strict.
"""

import codecs
import contextlib
import functools
import re
from pathlib import Path
from typing import NamedTuple

from reading.blocks import NotText, byte_blocks, text_blocks
from utils.errors import UserError
from utils.files import stamp

HEAD = 1 << 10  # bytes in which signatures are looked for
SAMPLE = 100_000  # non-ASCII characters from which the encoding is detected
MARGIN = 1.5  # by which the best encoding must beat the second best
NON_ASCII = re.compile("[^\0-\x7f]")

UTF_8 = "utf-8-sig"  # with or without a byte order mark
BOMS = {  # UTF-32 first: its little-endian mark starts with that of UTF-16
    codecs.BOM_UTF8: UTF_8, codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}
SIGNATURES = {
    rb"PK\x03\x04|PK\x05\x06": "a ZIP archive or an Office document", rb"\x1f\x8b": "a gzip archive",
    rb"BZh\d1AY": "a bzip2 archive", rb"\xfd7zXZ": "an xz archive", rb"\x28\xb5\x2f\xfd": "a zstd archive",
    rb"7z\xbc\xaf": "a 7-Zip archive", rb".{257}ustar": "a tar archive", rb"%PDF-": "a PDF document",
    rb"\{\\rtf": "an RTF document", rb"\xd0\xcf\x11\xe0": "an old Office document", rb"\x93NUMPY": "a NumPy array",
    rb"RIFF.{4}(WAVE|AVI |WEBP)": "a RIFF file (WAV, AVI or WebP)", rb"ID3[\x02-\x04]": "an MP3 file",
    rb"\x89PNG": "a PNG image", rb"\xff\xd8\xff": "a JPEG image", rb"GIF8[79]a": "a GIF image",
    rb"BM.{4}\0{4}": "a BMP image", rb"SQLite format 3\0": "an SQLite database", rb"PAR1": "a Parquet file",
    rb"\x80[\x02-\x05]": "a pickle",
}
CONTROL_CHARACTERS = bytes({*range(32), 127} - set(b"\t\n\f\r"))

# Frequent characters of modern prose and classical poetry, simplified and traditional; frequent Korean syllables.
BOTH = ("的一是不了在人有我他中上大和地到以要就出可也你生能子那得下自之年用道行所然家事成方多去法如都同天分好小心前"
        "日月看水山花春香何清相雨酒金千江秋明夜愁老西情白第首今再又吧啊呢做作本字最被把高文三二十只些她此起身未已很")
SIMPLIFIED = BOTH + "来个们为国时会对这过发后里说着于学没还么样进从开问无处归红谁长飞东云风间书点给让头声马满吗诗话"
TRADITIONAL = BOTH + "來個們為國時會對這過發後裡說著於學沒還麼樣進從開問無處歸紅誰長飛東雲風間書點給讓頭聲馬滿嗎詩話"
KANA = "ぁ-んァ-ヶ"
HANGUL = ("이다는의에가을를고하한지도로은기사리자시어나스대인그들해일서정제전수부아니라만주장보으있것게여성상과관구"
          "원소공내조모선동무안신진세경유화오면분결회말생위국방민당개요중러우미체했었습까")
CYRILLIC = "ст но то на ен ов ни ра во ко пр по ре ро не ли ер ал го от ос ть ет та ка те ор ит ан де".split()  # pairs
WESTERN = (  # a language each: a mixture may be Czech or Hungarian in another encoding
    "éèêàâçùûîïôëœÉÀÈÊÇ", "äöüßÄÖÜ", "áéíóúñü¿¡ÁÉÍÓÚÑ", "ãõáéíóúâêôçàÉÁÓÀÇ", "àèéìòùÈ", "åæøäöÅÆØÄÖé",
)
TYPOGRAPHY = "’‘“”„–—…«»°€"
NEUTRAL = "\u3000-\u3020\uff00-\uff20"  # punctuation that several East Asian encodings share
ANY = f"\\t\\n\\r -~{NEUTRAL}{SIMPLIFIED}{TRADITIONAL}{KANA}{HANGUL}а-яё{TYPOGRAPHY}{''.join(WESTERN)}"


class Candidate(NamedTuple):
    """An encoding, and what text in it contains."""

    codec: str
    evidence: tuple[str, ...]
    """Regular expressions; the one with the most matches counts."""
    threshold: float
    counted: str = f"[^\0-\x7f{NEUTRAL}]"
    """The characters that are counted; the evidence is a share of them."""

    def score(self, text: str) -> float:
        """Return the share of the evidence among the counted characters, relative to the threshold, 0 without any."""
        n_counted = len(re.findall(self.counted, text))
        if not n_counted:
            return 0
        return max(len(re.findall(pattern, text)) for pattern in self.evidence) / n_counted / self.threshold


CANDIDATES = (
    Candidate("gb18030", (f"[{SIMPLIFIED}]",), 0.12),
    Candidate("cp950", (f"[{TRADITIONAL}]",), 0.12),  # Big5
    Candidate("euc_jp", (f"[{KANA}]",), 0.15),
    Candidate("cp932", (f"[{KANA}]",), 0.15),  # Shift-JIS
    Candidate("cp949", (f"[{HANGUL}]",), 0.4),  # EUC-KR
    Candidate("cp1251", (f"(?={'|'.join(CYRILLIC)})",), 0.1),
    Candidate("cp1252", tuple(f"[{letters}{TYPOGRAPHY}]" for letters in WESTERN), 0.95),
    *(Candidate(codec, (f"[{ANY}]",), 0.3, counted=r"[\0-\U0010ffff]")
      for codec in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")),
)


def inspect(path: Path, encoding: str | None = None) -> tuple[str, int]:
    """Return (encoding, length in characters) of a text file; `encoding` overrides the detection.

    A byte order mark decides. Without one, a file that is valid UTF-8 is UTF-8, and the encoding of any other is
    detected. Raises UserError if the file is binary, or if the evidence for an encoding is weak.
    """
    head = next(byte_blocks(path, HEAD))[0]
    binary = binary_format(head)
    if binary:
        raise UserError(f"{path} is {binary}, not text: extract or convert it, and pass a text file")
    given = codec_name(encoding) if encoding else bom_encoding(head)
    return inspect_content(path, given, stamp(path))


@functools.cache
def inspect_content(path: Path, given: str | None, version: tuple[str, int, int]) -> tuple[str, int]:
    """Do the work of `inspect`, once for each `version` (`stamp`) of a file: the whole file is read."""
    try:
        return given or UTF_8, text_length(path, given or UTF_8)
    except NotText as error:
        reason = error
    if given:
        raise UserError(f"{path} is not text in {given}: {reason}. Re-save it as UTF-8, or pass --data.encoding NAME")
    detected = detect(path, reason)
    try:
        return detected, text_length(path, detected)
    except NotText as error:
        raise UserError(f"{path} looks like {detected}, but {error}: it is damaged or not text") from None


def codec_name(name: str) -> str:
    """Return the name that Python has for a text encoding. Raises UserError if it has none."""
    try:
        b"text".decode(name, "replace")  # also refuses codecs such as hex, which do not give text
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UserError(f"--data.encoding {name} is unknown: use a name such as utf-8, gb18030, big5, shift_jis, "
                        "euc_kr or cp1252") from None
    return UTF_8 if codec == "utf-8" else codec


def detect(path: Path, reason: NotText) -> str:
    """Return the encoding of a file that is not UTF-8 for a `reason`. Raises UserError if the evidence is weak."""
    text = sample(path, UTF_8, "surrogateescape")
    n_invalid = len(re.findall("[\udc80-\udcff]", text))
    if len(NON_ASCII.findall(text)) > 8 * n_invalid:  # by chance, bytes of other encodings are rarely valid UTF-8
        raise UserError(f"{path} is damaged UTF-8: {reason}. Correct it and re-save it as UTF-8")
    scores = {}
    for candidate in CANDIDATES:
        with contextlib.suppress(NotText):
            scores[candidate.codec] = candidate.score(sample(path, candidate.codec))
    ranked = sorted(scores, key=scores.get, reverse=True)
    if ranked and scores[ranked[0]] >= 1:
        best, *others = ranked
        if all(scores[best] >= MARGIN * scores[other] for other in others):
            return best
    hint = f"; candidates: {', '.join(ranked)}" if ranked else ""
    raise UserError(f"{path} is not valid text: {reason}. If it is text, re-save it as UTF-8 or pass --data.encoding "
                    f"NAME{hint}")


def sample(path: Path, encoding: str, errors: str = "strict") -> str:
    """Return the first blocks of a text with SAMPLE non-ASCII characters, without blocks of ASCII. Raises NotText."""
    blocks, n_non_ascii = [], 0
    for text, _ in text_blocks(path, encoding, errors):
        if not blocks or not text.isascii():
            blocks.append(text)
            n_non_ascii += len(NON_ASCII.findall(text))
        if n_non_ascii >= SAMPLE:
            break
    return "".join(blocks)


def text_length(path: Path, encoding: str) -> int:
    """Return the length of a file in characters. Raises NotText if it is not text in this encoding."""
    length = n_controls = 0
    for text, _ in text_blocks(path, encoding):
        length += len(text)
        encoded = text.encode("utf-8", "surrogatepass")
        n_controls += len(encoded) - len(encoded.translate(None, CONTROL_CHARACTERS))
    if n_controls > 1 + length / 1000:  # a stray one may be an accident
        raise NotText(f"{n_controls:,} of {length:,} characters are control characters")
    return length


def binary_format(head: bytes) -> str | None:
    """Return the binary format whose signature the first bytes of a file show, or None."""
    return next((name for signature, name in SIGNATURES.items() if re.match(signature, head, re.DOTALL)), None)


def bom_encoding(head: bytes) -> str | None:
    """Return the encoding of the byte order mark at the start of a file, or None."""
    return next((encoding for mark, encoding in BOMS.items() if head.startswith(mark)), None)
