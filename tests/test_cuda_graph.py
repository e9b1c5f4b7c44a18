"""The streams of CUDA graphs."""

import weakref

import pytest
import torch

from utils import cuda_graph
from utils.cuda_graph import lease_stream


class Owner:
    pass


@pytest.fixture(autouse=True)
def no_cuda_needed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(cuda_graph, "idle_streams", [])


def test_owners_that_exist_at_the_same_time_have_different_streams():
    owners = [Owner() for _ in range(3)]
    assert len({id(lease_stream(owner)) for owner in owners}) == 3


def test_the_stream_of_a_deleted_owner_is_used_again():
    first, second = Owner(), Owner()
    streams, deleted = [lease_stream(first), lease_stream(second)], weakref.ref(first)
    del first
    assert deleted() is None and lease_stream(Owner()) is streams[0]
