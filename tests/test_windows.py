"""data/windows.py against brute force and the book's own loop."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.windows import RandomWindows, ShuffledWindows, SlidingWindows
from utils.errors import UserError

TOKENS = np.random.default_rng(0).permutation(1000).astype(np.uint16)  # each once, so that a token tells its place


def by_brute_force(tokens, max_length, stride):
    """All windows and, one token later, all targets: as the book has it, token by token."""
    x, y = [], []
    i = 0
    while i + max_length + 1 <= len(tokens):
        x.append([int(tokens[i + t]) for t in range(max_length)])
        y.append([int(tokens[i + t + 1]) for t in range(max_length)])
        i += stride
    return x, y


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_random_windows_are_windows_of_the_tokens_and_targets_come_one_later(tmp_path, dtype):
    TOKENS.astype(dtype).tofile(tmp_path / "train.bin")
    for tokens in (TOKENS.astype(dtype), np.memmap(tmp_path / "train.bin", dtype, "r")):
        x, y = RandomWindows(tokens, 20, 64, seed=1).batch(3, 0)
        assert x.shape == y.shape == (64, 20) and x.dtype == y.dtype == torch.int64
        place = {int(token): i for i, token in enumerate(TOKENS)}
        for row_x, row_y in zip(x.tolist(), y.tolist(), strict=True):
            start = place[row_x[0]]
            assert [*row_x, row_y[-1]] == TOKENS[start : start + 21].tolist() and row_x[1:] == row_y[:-1]


def test_random_windows_start_everywhere_from_the_first_place_to_the_last():
    windows = RandomWindows(TOKENS[:30], 20, 100, seed=0)
    place = {int(token): i for i, token in enumerate(TOKENS[:30])}
    starts = {place[row[0]] for step in range(10) for row in windows.batch(step, 0)[0].tolist()}
    assert starts == set(range(10))


def test_a_random_batch_depends_on_seed_and_key_and_nothing_else():
    first, second = (RandomWindows(TOKENS, 20, 4, seed=7) for _ in range(2))
    for step in range(5):
        second.batch(step, 1)
    assert torch.equal(first.batch(9, 2)[0], second.batch(9, 2)[0])
    others = [RandomWindows(TOKENS, 20, 4, seed=8).batch(9, 2)[0], first.batch(9, 3)[0], first.batch(8, 2)[0]]
    assert not any(torch.equal(first.batch(9, 2)[0], other) for other in others)


@pytest.mark.parametrize("n, max_length, stride", [
    (1000, 256, 128), (1000, 4, 1), (1000, 4, 4), (1000, 7, 50), (257, 256, 128), (384, 256, 128), (385, 256, 128)])
def test_sliding_windows_are_those_of_brute_force(n, max_length, stride):
    windows = SlidingWindows(TOKENS[:n], max_length, stride)
    x, y = by_brute_force(TOKENS[:n], max_length, stride)
    assert len(windows) == len(x) > 0
    assert [window[0].tolist() for window in windows] == x and [window[1].tolist() for window in windows] == y


def test_sliding_windows_without_a_word_are_256_long_and_128_apart():
    windows = SlidingWindows(TOKENS)
    assert windows[0][0].shape == (256,) and torch.equal(windows[1][0][:128], windows[0][0][128:])


def test_a_data_loader_gives_every_sliding_window_once():
    loader = DataLoader(SlidingWindows(TOKENS, 32, 16), batch_size=4, shuffle=True)
    batches = list(loader)
    assert batches[0][0].shape == batches[0][1].shape == (4, 32) and batches[0][0].dtype == torch.int64
    x, y = by_brute_force(TOKENS, 32, 16)
    assert sorted(row for batch, _ in batches for row in batch.tolist()) == sorted(x)
    assert sorted(row for _, batch in batches for row in batch.tolist()) == sorted(y)


def test_shuffled_windows_see_each_window_once_in_an_epoch_in_a_new_order():
    sliding = SlidingWindows(TOKENS[:200], 20, 15)  # 12 windows
    shuffled = ShuffledWindows(sliding, batch_size=2, accumulation=3, seed=0)  # 6 batches, 2 steps: an epoch
    expected = sorted(by_brute_force(TOKENS[:200], 20, 15)[0])
    epochs = [[row for step in (2 * epoch, 2 * epoch + 1) for i in range(3)
               for row in shuffled.batch(step, i)[0].tolist()] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_shuffled_batch_depends_on_its_place_alone():
    first, second = (ShuffledWindows(SlidingWindows(TOKENS, 20, 15), 4, 2, seed=5) for _ in range(2))
    for step in range(9):
        second.batch(step, 0)
    for x, y in zip(first.batch(7, 1), second.batch(7, 1), strict=True):
        assert torch.equal(x, y) and x.shape == (4, 20)


@pytest.mark.parametrize("make", [
    lambda tokens: RandomWindows(tokens, 20, 4, seed=0), lambda tokens: SlidingWindows(tokens, 20, 5)])
def test_a_text_shorter_than_one_window_is_one_line(make):
    make(TOKENS[:21])
    for n in (0, 1, 20):
        with pytest.raises(UserError, match=f"{n} tokens, and a window takes 21.*--model.block_size"):
            make(TOKENS[:n])


def test_settings_that_make_no_sense_are_one_line():
    with pytest.raises(UserError, match="stride cannot be 0"):
        SlidingWindows(TOKENS, 20, 0)
    with pytest.raises(UserError, match="1 windows, and a batch takes 2"):
        ShuffledWindows(SlidingWindows(TOKENS[:21], 20, 5), 2, 1, seed=0)
