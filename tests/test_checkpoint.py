"""Checkpoints: what is saved, and the errors for damaged and hostile files."""

import errno
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch
from small_models import small_model

from models.weights import file_weights
from tokenization.characters import CharTokenizer
from training.checkpoint import load_model, read_checkpoint, save_checkpoint
from utils.errors import UserError

TOKENIZER = CharTokenizer("abcdefghijk")


@pytest.fixture
def path(tmp_path):
    """Return a good checkpoint."""
    save_checkpoint(tmp_path / "model.pt", small_model("BardGPT"), TOKENIZER)
    return tmp_path / "model.pt"


def change(path, **entries):
    torch.save(torch.load(path, weights_only=True) | entries, path)


def weights_in(path):
    return torch.load(path, weights_only=True)["weights"]


def error_of(path):
    with pytest.raises(UserError) as error:
        load_model(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- Good files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RainbowGPT", "GPT2"])  # with a head of its own, and without
def test_half_precision_takes_half_the_space_and_rounds_the_weights(tmp_path, name):
    model = small_model(name, n_embd=128)
    save_checkpoint(tmp_path / "full.pt", model, TOKENIZER)
    save_checkpoint(tmp_path / "half.pt", model, TOKENIZER, half=True)
    assert (tmp_path / "half.pt").stat().st_size < 0.55 * (tmp_path / "full.pt").stat().st_size
    loaded, _ = load_model(tmp_path / "half.pt")
    for weight, rounded in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(rounded, weight.half().float())


def test_extra_entries_are_saved_unchanged(tmp_path):
    more = {"progress": {"step": 7, "best_loss": 1.5}, "optimizers": [{0: {"momentum": torch.ones(2, 3)}}]}
    save_checkpoint(tmp_path / "last.pt", small_model("BardGPT"), TOKENIZER, **more)
    kept = read_checkpoint(tmp_path / "last.pt")
    assert kept["progress"] == more["progress"]
    assert torch.equal(kept["optimizers"][0][0]["momentum"], torch.ones(2, 3))


def test_a_file_that_another_program_holds_for_a_moment_is_written_after_it(path, monkeypatch):
    replace, refusals = os.replace, [PermissionError, PermissionError]

    def held(*paths):
        if refusals:
            raise refusals.pop()
        replace(*paths)

    monkeypatch.setattr(os, "replace", held)
    save_checkpoint(path, small_model("GPT2"), TOKENIZER)
    assert type(load_model(path)[0]).__name__ == "GPT2" and list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_previous_checkpoint_unchanged(path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    before = path.read_bytes()
    with pytest.raises(UserError, match=os.strerror(errno.ENOSPC)):
        save_checkpoint(path, small_model("GPT2"), TOKENIZER)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_folder_stands_for_its_best_pt(path):
    path.rename(path.parent / "best.pt")
    assert type(load_model(path.parent)[0]).__name__ == "BardGPT"
    (path.parent / "best.pt").unlink()
    assert str(path.parent / "best.pt") in error_of(path.parent)


# ---- Bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_an_error(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert str(path) in error_of(path)


@pytest.mark.parametrize("share", [0.005, 0.5])  # in the pickle, the first file of the archive, and in a weight
def test_a_checkpoint_with_damaged_contents_is_an_error(path, share):
    data = path.read_bytes()
    start = int(share * len(data))
    path.write_bytes(data[:start] + bytes(100) + data[start + 100 :])
    assert f"{path} is damaged" in error_of(path)


def assert_error_or_same_weights(path, weights):
    """Assert that a file with changed bytes is an error, or loads with the original weights."""
    try:
        loaded = file_weights(load_model(path)[0])
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("part", ["directory", "anywhere"])
def test_a_checkpoint_with_a_flipped_bit_is_an_error_or_loads_unchanged(path, part):
    data, weights, random = path.read_bytes(), weights_in(path), Random(part)
    start = data.index(b"PK\x01\x02") if part == "directory" else 0
    for _ in range(300):
        changed = bytearray(data)
        changed[random.randrange(start, len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        assert_error_or_same_weights(path, weights)


def test_a_member_marked_as_a_folder_is_an_error(path):
    data = path.read_bytes()
    entry = data.index(b"archive/data/3", data.index(b"PK\x01\x02")) - 46  # its entry in the directory
    changed = bytearray(data)
    changed[entry + 38] |= 0x10  # the folder bit of the external attributes
    path.write_bytes(changed)
    assert torch.load(path, weights_only=True)  # torch reads nothing for this member
    assert f"{path} is damaged" in error_of(path)


def rewrite_archive(path, compression=zipfile.ZIP_STORED, **changed):
    """Write the archive again with zipfile; `changed` are the new contents of members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | changed
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name)
            archive.writestr(member, data, compression)
            member.external_attr = 0  # as torch.save has it, where zipfile sets permissions


def repeat_entries(path, count):
    """List the last member `count` more times in the directory."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, last = archive.start_dir, archive.infolist()[-1]
        n = len(archive.infolist()) + count
    entry = data[data.rindex(b"PK\x01\x02") : data.rindex(b"PK\x01\x02") + 46 + len(last.filename)]
    directory = data[start : data.rindex(b"PK\x05\x06")] + entry * count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n, n, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + end)


def test_a_checkpoint_with_a_changed_pickle_is_an_error_or_a_model(path):
    """With a valid CRC-32, so that every change reaches the unpickler and the validation."""
    with zipfile.ZipFile(path) as archive:
        data, random = archive.read("archive/data.pkl"), Random(0)
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(random.choice((1, 1, 3))):
            changed[random.randrange(len(data))] = random.randrange(256)
        rewrite_archive(path, **{"archive/data.pkl": bytes(changed)})
        try:
            model, tokenizer = load_model(path)
        except UserError as error:
            assert str(path) in str(error)
        else:
            logits, _ = model(torch.zeros(1, model.block_size, dtype=torch.long))
            assert logits.isfinite().all() and len(tokenizer.encode(tokenizer.decode([0]))) == 1


@pytest.mark.parametrize("attack", [
    lambda path: rewrite_archive(path, compression=zipfile.ZIP_DEFLATED),
    lambda path: [rewrite_archive(path), repeat_entries(path, 2000)],
], ids=["compressed members", "one member 2,000 times"])  # fmt: skip
def test_an_archive_that_could_grow_when_read_is_an_error(path, attack):
    rewrite_archive(path)
    load_model(path)  # stored by zipfile, it is a valid checkpoint
    attack(path)
    assert f"{path} is damaged" in error_of(path)


def test_a_missing_weight_is_named(path):
    weights = weights_in(path)
    del weights["blocks.1.attention.key.weight"]
    change(path, weights=weights)
    assert str(path) in error_of(path) and "is missing the weight blocks.1.attention.key.weight" in error_of(path)


def test_an_extra_weight_is_named(path):
    change(path, weights=weights_in(path) | {"blocks.1.attention.key.bias": torch.zeros(32)})
    assert str(path) in error_of(path) and "blocks.1.attention.key.bias" in error_of(path)


def test_the_weights_of_another_model_are_an_error(path, tmp_path):
    save_checkpoint(tmp_path / "other.pt", small_model("GPT2"), TOKENIZER)
    change(path, weights=weights_in(tmp_path / "other.pt"))
    assert str(path) in error_of(path) and "weight" in error_of(path)


class Bomb:
    """A pickle that creates a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [
    lambda bomb, path: change(path, tokenizer=bomb),
    lambda bomb, path: torch.save(bomb, path),
    lambda bomb, path: torch.save(bomb, path, _use_new_zipfile_serialization=False),
    lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
], ids=["in a checkpoint", "alone", "in the old format", "as a bare pickle"])  # fmt: skip
def test_code_in_a_file_is_not_run(path, tmp_path, write):
    traces = tmp_path / "it ran"
    write(Bomb(traces), path)
    assert str(path) in error_of(path)
    assert not traces.exists()


def test_the_code_would_run_with_weights_only_false(tmp_path):
    torch.save(Bomb(tmp_path / "it ran"), tmp_path / "bomb.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert (tmp_path / "it ran").exists()


def write_text(path):
    path.write_text("To be, or not to be\n" * 100, encoding="utf-8")


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "To be, or not to be")


def write_weights_alone(path):
    torch.save(weights_in(path), path)


def write_a_tensor(path):
    torch.save(torch.ones(3), path)


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def make_a_fifo(path):
    path.unlink()
    os.mkfifo(path)


def link_to_zeros(path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [write_text, write_zip, write_weights_alone, write_a_tensor, make_a_folder,
                                  Path.unlink, *[make_a_fifo, link_to_zeros] * (os.name != "nt")])
def test_a_file_that_is_not_a_checkpoint_is_an_error_that_names_it(path, make):
    make(path)
    assert str(path) in error_of(path)


HUGE = 10**9


@pytest.mark.parametrize("config, quoted", [
    *(({name: HUGE}, "parameters of its configuration") for name in ("n_blocks", "n_embd", "vocab_size", "n_hidden")),
    ({"block_size": HUGE}, "of memory"),  # with rotary positions, no weight has this size
    ({"n_blocks": 3}, "missing the weight blocks.2.attention_norm.weight"), ({"n_blocks": 1}, "blocks.1."),
    ({"n_embd": 2**63}, "n_embd cannot be 9223372036854775808"), ({"n_embd": 10**600}, "n_embd cannot be 1000"),
    ({"n_embd": "wide"}, "n_embd cannot be wide"), ({"n_embd": 32.0}, "n_embd cannot be 32.0"),
    ({"n_blocks": True}, "n_blocks cannot be True"), ({"n_blocks": None}, "n_blocks cannot be None"),
    ({"num_heads": [8]}, "num_heads cannot be [8]"), ({"num_heads": 7}, "num_heads 7"),
    ({"num_heads": torch.tensor([8, 8])}, "num_heads cannot be tensor([8, 8])"),
    ({"norm": ["rms"]}, "norm cannot be ['rms']"), ({"norm": "batch"}, "norm cannot be batch"),
    ({"qk_norm": 1}, "qk_norm cannot be 1"), ({"dropout": math.nan}, "dropout cannot be nan"),
    ({"norm_eps": math.inf}, "norm_eps cannot be inf"), ({"rope_theta": 1e-300}, "rope_theta cannot be 1e-300"),
    ({"n_layers": 3}, "n_layers"), ({3: 3}, "configuration"),
])  # fmt: skip
def test_a_configuration_that_the_file_does_not_match_is_an_error(path, config, quoted):
    change(path, config=torch.load(path, weights_only=True)["config"] | config)
    assert str(path) in error_of(path) and quoted in error_of(path)


def test_many_blocks_that_share_the_weights_of_one_are_an_error(path):
    weights = weights_in(path)
    weights |= {name.replace("blocks.0", f"blocks.{i}"): weight for name, weight in weights.items() for i in range(500)}
    change(path, weights=weights, config=torch.load(path, weights_only=True)["config"] | {"n_blocks": 500})
    assert "parameters of its configuration" in error_of(path)


@pytest.mark.parametrize("change_head, problem", [
    (lambda head: "abc", "is of type str"), (lambda head: None, "is of type NoneType"),
    (lambda head: head.tolist(), "is of type list"), (lambda head: head.to("meta"), "is not a dense tensor"),
    (torch.Tensor.to_sparse, "is not a dense tensor"), (torch.Tensor.to_sparse_csr, "is not a dense tensor"),
    (lambda head: torch.nested.nested_tensor([head[0], head[1, :3]]), "is not a dense tensor"),
    (lambda head: torch.quantize_per_tensor(head, 1.0, 0, torch.qint8), "has dtype torch.qint8"),
    (lambda head: head.to(torch.complex64), "has dtype torch.complex64"),
    (torch.Tensor.int, "has dtype torch.int32"), (torch.Tensor.bool, "has dtype torch.bool"),
    (lambda head: head * math.nan, "has values that are not finite"),
    (lambda head: head.half() * math.inf, "has values that are not finite"),
    (lambda head: head.index_fill(0, torch.tensor(10), -math.inf), "has values that are not finite"),
    (lambda head: head[:, 0], "has shape (11,), not (11, 32)"), (torch.Tensor.t, "has shape (32, 11), not (11, 32)"),
    (lambda head: torch.zeros(12, 32), "has shape (12, 32), not (11, 32)"),
    (lambda head: torch.zeros(0), "has shape (0,), not (11, 32)"),
    (lambda head: torch.ones(1).expand(HUGE, HUGE), "has shape (1000000000, 1000000000), not (11, 32)"),
], ids=range(19))  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # of torch, for rare layouts
def test_a_value_that_is_no_weight_of_the_model_is_named(path, change_head, problem):
    weights = weights_in(path)
    change(path, weights=weights | {"head.weight": change_head(weights["head.weight"])})
    assert f"{path}: the weight head.weight {problem}" in error_of(path)


@pytest.mark.parametrize("entries, quoted", [
    ({"format_version": 2}, "format 2"),
    ({"model_class": "Perceptron"}, "Perceptron"),
    ({"tokenizer": {"kind": "runes"}}, "runes"),
    ({"tokenizer": {"kind": ["char"]}}, "kind ['char']"),
    ({"tokenizer": {"kind": "char", "vocab": ""}}, "empty vocabulary"),
    ({"tokenizer": {"kind": "char", "vocab": 5}}, "vocab"),
    ({"tokenizer": {"kind": "char", "vocab": "".join(map(chr, range(200)))}}, "200 tokens"),
    ({"tokenizer": "abc"}, "not a checkpoint"),
    ({"weights": []}, "not a checkpoint"),
])  # fmt: skip
def test_an_unsupported_checkpoint_entry_is_quoted(path, entries, quoted):
    change(path, **entries)
    assert str(path) in error_of(path) and quoted in error_of(path)
