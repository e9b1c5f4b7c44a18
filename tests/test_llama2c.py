"""llama2.c's .bin files: the same logits as a forward pass written after its run.c, and what is refused."""

import math
import struct
import sys

import numpy as np
import pytest
import torch
from small_folders import memory_of_loading

import estimate
import terminal_demo
from training.checkpoint import load_checkpoint
from utils.errors import UserError

PIECES = [" ", "a", "b", "c", "\n", "ab", " a"]
VOCAB = 3 + 256 + len(PIECES)
SIZES = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2, "vocab_size": VOCAB, "seq_len": 10}


def random_weights(dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len):
    """Return the tensors of a file by their names in run.c, in order."""
    L, kv_dim, half = n_layers, dim // n_heads * n_kv_heads, dim // n_heads // 2
    shapes = {"token_embedding_table": (abs(vocab_size), dim), "rms_att_weight": (L, dim), "wq": (L, dim, dim),
              "wk": (L, kv_dim, dim), "wv": (L, kv_dim, dim), "wo": (L, dim, dim), "rms_ffn_weight": (L, dim),
              "w1": (L, hidden_dim, dim), "w2": (L, dim, hidden_dim), "w3": (L, hidden_dim, dim),
              "rms_final_weight": (dim,), "freq_cis_real": (seq_len, half), "freq_cis_imag": (seq_len, half)}
    if vocab_size < 0:
        shapes["wcls"] = (-vocab_size, dim)
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.5, shape).astype("<f4") for name, shape in shapes.items()}


def write_tokenizer(path, pieces=PIECES):
    tokens = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    entries = [struct.pack("<fi", -i, len(token)) + token.encode() for i, token in enumerate(tokens)]
    path.write_bytes(struct.pack("<i", max(map(len, tokens))) + b"".join(entries))


def write_model(folder, **changes):
    """Write model.bin and its tokenizer.bin; return (path, header, weights)."""
    header = SIZES | changes
    weights = random_weights(**header)
    path = folder / "model.bin"
    path.write_bytes(struct.pack("<7i", *header.values()) + b"".join(weight.tobytes() for weight in weights.values()))
    write_tokenizer(folder / "tokenizer.bin")
    return path, header, weights


def rms_norm(x, weight):
    return weight * x / math.sqrt(np.mean(x * x) + 1e-5)


def rotate(x, position, head_size):
    """Rotate neighboring channels of a vector of all heads, as points in the plane, as run.c does."""
    result = x.copy()
    for i in range(0, len(x), 2):
        angle = position / 10_000 ** (i % head_size / head_size)
        result[i] = x[i] * math.cos(angle) - x[i + 1] * math.sin(angle)
        result[i + 1] = x[i] * math.sin(angle) + x[i + 1] * math.cos(angle)
    return result


def forward(header, weights, ids):
    """Return the logits (T, V) of token ids, with loops over positions, layers and heads as in run.c."""
    w = {name: weight.astype(np.float64) for name, weight in weights.items()}
    n_layers, n_heads, logits = header["n_layers"], header["n_heads"], []
    hs, group_size = header["dim"] // n_heads, n_heads // header["n_kv_heads"]
    keys, values = ([[] for _ in range(n_layers)] for _ in range(2))
    for position, token in enumerate(ids):
        x = w["token_embedding_table"][token]
        for i in range(n_layers):
            y = rms_norm(x, w["rms_att_weight"][i])
            q = rotate(w["wq"][i] @ y, position, hs)
            keys[i].append(rotate(w["wk"][i] @ y, position, hs))
            values[i].append(w["wv"][i] @ y)
            heads = []
            for head in range(n_heads):
                here, shared = slice(head * hs, (head + 1) * hs), head // group_size * hs
                k, v = (np.array(each[i])[:, shared : shared + hs] for each in (keys, values))  # (T, hs)
                scores = np.exp(k @ q[here] / math.sqrt(hs))
                heads.append(scores / scores.sum() @ v)
            x = x + w["wo"][i] @ np.concatenate(heads)
            y = rms_norm(x, w["rms_ffn_weight"][i])
            gate = w["w1"][i] @ y
            x = x + w["w2"][i] @ (gate / (1 + np.exp(-gate)) * (w["w3"][i] @ y))
        logits.append(w.get("wcls", w["token_embedding_table"]) @ rms_norm(x, w["rms_final_weight"]))
    return np.array(logits)


