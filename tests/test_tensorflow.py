"""OpenAI's TensorFlow checkpoints: the same logits as transformers, and what is refused."""

import base64
import json
import struct
import zlib

import numpy as np
import pytest
from small_folders import assert_matches, small_theirs

import estimate
import terminal_demo
from formats.tensor_bundle import read_bundle
from tokenization.bpe import BYTE_OF
from training.checkpoint import load_checkpoint
from utils.errors import UserError

HPARAMS = {"n_vocab": 260, "n_ctx": 6, "n_embd": 8, "n_head": 2, "n_layer": 2}
INDEX = zlib.decompress(base64.b64decode("""
eNpjYGDjYJRi4mBkEOPPzU9JzdHPMNBPLCnJ00+OB1NJHIxCLEJMHBIaCaYPrnqmiTJKlQOFeIBCjEDMAZJSSNBoYDPt3HnTToBNqKAoPwuui0PhAZuG
guklEX+gRml0jRwKDewaDUymTY0NfpxsQjl58YZIOhs4gTqvlCQm8jEKpcNFF4BEyy6Wz+VhFjJCUn0AJJ6axfkdRfUDkKhf4Mv1nFzCuTkFQE+lJcM1
KSg0cGk0MJqGaerZCmG6DijNrdHAYVpVJJrCj+GvBmGgyYyndueKoOpUgLhSGKST5y1jGzu/kCH2AFVYIA0MU83b/KZYgkZCoUEGFKheS6p3YgZqgxLQ
ch9dkUsMYtLQWINbAlaKGdILlEAhveMwSyBmSC9QARoXeT+UEyXsDoBE15ry3EAL6Qcg8cvTOSRRVDeoAkVFz1Xvwx7SC1RBIa2z02Ij1pBeoAYKr8CW
rQyYIb1AD2jyG/P3zlhD+oAeSKdONd9bNrC/0pDThBlQ5+9UweXcKGkCJBp+/tBGNmbx8oJUoDjIDWwQX5hrHGA0dTLkm83OJFECkuMUYuZoYYIYZ6HR
4Gj6/Nz9VgYg2M/IwMAEYrxfpjkbRDOCiAOfFm5gYGTOYzjEBhdrKHvSdZyN4wobPwNBEP67oVul1P02AOOWswQ=
"""))  # model.ckpt.index as TensorFlow 2.21 wrote it for a model of these sizes, with OpenAI's names and shapes
COMPRESSION = 834  # position of the byte with the compression type
ENDINGS = {"ln_1.weight": "ln_1/g", "ln_2.weight": "ln_2/g", "ln_f.weight": "ln_f/g", "wte.weight": "wte",
           "wpe.weight": "wpe", ".weight": "/w", ".bias": "/b"}


def openai_name(name):
    """Return OpenAI's name for a weight of transformers.

    >>> openai_name("transformer.h.1.attn.c_attn.weight")
    'model/h1/attn/c_attn/w'
    """
    for ending, new in ENDINGS.items():
        if name.endswith(ending):
            name = name.removesuffix(ending) + new
            break
    return name.replace("transformer.h.", "model/h").replace("transformer.", "model/").replace(".", "/")


@pytest.fixture
def theirs():
    return small_theirs("gpt2", vocab_size=260, n_positions=6, n_embd=8, n_head=2)


@pytest.fixture
def model(tmp_path, theirs):
    """Write OpenAI's files for the weights of `theirs`; return their folder."""
    folder = tmp_path / "117M"
    folder.mkdir()
    weights = {openai_name(name): weight for name, weight in theirs.state_dict().items() if name != "lm_head.weight"}
    content = b"".join(weights[name].numpy().tobytes() for name in sorted(weights))  # TensorFlow sorts them
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(content)
    (folder / "model.ckpt.index").write_bytes(INDEX)
    (folder / "checkpoint").write_text('model_checkpoint_path: "/home/openai/117M/model.ckpt"\n')
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    tokens = {token: i for i, token in enumerate([*BYTE_OF, "<|endoftext|>"])}
    (folder / "encoder.json").write_text(json.dumps(tokens), encoding="utf-8")
    (folder / "vocab.bpe").write_text("#version: 0.2\n", encoding="utf-8")
    return folder


