"""records/examples.py: targets, padded batches, and the order of examples in training."""


import numpy as np
import pytest

from records.examples import IGNORED, Example, ExampleBatches, Examples, next_token_example
from utils.errors import UserError


def numbered(lengths):
    """Examples of these lengths; the tokens of example i are all i, and so are its targets but the first."""
    return Examples(Example([i] * length, [IGNORED] + [i] * (length - 1)) for i, length in enumerate(lengths))


def members(micro_batches):
    """The examples in each micro-batch of a step."""
    return [x[:, 0].tolist() for x, _ in micro_batches]


@pytest.mark.parametrize("parts, block_size, tokens, targets", [
    ([([1, 2], False), ([3, 4, 9], True)], 4, [1, 2, 3, 4], [IGNORED, 3, 4, 9]),
    ([([1, 2], False), ([3, 4, 9], True)], 3, [1, 2, 3], [IGNORED, 3, 4]),
    ([([1], True), ([2], True), ([3], False), ([4], True)], 9, [1, 2, 3], [2, IGNORED, 4]),
    ([([1, 2, 3], False), ([4], True)], 2, [1, 2], [IGNORED, IGNORED]),
    ([([1], False)], 9, [], []),
])  # fmt: skip
def test_a_target_is_the_next_token_where_that_is_supervised(parts, block_size, tokens, targets):
    assert next_token_example(parts, block_size) == Example(tokens, targets)


def test_examples_are_stored_as_they_were_given():
    given = [Example([1, 2, 3], [2, 3, 4]), Example([], []), Example([5], [IGNORED]), Example([2**31 - 1, 0], [6, 7])]
    examples = Examples(iter(given))
    assert len(examples) == 4 and examples.lengths.tolist() == [3, 0, 1, 2] and examples.n_supervised == 5
    assert [Example(*map(np.ndarray.tolist, examples[i])) for i in range(4)] == given
    assert len(Examples([])) == 0 and Examples([]).batches(4) == []


def test_a_batch_is_padded_on_the_right_and_padding_has_no_target():
    examples = Examples([Example([1, 2, 3], [IGNORED, 3, 4]), Example([5], [6]), Example([7, 8], [8, 9])])
    x, y = examples.batch([2, 0, 1])
    assert x.dtype == y.dtype and x.dtype.is_floating_point is False and x.element_size() == 8
    assert x.tolist() == [[7, 8, 0], [1, 2, 3], [5, 0, 0]]
    assert y.tolist() == [[8, 9, IGNORED], [IGNORED, 3, 4], [6, IGNORED, IGNORED]]


@pytest.mark.parametrize("lengths, batch, width", [
    ([3, 1, 2], [1], 3), ([20, 1, 9], [1], 8), ([20, 1, 9], [1, 2], 16), ([20, 1, 9], [0], 20), ([24, 8], [1], 8)])
def test_the_length_of_a_batch_is_a_multiple_of_eight_or_the_longest_example(lengths, batch, width):
    examples = Examples([Example([1] * n, [2] * n) for n in lengths])
    assert examples.batch(batch)[0].shape == (len(batch), width)


def test_evaluation_takes_each_example_once_sorted_by_length():
    examples = numbered([3, 1, 2, 5, 4])
    assert members(examples.batches(2)) == [[1, 2], [0, 4], [3]]


@pytest.mark.parametrize("n, batch_size, accumulation", [(100, 4, 2), (101, 3, 1), (7, 4, 4), (1, 2, 2), (1000, 2, 3)])
def test_every_example_is_in_each_epoch_exactly_once_in_another_order(n, batch_size, accumulation):
    batches = ExampleBatches(numbered([1 + i * 7 % 13 for i in range(n)]), batch_size, accumulation, seed=1)
    assert batches.steps_per_epoch == -(-n // (batch_size * accumulation))
    epochs = []
    for epoch in range(3):
        first = epoch * batches.steps_per_epoch
        steps = [members(batches(step)) for step in range(first, first + batches.steps_per_epoch)]
        assert all(len(micro_batch) <= batch_size for step in steps for micro_batch in step)
        sizes = [sum(map(len, step)) for step in steps]
        assert sum(size < batch_size * accumulation for size in sizes) <= 1  # only the rest of the epoch
        epochs.append([i for step in steps for micro_batch in step for i in micro_batch])
        assert sorted(epochs[-1]) == list(range(n))
    if batches.steps_per_epoch > 1:  # the examples of one step are sorted
        assert epochs[0] != epochs[1] != epochs[2]


def test_the_last_window_of_accumulation_is_a_smaller_step():
    """Five examples, micro-batch 1, accumulation 4: two steps per epoch, of four and of one."""
    batches = ExampleBatches(numbered([2] * 5), batch_size=1, accumulation=4, seed=0)
    assert batches.steps_per_epoch == 2
    for epoch in range(5):
        steps = [members(batches(2 * epoch + i)) for i in range(2)]
        assert sorted(map(len, steps)) == [1, 4] and all(len(batch) == 1 for step in steps for batch in step)


def test_a_step_depends_only_on_the_seed_and_its_number():
    examples = numbered([1 + i % 5 for i in range(50)])
    batches, again, other = (ExampleBatches(examples, 2, 2, seed) for seed in (3, 3, 4))
    steps = range(3 * batches.steps_per_epoch)
    expected = [members(batches(step)) for step in steps]
    assert [members(again(step)) for step in reversed(steps)] == expected[::-1]
    assert [members(other(step)) for step in steps] != expected


def test_examples_of_a_step_have_similar_lengths():
    lengths = np.random.default_rng(0).integers(1, 200, 3000)
    batches = ExampleBatches(numbered(lengths), batch_size=8, accumulation=1, seed=0)
    n_padded = sum(x.numel() for step in range(batches.steps_per_epoch) for x, _ in batches(step))
    assert n_padded < 1.1 * lengths.sum()  # 1.8 in random order


def test_no_examples_is_an_error_before_training():
    with pytest.raises(UserError, match="no example to train on"):
        ExampleBatches(Examples([]), 1, 1, seed=0)
