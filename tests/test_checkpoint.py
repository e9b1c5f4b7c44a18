"""Checkpoints: what is kept, and what is said of a file that is none."""

import errno
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from small_models import small_model

from data.tokenizer import CharTokenizer
from training.checkpoint import load_model, read_checkpoint, save_checkpoint
from utils.errors import UserError

TOKENIZER = CharTokenizer("abcdefghijk")


@pytest.fixture
def path(tmp_path):
    """A good checkpoint."""
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


def test_a_checkpoint_with_any_byte_of_its_directory_changed_is_an_error_or_still_whole(path):
    data = path.read_bytes()
    directory = range(data.index(b"PK\x01\x02"), len(data))  # the end of the archive, which says where its files are
    for place in directory[:: len(directory) // 150]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            load_model(path)
        except UserError as error:
            assert str(path) in str(error)


def test_a_missing_weight_is_named(path):
    weights = weights_in(path)
    del weights["blocks.1.attention.key.weight"]
    change(path, weights=weights)
    assert str(path) in error_of(path) and "is missing the weight blocks.1.attention.key.weight" in error_of(path)


def test_an_extra_weight_is_named(path):
    change(path, weights=weights_in(path) | {"blocks.1.attention.key.bias": torch.zeros(32)})
    assert str(path) in error_of(path) and "blocks.1.attention.key.bias" in error_of(path)


def test_a_misshapen_weight_is_named_with_both_shapes(path):
    change(path, weights=weights_in(path) | {"head.weight": torch.zeros(12, 32)})
    line = error_of(path)
    assert str(path) in line and "head.weight" in line and "(12, 32)" in line and "(11, 32)" in line


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


@pytest.mark.parametrize("make", [write_text, write_zip, write_weights_alone, write_a_tensor, make_a_folder,
                                  Path.unlink])
def test_a_file_that_is_not_a_checkpoint_is_an_error_that_names_it(path, make):
    make(path)
    assert str(path) in error_of(path)


@pytest.mark.parametrize("entries, quoted", [
    ({"format_version": 2}, "format 2"),
    ({"model_class": "Perceptron"}, "Perceptron"),
    ({"config": {"n_layers": 3}}, "n_layers"),
    ({"config": {"n_embd": "wide"}}, "configuration"),
    ({"config": {"num_heads": 7}}, "num_heads 7"),
    ({"tokenizer": {"kind": "runes"}}, "runes"),
    ({"tokenizer": {"kind": "char", "vocab": "".join(map(chr, range(200)))}}, "200 tokens"),
    ({"tokenizer": "abc"}, "not a checkpoint"),
    ({"weights": []}, "not a checkpoint"),
])  # fmt: skip
def test_an_unsupported_checkpoint_entry_is_quoted(path, entries, quoted):
    if "config" in entries:
        entries = {"config": torch.load(path, weights_only=True)["config"] | entries["config"]}
    change(path, **entries)
    assert quoted in error_of(path)
