"""data/windows.py against brute force and the loop of Raschka's book."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.windows import EpochWindows, RandomWindows, SlidingWindows, make_windows
from utils.errors import UserError

TOKENS = np.random.default_rng(0).permutation(1000).astype(np.uint16)  # all different: a token tells its position
PLACE = {int(token): i for i, token in enumerate(TOKENS)}


def by_brute_force(tokens, max_length, stride):
    """All windows and, one token later, all targets, token by token as in the book."""
    x, y = [], []
    i = 0
    while i + max_length + 1 <= len(tokens):
        x.append([int(tokens[i + t]) for t in range(max_length)])
        y.append([int(tokens[i + t + 1]) for t in range(max_length)])
        i += stride
    return x, y


def check_windows(x, y):
    """Check that rows of x (B, T) are windows of TOKENS, and rows of y the same one token later; return the starts."""
    starts = [PLACE[int(row[0])] for row in x]
    for start, row_x, row_y in zip(starts, x.tolist(), y.tolist(), strict=True):
        assert [*row_x, row_y[-1]] == TOKENS[start : start + len(row_x) + 1].tolist() and row_x[1:] == row_y[:-1]
    return starts


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_random_windows_are_windows_of_the_tokens_with_targets_one_later(tmp_path, dtype):
    TOKENS.astype(dtype).tofile(tmp_path / "train.bin")
    for tokens in (TOKENS.astype(dtype), np.memmap(tmp_path / "train.bin", dtype, "r")):
        x, y = RandomWindows(tokens, 20, 64, seed=1).batch(3, 0)
        assert x.shape == y.shape == (64, 20) and x.dtype == y.dtype == torch.int64
        check_windows(x, y)


def test_random_windows_start_everywhere_from_the_first_to_the_last_position():
    windows = RandomWindows(TOKENS[:30], 20, 100, seed=0)
    starts = {start for step in range(10) for start in check_windows(*windows.batch(step, 0))}
    assert starts == set(range(10))


def test_a_random_batch_depends_only_on_seed_and_key():
    first, second = (RandomWindows(TOKENS, 20, 4, seed=7) for _ in range(2))
    for step in range(5):
        second.batch(step, 1)
    assert torch.equal(first.batch(9, 2)[0], second.batch(9, 2)[0])
    others = [RandomWindows(TOKENS, 20, 4, seed=8).batch(9, 2)[0], first.batch(9, 3)[0], first.batch(8, 2)[0]]
    assert not any(torch.equal(first.batch(9, 2)[0], other) for other in others)


@pytest.mark.parametrize("n, max_length, stride", [
    (1000, 256, 128), (1000, 4, 1), (1000, 4, 4), (1000, 50, 7), (257, 256, 128), (384, 256, 128), (385, 256, 128)])
def test_sliding_windows_equal_brute_force(n, max_length, stride):
    windows = SlidingWindows(TOKENS[:n], max_length, stride)
    x, y = by_brute_force(TOKENS[:n], max_length, stride)
    assert len(windows) == len(x) > 0
    assert [window[0].tolist() for window in windows] == x and [window[1].tolist() for window in windows] == y


def test_sliding_windows_are_256_long_and_128_apart_by_default():
    windows = SlidingWindows(TOKENS)
    assert windows[0][0].shape == (256,) and torch.equal(windows[1][0][:128], windows[0][0][128:])


def test_a_data_loader_returns_every_sliding_window_once():
    loader = DataLoader(SlidingWindows(TOKENS, 32, 16), batch_size=4, shuffle=True)
    batches = list(loader)
    assert batches[0][0].shape == batches[0][1].shape == (4, 32) and batches[0][0].dtype == torch.int64
    x, y = by_brute_force(TOKENS, 32, 16)
    assert sorted(row for batch, _ in batches for row in batch.tolist()) == sorted(x)
    assert sorted(row for _, batch in batches for row in batch.tolist()) == sorted(y)


def epoch_starts(windows, epoch, steps_per_epoch):
    """Where the windows of an epoch of EpochWindows start, in the order of training."""
    steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
    return [start for step in steps for i in range(windows.accumulation)
            for start in check_windows(*windows.batch(step, i))]


def test_an_epoch_of_sliding_windows_has_each_window_once_in_a_new_order():
    windows = EpochWindows(TOKENS[:200], 20, 15, batch_size=2, accumulation=3, seed=0, random_offset=False)
    epochs = [epoch_starts(windows, epoch, steps_per_epoch=2) for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(0, 180, 15))] * 3  # 12 windows
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_an_epoch_of_shuffled_windows_covers_the_text_once_from_a_random_offset():
    windows = make_windows(TOKENS[:261], "shuffled", None, 20, batch_size=3, accumulation=2, seed=0)
    epochs = [epoch_starts(windows, epoch, steps_per_epoch=2) for epoch in range(30)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + 12 * 20, 20)) and epoch != sorted(epoch)
    offsets = {min(epoch) for epoch in epochs}
    assert offsets <= set(range(20)) and len(offsets) > 10


def test_every_offset_and_the_last_token_are_reached():
    windows = EpochWindows(TOKENS[:28], 4, 4, batch_size=6, accumulation=1, seed=0, random_offset=True)
    starts = [epoch_starts(windows, epoch, steps_per_epoch=1) for epoch in range(60)]
    assert {min(epoch) for epoch in starts} == {0, 1, 2, 3}
    assert max(max(epoch) for epoch in starts) + 4 == 27  # the last target is the last token


@pytest.mark.parametrize("random_offset", [False, True])
def test_a_batch_of_an_epoch_depends_only_on_seed_and_position(random_offset):
    settings = {"batch_size": 4, "accumulation": 2, "seed": 5, "random_offset": random_offset}
    first, second = (EpochWindows(TOKENS, 20, 15, **settings) for _ in range(2))
    for step in range(40):  # four epochs
        second.batch(step, 0)
    for x, y in zip(first.batch(7, 1), second.batch(7, 1), strict=True):
        assert torch.equal(x, y) and x.shape == (4, 20)


@pytest.mark.parametrize("block_size, expected", [(32, 32), (256, 128), (128, 128)])
def test_by_default_sliding_windows_skip_no_token(block_size, expected):
    windows = make_windows(TOKENS, "sliding", None, block_size, batch_size=1, accumulation=1, seed=0)
    assert windows.stride == expected


@pytest.mark.parametrize("make", [
    lambda tokens: RandomWindows(tokens, 20, 4, seed=0), lambda tokens: SlidingWindows(tokens, 20, 5)])
def test_a_text_shorter_than_one_window_is_a_user_error(make):
    make(TOKENS[:21])
    for n, counted in ((0, "0 tokens"), (1, "1 token"), (20, "20 tokens")):
        with pytest.raises(UserError, match=rf"{counted}, and one window needs 21.*--model.block_size"):
            make(TOKENS[:n])


@pytest.mark.parametrize("stride", [-1, 0, 21])
def test_a_stride_that_skips_tokens_is_a_user_error(stride):
    with pytest.raises(UserError, match=rf"stride must be from 1 to block_size \(20\).*{stride}"):
        SlidingWindows(TOKENS, 20, stride)


def test_a_text_too_short_for_one_batch_is_a_user_error():
    with pytest.raises(UserError, match="1 window, and a batch has 2"):
        EpochWindows(TOKENS[:21], 20, 5, batch_size=2, accumulation=1, seed=0, random_offset=False)
    with pytest.raises(UserError, match="the text is too short: .* one window needs 21"):  # from the largest offset
        EpochWindows(TOKENS[:39], 20, 20, batch_size=1, accumulation=1, seed=0, random_offset=True)
