"""Models of the Hugging Face hub, from a local server that implements the part of its protocol that is used."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from small_folders import edit_json, save_folder, small_theirs
from small_text import TEXT

import terminal_demo
from formats.hub import hub_name
from training.arguments import parse_settings
from training.checkpoint import load_model
from training.run import train
from utils.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SURPLUS = ("pytorch_model.bin", "README.md", "onnx/model.onnx", "model.fp16.safetensors")


class Hub(BaseHTTPRequestHandler):
    """Serves the files in `server.folder` for every model; `server.requests` records the requested names."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        name = self.path.partition("/resolve/")[2].partition("/")[2]
        path = self.server.folder / name
        self.server.requests.append(f"{self.command} {name}")
        if self.server.location:
            self.send_response(302)
            self.send_header("Location", self.server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if not path.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.server.starts.append(start)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body and start < self.server.cut < len(content):
            self.wfile.write(content[start : self.server.cut])  # then the connection closes
        elif body:
            self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Start a server with a small GPT-2; set an empty cache, and a working directory without models."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder = save_folder(tmp_path / "remote", small_theirs("gpt2"))
    server.requests, server.starts, server.location, server.cut = [], [], None, 0
    for name in SURPLUS:
        (server.folder / name).parent.mkdir(exist_ok=True)
        (server.folder / name).write_bytes(b"surplus")
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def downloaded_files(hub):
    """Return the names of the files that were downloaded."""
    names = {name.removeprefix("GET ") for name in hub.requests if name.startswith("GET ")}
    return {name for name in names if (hub.folder / name).is_file()}


def error_of(name):
    """Return the message of the UserError for a name, which must be one line."""
    with pytest.raises(UserError) as error:
        load_model(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_resumed_run_and_lora_adapters_keep_the_name_of_their_model(hub, tmp_path, monkeypatch):
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr("training.record.plot_losses", lambda *_: None)
    train(parse_settings([
        "--run=tuned", "--init=openai-community/gpt2", "--lora.rank=2", "--lora.merge=false", "--data.path=text.txt",
        "--model.block_size=16", "--output.folder=runs", "--output.sample_tokens=4", "--training.eval_interval=1",
        "--training.batch_size=2", "--training.device=cpu", "--training.dtype=float32", "--training.max_iters=1"]))
    train(parse_settings(["--run=tuned", "--resume", "--output.folder=runs", "--training.max_iters=2"]))
    monkeypatch.chdir(tmp_path)
    load_model(tmp_path / "here" / "runs" / "tuned")


def assert_loads(hub, name):
    for one, other in zip(load_model(hub.folder)[0].parameters(), load_model(name)[0].parameters(), strict=True):
        assert torch.equal(one, other)


def test_only_the_needed_files_are_downloaded_and_only_once(hub, monkeypatch):
    assert_loads(hub, "gpt2")
    assert downloaded_files(hub) == {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    hub.requests.clear()
    assert_loads(hub, "openai-community/gpt2")  # the same model
    assert downloaded_files(hub) == set()
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_loads(hub, "gpt2")
    assert not hub.requests


def test_a_cache_with_only_the_needed_files_works_offline(hub, tmp_path, monkeypatch):
    load_model("owner/name")
    snapshot = next((tmp_path / "cache").glob("models--owner--name/snapshots/*"))
    assert snapshot.name == COMMIT
    (snapshot / "generation_config.json").unlink()
    for missing in (tmp_path / "cache").glob("models--owner--name/.no_exist/*/*"):
        missing.unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert_loads(hub, "owner/name")


def test_only_the_shards_in_the_index_are_downloaded(hub):
    for file in hub.folder.glob("*.safetensors"):
        file.unlink()
    save_folder(hub.folder, small_theirs("llama"), max_shard_size="20KB")
    shards = {file.name for file in hub.folder.glob("model-*.safetensors")}
    (hub.folder / "model-00099-of-00099.safetensors").write_bytes(b"surplus")
    assert_loads(hub, "owner/name")
    assert len(shards) > 1
    assert downloaded_files(hub) == shards | {"config.json", "model.safetensors.index.json", "tokenizer.json",
                                     "generation_config.json"}


def test_an_interrupted_download_is_resumed(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.cut = 1000
    assert_loads(hub, "gpt2")
    assert 1000 in hub.starts


def test_a_model_that_cannot_be_read_is_not_downloaded(hub):
    edit_json(hub.folder / "config.json", architectures=["GPTNeoForCausalLM"])
    assert "has the architecture GPTNeoForCausalLM" in error_of("owner/name")
    assert downloaded_files(hub) == {"config.json"}


@pytest.mark.parametrize("location", ["ftp://somewhere/x", "http://", "//", "http://127.0.0.1:9/x", "/loop"])
def test_an_unusable_redirect_is_one_line_that_names_the_endpoint(location, hub):
    hub.location = location
    message = error_of("gpt2")
    assert hub.url in message and "openai-community/gpt2" in message


def test_a_missing_model_missing_weights_and_no_network_are_one_line_errors(hub, monkeypatch):
    (hub.folder / "model.safetensors").unlink()
    message = error_of("gpt2")
    assert hub.url in message and "/model.safetensors" in message
    (hub.folder / "config.json").unlink()
    assert hub.url in error_of("owner/other")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9/")
    assert "there is no folder owner/other" in error_of("owner/other")
    assert "http://127.0.0.1:9)" in error_of("owner/other")


def test_the_mirror_is_tried_if_the_hub_cannot_be_reached(hub, monkeypatch):
    monkeypatch.setattr("utils.download.hub_endpoints", lambda: ["http://127.0.0.1:9", hub.url])
    assert_loads(hub, "gpt2")


def test_a_local_path_wins_over_a_name(hub, tmp_path, capsys, monkeypatch):
    folder = save_folder(Path("gpt2"), small_theirs("gpt2", n_layer=1))
    assert len(load_model("gpt2")[0].blocks) == 1 and not hub.requests
    folder.rename("gpt2-medium")
    monkeypatch.setattr("sys.argv", ["terminal_demo.py", "gpt2", "--prompt", "The", "--max_tokens", "3"])
    terminal_demo.main()
    assert len(capsys.readouterr().out) > 1 and hub.requests


@pytest.mark.parametrize("path, name", [
    ("gpt2", "openai-community/gpt2"), ("gpt2-xl", "openai-community/gpt2-xl"), ("gpt3", None),
    ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"), ("a/b_c-1.0", "a/b_c-1.0"),
    ("here/model", None), ("./a/b", None), ("/a/b", None), ("a/b/c", None), ("../a", None), ("~/b", None),
    ("other/best.pt", None), ("other/stories15M.bin", None), ("a b/c", None), ("a\\b", None), ("hf:a/b", None),
])  # fmt: skip
def test_names_on_the_hub_are_told_from_paths(path, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert hub_name(path) == name
