"""The share of each rank in a step, by hand."""

import pytest
import torch

from training.distributed import World
from training.shares import EMPTY, Shares, parts_per_micro_batch
from utils.errors import UserError


@pytest.mark.parametrize("batch_size, accumulation, ranks, sequences", [
    (4, 4, 4, [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 9, 10, 11]], [[12, 13, 14, 15]]]),
    (4, 1, 2, [[[0, 1]], [[2, 3]]]),
    (4, 3, 2, [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]),
    (6, 2, 4, [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]], [[9, 10, 11]]]),
    (2, 6, 3, [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]),
])
def test_every_sequence_of_a_step_belongs_to_one_rank_and_micro_batches_are_numbered_in_order(
        batch_size, accumulation, ranks, sequences):
    ids = torch.arange(batch_size * accumulation)[:, None]
    batches = [(part, part) for part in ids.split(batch_size)]
    parts = parts_per_micro_batch(batch_size, accumulation, ranks)
    shares = [Shares(lambda _: batches, parts, World(rank, ranks))(0) for rank in range(ranks)]
    assert [[x.flatten().tolist() for x, _ in share.batches] for share in shares] == sequences
    assert [share.first for share in shares] == [i * len(sequences[0]) for i in range(ranks)]
    assert {(share.n_targets, share.n_tokens) for share in shares} == {(len(ids), len(ids))}


def test_the_last_step_of_an_epoch_leaves_some_ranks_without_targets():
    batches = [(torch.zeros(3, 5, dtype=torch.long),) * 2]
    shares = [Shares(lambda _: batches, 4, World(rank, 4))(0) for rank in range(4)]
    assert [[x.shape for x, _ in share.batches] for share in shares] == [[(1, 5)]] * 3 + [[(1, 1)]]
    assert shares[3].batches == [EMPTY] and {share.n_targets for share in shares} == {15}


@pytest.mark.parametrize("batch_size, accumulation, ranks, advice", [
    (16, 1, 3, "start 2 "), (16, 1, 5, "start 4 "), (16, 2, 7, "start 8 "), (1, 1, 2, "start 1 "),
])
def test_a_number_of_ranks_that_does_not_divide_a_step_is_refused_with_the_nearest(
        batch_size, accumulation, ranks, advice):
    with pytest.raises(UserError, match=advice):
        parts_per_micro_batch(batch_size, accumulation, ranks)
