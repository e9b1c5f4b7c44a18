"""data/download.py against a local server that breaks off, lies and stalls."""

import hashlib
import http.server
import os
import random
import socket
import threading

import pytest

from data import download as module
from data.download import answering_endpoint, download, hub_endpoints
from utils.errors import UserError

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The path says how it behaves: /good, /missing, /stalls and so on."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Range"]))
        getattr(self, self.path.strip("/").replace("/", "_"))()

    def begin(self):
        """What the range asked for leaves out."""
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def reply(self, content, begin=0, length=None, status=None):
        self.send_response(status or (206 if begin else 200))
        self.send_header("Content-Length", length or len(content) - begin)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[begin:])

    def good(self):
        if self.begin() >= len(CONTENT):
            self.send_error(416)
        else:
            self.reply(CONTENT, self.begin())

    def breaks_off(self):
        """A third of the file, at most, in each reply."""
        end = min(len(CONTENT), self.begin() + 1_000_000)
        self.reply(CONTENT[:end], self.begin(), len(CONTENT) - self.begin())
        self.connection.shutdown(socket.SHUT_RDWR)

    def breaks_off_at_once(self):
        self.connection.shutdown(socket.SHUT_RDWR)

    def ignores_range(self):
        self.reply(CONTENT)

    def other_place(self):
        """A reply to a range, but from another place than was asked for."""
        self.reply(CONTENT, max(0, self.begin() - 7))

    def other_bytes(self):
        self.reply(CONTENT[::-1], self.begin())

    def too_short(self):
        self.reply(CONTENT[:1000])

    def too_long(self):
        self.reply(CONTENT + b"more")

    def says_less(self):
        self.reply(CONTENT, length=1000)

    def no_length(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def missing(self):
        self.send_error(404)

    def no_http(self):
        self.wfile.write(b"220 mail.example ready\r\n")

    def stalls(self):
        self.reply(CONTENT[:1000], length=len(CONTENT))
        self.wfile.flush()
        self.server.leaving.wait(30)

    def stalls_at_once(self):
        self.server.leaving.wait(30)

    def api_datasets_x(self):
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.asked, server.leaving = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.leaving.set()
        server.shutdown()


def from_mirrors(server, path, *names):
    return download([f"{server.url}/{name}" for name in names], path, SHA256)


def test_a_file_comes_whole_under_its_name_and_nothing_else_is_left(server, tmp_path):
    path = from_mirrors(server, tmp_path / "new" / "file", "good")
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["file"]


def test_a_file_that_is_there_is_not_fetched(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    from_mirrors(server, tmp_path / "file", "good")
    assert (tmp_path / "file").read_bytes() == b"mine" and server.asked == []


@pytest.mark.parametrize("bad", ["missing", "breaks_off_at_once", "other_bytes", "too_short", "too_long", "says_less",
                                 "no_http", "stalls", "stalls_at_once"])
def test_the_next_mirror_is_asked_where_one_fails(server, tmp_path, capsys, bad):
    path = from_mirrors(server, tmp_path / "file", bad, "good")
    assert path.read_bytes() == CONTENT
    assert server.asked[0] == (f"/{bad}", None) and server.asked[-1][0] == "/good"
    assert f"{server.url}/{bad}\n  no: " in capsys.readouterr().out


def test_a_mirror_that_breaks_off_is_asked_for_what_is_missing(server, tmp_path):
    assert from_mirrors(server, tmp_path / "file", "breaks_off").read_bytes() == CONTENT
    assert server.asked == [("/breaks_off", None), ("/breaks_off", "bytes=1000000-"), ("/breaks_off", "bytes=2000000-")]


def test_what_one_mirror_began_the_next_one_ends(server, tmp_path):
    from_mirrors(server, tmp_path / "file", "stalls", "good")
    assert server.asked[-1] == ("/good", "bytes=1000-")


def test_a_download_that_was_killed_goes_on_where_it_stopped(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT[:1234])
    assert from_mirrors(server, tmp_path / "file", "good").read_bytes() == CONTENT
    assert server.asked == [("/good", "bytes=1234-")]


@pytest.mark.parametrize("mirror", ["ignores_range", "other_place", "no_length"])
def test_what_is_already_there_is_not_spoilt_by_a_mirror_that_cannot_resume(server, tmp_path, mirror):
    (tmp_path / "file.partial").write_bytes(CONTENT[:1234])
    assert from_mirrors(server, tmp_path / "file", mirror, "good").read_bytes() == CONTENT


@pytest.mark.parametrize("there", [b"something else", CONTENT + b"more", CONTENT])
def test_a_beginning_that_is_wrong_or_already_all_does_not_stand_in_the_way(server, tmp_path, there):
    (tmp_path / "file.partial").write_bytes(there)
    assert from_mirrors(server, tmp_path / "file", "good").read_bytes() == CONTENT


def test_when_all_fail_one_line_names_each_mirror_its_reason_and_the_way_out(server, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
    urls = [f"{server.url}/missing", nobody, f"{server.url}/other_bytes", "nonsense"]
    with pytest.raises(UserError) as error:
        download(urls, tmp_path / "file", SHA256)
    message = str(error.value)
    assert all(url in message for url in urls) and "404" in message and "refused" in message.lower()
    assert "\n" not in message and f"put the file there yourself: {tmp_path / 'file'}" in message
    assert not (tmp_path / "file").exists()


def test_a_server_that_drips_is_left_after_a_few_attempts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    assert from_mirrors(server, tmp_path / "file", "breaks_off", "good").read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/breaks_off", "/breaks_off", "/good"]


def test_a_stall_ends_after_the_time_of_silence(server, tmp_path):
    with pytest.raises(UserError, match="timed out"):
        from_mirrors(server, tmp_path / "file", "stalls_at_once")
    assert not server.leaving.is_set()  # it would still be silent


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "taken").write_text("a file, where a folder should be")
    with pytest.raises(UserError, match="cannot write .*taken"):
        from_mirrors(server, tmp_path / "taken" / "file", "good")
    assert server.asked == []


def test_hf_endpoint_stands_for_all_mirrors_of_the_hub(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_endpoints() == ["https://huggingface.co", "https://hf-mirror.com"]
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hub_endpoints() == ["https://mirror.example"]


def test_the_first_endpoint_that_answers_is_taken_even_if_its_answer_is_no(server, monkeypatch):
    silent, deaf = f"{server.url}/stalls_at_once", f"{server.url}/breaks_off_at_once"
    monkeypatch.setattr(module, "hub_endpoints", lambda: [silent, deaf, server.url])
    monkeypatch.setattr(Handler, "stalls_at_once_api_datasets_x", Handler.stalls_at_once, raising=False)
    monkeypatch.setattr(Handler, "breaks_off_at_once_api_datasets_x", Handler.breaks_off_at_once, raising=False)
    assert answering_endpoint("api/datasets/x") == server.url
    monkeypatch.setattr(module, "hub_endpoints", lambda: [deaf])
    assert answering_endpoint("api/datasets/x") is None
