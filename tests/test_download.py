"""utils/download.py against a local server that closes connections, sends wrong data and stalls."""

import hashlib
import http.server
import os
import random
import socket
import threading

import pytest

from utils import download as module
from utils.download import answering_endpoint, download, hub_endpoints
from utils.errors import UserError

CONTENT = random.Random(0).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The path says how it behaves: /good, /missing, /stalls and so on."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers["Range"]))
        getattr(self, self.path.strip("/").replace("/", "_"))()

    def start(self):
        """The number of bytes that the requested range skips."""
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def reply(self, content, start=0, length=None, status=None):
        self.send_response(status or (206 if start else 200))
        self.send_header("Content-Length", length or len(content) - start)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:])

    def good(self):
        if self.start() >= len(CONTENT):
            self.send_error(416)
        else:
            self.reply(CONTENT, self.start())

    def closes_early(self):
        """At most a third of the file in each response."""
        end = min(len(CONTENT), self.start() + 1_000_000)
        self.reply(CONTENT[:end], self.start(), len(CONTENT) - self.start())
        self.connection.shutdown(socket.SHUT_RDWR)

    def closes_at_once(self):
        self.connection.shutdown(socket.SHUT_RDWR)

    def ignores_range(self):
        self.reply(CONTENT)

    def other_place(self):
        """A response to a range, but starting at another byte."""
        self.reply(CONTENT, max(0, self.start() - 7))

    def other_bytes(self):
        self.reply(CONTENT[::-1], self.start())

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
        server.requests, server.leaving = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.leaving.set()
        server.shutdown()


def from_mirrors(server, path, *names):
    return download([f"{server.url}/{name}" for name in names], path, SHA256)


def test_a_file_is_downloaded_and_nothing_else_is_left(server, tmp_path):
    path = from_mirrors(server, tmp_path / "new" / "file", "good")
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["file"]


def test_an_existing_file_is_not_downloaded(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    from_mirrors(server, tmp_path / "file", "good")
    assert (tmp_path / "file").read_bytes() == b"mine" and server.requests == []


@pytest.mark.parametrize("bad", ["missing", "closes_at_once", "other_bytes", "too_short", "too_long", "says_less",
                                 "no_http", "stalls", "stalls_at_once"])
def test_the_next_mirror_is_used_if_one_fails(server, tmp_path, capsys, bad):
    path = from_mirrors(server, tmp_path / "file", bad, "good")
    assert path.read_bytes() == CONTENT
    assert server.requests[0] == (f"/{bad}", None) and server.requests[-1][0] == "/good"
    assert f"{server.url}/{bad}\n  failed: " in capsys.readouterr().out


def test_a_closed_connection_is_resumed(server, tmp_path):
    assert from_mirrors(server, tmp_path / "file", "closes_early").read_bytes() == CONTENT
    assert [requested for _, requested in server.requests] == [None, "bytes=1000000-", "bytes=2000000-"]


def test_another_mirror_resumes(server, tmp_path):
    from_mirrors(server, tmp_path / "file", "stalls", "good")
    assert server.requests[-1] == ("/good", "bytes=1000-")


def test_a_killed_download_resumes(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT[:1234])
    assert from_mirrors(server, tmp_path / "file", "good").read_bytes() == CONTENT
    assert server.requests == [("/good", "bytes=1234-")]


@pytest.mark.parametrize("mirror", ["ignores_range", "other_place", "no_length"])
def test_a_mirror_that_cannot_resume_sends_the_whole_file(server, tmp_path, mirror):
    (tmp_path / "file.partial").write_bytes(CONTENT[:1234])
    assert from_mirrors(server, tmp_path / "file", mirror, "good").read_bytes() == CONTENT


@pytest.mark.parametrize("there", [b"something else", CONTENT + b"more", CONTENT])
def test_a_wrong_or_complete_partial_file_is_no_obstacle(server, tmp_path, there):
    (tmp_path / "file.partial").write_bytes(there)
    assert from_mirrors(server, tmp_path / "file", "good").read_bytes() == CONTENT


def test_one_line_names_every_mirror_its_error_and_what_to_do(server, tmp_path):
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


def test_a_mirror_that_keeps_closing_is_given_up_after_a_few_attempts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    assert from_mirrors(server, tmp_path / "file", "closes_early", "good").read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == ["/closes_early", "/closes_early", "/good"]


def test_a_stall_ends_after_the_timeout(server, tmp_path):
    with pytest.raises(UserError, match="timed out"):
        from_mirrors(server, tmp_path / "file", "stalls_at_once")
    assert not server.leaving.is_set()  # the server would still wait


def test_an_unwritable_folder_is_one_line(server, tmp_path):
    (tmp_path / "taken").write_text("a file, where a folder should be")
    with pytest.raises(UserError, match="cannot write .*taken"):
        from_mirrors(server, tmp_path / "taken" / "file", "good")
    assert server.requests == []


def test_hf_endpoint_replaces_all_mirrors_of_the_hub(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert hub_endpoints() == ["https://huggingface.co", "https://hf-mirror.com"]
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hub_endpoints() == ["https://mirror.example"]


def test_the_first_endpoint_that_answers_is_used_even_if_it_answers_with_an_error(server, monkeypatch):
    silent, deaf = f"{server.url}/stalls_at_once", f"{server.url}/closes_at_once"
    monkeypatch.setattr(module, "hub_endpoints", lambda: [silent, deaf, server.url])
    monkeypatch.setattr(Handler, "stalls_at_once_api_datasets_x", Handler.stalls_at_once, raising=False)
    monkeypatch.setattr(Handler, "closes_at_once_api_datasets_x", Handler.closes_at_once, raising=False)
    assert answering_endpoint("api/datasets/x") == server.url
    monkeypatch.setattr(module, "hub_endpoints", lambda: [deaf])
    assert answering_endpoint("api/datasets/x") is None