@pytest.mark.parametrize("changes", [
    {},
    {"vocab_size": -VOCAB},
    {"n_kv_heads": 8},
    {"n_kv_heads": 1, "n_layers": 3},
])  # fmt: skip
def test_the_logits_match_run_c(tmp_path, changes):
    path, header, weights = write_model(tmp_path, **changes)
    loaded = load_checkpoint(path)
    ids = [1, 262, 260, 264, 5, 259, 263, 0, 265, 261]
    with torch.no_grad():
        logits = loaded.model(torch.tensor([ids]))[0][0].numpy()
    expected = forward(header, weights, ids)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert loaded.task["stop_tokens"] == {1}  # "<s>", at which run.c stops
    tied = loaded.model.head.weight is loaded.model.token_embedding.weight
    assert tied == (header["vocab_size"] > 0)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}


def test_the_scripts_read_a_model(tmp_path, run_main):
    path = write_model(tmp_path)[0]
    text = tmp_path / "text.txt"
    text.write_text("abc ab\n" * 200)
    assert "Llama, 23,008 parameters" in run_main(estimate.main, path, "--data", text, "--device", "cpu")
    assert run_main(terminal_demo.main, path, "--prompt", "abc", "--max_tokens", "5", "--device", "cpu")


@pytest.mark.parametrize("name", ["tokenizer.bin", "../tokenizer.bin", f"tok{VOCAB}.bin", f"../data/tok{VOCAB}.bin"])
def test_the_tokenizer_is_found_beside_the_model_or_one_folder_above(tmp_path, monkeypatch, name):
    for folder in ("out", "data"):
        (tmp_path / folder).mkdir()
    path = write_model(tmp_path / "out")[0]
    (tmp_path / "out" / "tokenizer.bin").rename(tmp_path / "out" / name)
    monkeypatch.chdir(tmp_path / "out")
    for each in (path, "model.bin"):
        assert load_checkpoint(each).tokenizer.encode("ab c") == [259, 264, 259, 262]  # space, ab, space, c


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc/self/status")
def test_loading_takes_less_than_1_3_times_the_memory_of_the_model(tmp_path):
    path, *_ = write_model(tmp_path, dim=512, hidden_dim=1536, n_layers=8)
    assert memory_of_loading(path) < 1.3


# ---- What is refused -------------------------------------------------------------------------------------------------


def write_header(path, **changes):
    path.write_bytes(struct.pack("<7i", *(SIZES | changes).values()) + path.read_bytes()[28:])


@pytest.mark.parametrize(("damage", "message"), [
    (lambda path: path.write_bytes(path.read_bytes()[:-4]), "bytes, but by its header"),
    (lambda path: path.write_bytes(path.read_bytes() + b"1234"), "bytes, but by its header"),
    (lambda path: path.write_bytes(path.read_bytes()[:27]), "has 27 bytes, too few"),
    (lambda path: path.write_bytes(b""), "has 0 bytes, too few"),
    (lambda path: path.write_bytes(b"24ka" + path.read_bytes()), "version 1 or 2"),
    (lambda path: write_header(path, n_layers=3), "bytes, but by its header"),
    (lambda path: write_header(path, n_layers=2**31 - 1), "bytes, but by its header"),
    (lambda path: write_header(path, vocab_size=-VOCAB), "bytes, but by its header"),
    (lambda path: write_header(path, vocab_size=-(2**31)), "bytes, but by its header"),
    (lambda path: write_header(path, seq_len=2**31 - 1), "bytes, but by its header"),
    (lambda path: write_header(path, vocab_size=0), "vocab_size cannot be 0"),
    (lambda path: write_header(path, n_heads=0), "num_heads cannot be 0"),
    (lambda path: write_header(path, dim=-32), "n_embd cannot be -32"),
    (lambda path: write_header(path, n_kv_heads=3), "must be a multiple of num_kv_heads"),
    (lambda path: write_header(path, n_heads=32), "even head size"),
    (lambda path: path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", math.inf)), "wcls has values that"),
    (lambda path: (path.parent / "tokenizer.bin").unlink(), "there is no tokenizer.bin"),
    (lambda path: write_tokenizer(path.parent / "tokenizer.bin", PIECES[:-1]), "has 265 tokens, and the model"),
    (lambda path: write_tokenizer(path.parent / "tokenizer.bin", [*PIECES, "x"]), "has 267 tokens, and the model"),
])  # fmt: skip
def test_damaged_files_are_refused(tmp_path, damage, message):
    untied = {"vocab_size": -VOCAB} if "wcls" in message else {}
    path = write_model(tmp_path, **untied)[0]
    damage(path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*model\.bin"):
        load_checkpoint(tmp_path / "model.bin")