def test_the_logits_match_transformers(model, theirs):
    loaded = load_checkpoint(model)
    assert_matches(loaded.model, theirs)
    assert loaded.model.head.weight is loaded.model.token_embedding.weight
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("Hé!")) == "Hé!"


def test_the_file_checkpoint_names_the_weights(model, theirs):
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        (model / name).rename(model / name.replace("model.ckpt", "model-1000"))
    (model / "checkpoint").write_text('model_checkpoint_path: "C:\\\\me\\\\model-1000"\nall_others: "x"\n')
    assert_matches(load_checkpoint(model).model, theirs)
    (model / "checkpoint").unlink()
    with pytest.raises(UserError, match=r"there is no file .*model\.ckpt\.index"):
        load_checkpoint(model)


def test_the_scripts_read_a_folder(model, tmp_path, run_main):
    text = tmp_path / "text.txt"
    text.write_text("abc ab\n" * 200)
    assert "GPT2, 3,888 parameters" in run_main(estimate.main, model, "--data", text, "--device", "cpu")
    assert run_main(terminal_demo.main, model, "--prompt", "abc", "--max_tokens", "5", "--device", "cpu")


# ---- What is refused -------------------------------------------------------------------------------------------------


def write_hparams(folder, **changes):
    (folder / "hparams.json").write_text(json.dumps(HPARAMS | changes))


def edit(path, change):
    path.write_bytes(change(path.read_bytes()))


DATA, LIST = "model.ckpt.data-00000-of-00001", "model.ckpt.index"


@pytest.mark.parametrize(("damage", "message"), [
    (lambda folder: edit(folder / DATA, lambda content: content[:-4]), "bytes, but its tensor model/wte ends at"),
    (lambda folder: edit(folder / DATA, lambda content: content[:-4] + struct.pack("<f", float("nan"))),
     "model/wte has values that are not finite"),
    (lambda folder: (folder / DATA).unlink(), "there is no file .*data-00000-of-00001"),
    (lambda folder: (folder / LIST).unlink(), r"there is no file .*model\.ckpt\.index"),
    (lambda folder: (folder / "vocab.bpe").unlink(), "contains no tokenizer"),
    (lambda folder: edit(folder / LIST, lambda content: content[:-1]), "its footer is missing"),
    (lambda folder: edit(folder / LIST, lambda content: content[100:]), "damaged"),
    (lambda folder: edit(folder / LIST, lambda content: content + bytes(1 << 20)), "too many for an index"),
    (lambda folder: edit(folder / LIST, lambda content: content.replace(b"model", b"other", 1)),
     "missing the weight model/h0/ln_1/g"),
    (lambda folder: edit(folder / LIST, lambda content: content.replace(b"te\x08\x01", b"te\x08\x02")),
     "not one piece of float32"),
    (lambda folder: write_hparams(folder, n_layer=3), "missing the weight model/h2/ln_1/g"),
    (lambda folder: write_hparams(folder, n_layer=10**9), "missing the weight model/h2/ln_1/g"),
    (lambda folder: write_hparams(folder, n_layer=1), "unexpected weight model/h1/"),
    (lambda folder: write_hparams(folder, n_embd=10), r"model/wte has shape \(260, 8\)"),
    (lambda folder: write_hparams(folder, n_head=3), "must be a multiple of num_heads 3"),
    (lambda folder: write_hparams(folder, n_vocab=None), "n_vocab must be an integer > 0"),
])  # fmt: skip
def test_damaged_files_are_refused(model, damage, message):
    damage(model)
    with pytest.raises(UserError, match=message):
        load_checkpoint(model)


def test_a_damaged_index_never_raises_another_error(model, fuzz):
    prefix, random = model / "model.ckpt", np.random.default_rng(0)
    expected, refused = read_bundle(prefix), 0
    for position in [*range(len(INDEX))] * fuzz:
        damaged = bytearray(INDEX)
        damaged[position] ^= random.integers(1, 256)
        (model / LIST).write_bytes(damaged)
        try:
            assert read_bundle(prefix).keys() == expected.keys() or position < COMPRESSION
        except UserError:
            refused += 1
    assert refused > len(INDEX) / 3


def test_a_compressed_index_is_refused(model):
    edit(model / LIST, lambda content: content[:COMPRESSION] + b"\1" + content[COMPRESSION + 1 :])
    with pytest.raises(UserError, match="it is compressed"):
        load_checkpoint(model)
