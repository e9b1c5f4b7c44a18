"""The communication of a training step on several GPUs: bytes and seconds.

Collectives are ring algorithms: of a tensor of b bytes, each of N ranks sends (N-1)/N b in an all-gather or a
reduce-scatter, and 2 (N-1)/N b in an all-reduce, which is a reduce-scatter and an all-gather. No algorithm sends less
(Thakur et al., 2005; Patarasuk & Yuan, 2009). In a broadcast, all but the last rank pass b bytes on, (N-1)/N b on
average. Latency, which grows with the number of ranks and collectives, is not counted.
"""

from collections import Counter
from math import prod
from typing import NamedTuple

from utils.forecast.architecture import Architecture
from utils.forecast.flops import flops_per_token
from utils.forecast.muon import matrices_in_qkv
from utils.forecast.parameters import count_parameters, linear_shapes, matrices_in_blocks
from utils.forecast.plan import Plan
from utils.forecast.trained_weights import TrainedWeights
from utils.forecast.units import BYTES


class StepTime(NamedTuple):
    """Seconds of a training step on several GPUs."""

    computation: float
    """Forward and backward passes, without Muon and loading data."""
    communication: float

    @property
    def without_overlap(self) -> float:
        return self.computation + self.communication

    @property
    def with_full_overlap(self) -> float:
        return max(self.computation, self.communication)


def step_time(config: Architecture, plan: Plan, flops: float, link: float) -> StepTime:
    """Return the StepTime of GPUs that achieve `flops` operations per second.

    `link` is the bandwidth of the slowest link of the ring, in bytes per second. Between machines, this is the sum over
    all network adapters of a machine: NCCL builds a ring for each.
    """
    tokens = plan.batch_size * plan.accumulation * config.block_size
    return StepTime(tokens * flops_per_token(config, plan) / flops, sum(sent_bytes(config, plan).values()) / link)


def sent_bytes(config: Architecture, plan: Plan) -> dict[str, int]:
    """Return the bytes that each GPU sends in a training step: of gradients, weights, and Muon's updates.

    - DDP: one all-reduce of the float32 gradients, 2 (N-1)/N 4 n.
    - FSDP2, in each micro-batch: all-gathers of the float32 weights, of the blocks for the forward pass and again for
      the backward pass, of other weights once; and reduce-scatters of the float32 gradients (Zhao et al., 2023).
    - Muon: with FSDP2, all-gathers of the float32 updates (queries, keys and values are one weight, gathered once for
      each of their shapes). Then broadcasts of the orthogonalized updates, in the compute dtype.
    """
    trained = TrainedWeights(config, plan)
    fraction = (plan.gpus - 1) / plan.gpus
    gradients = 4 * fraction * trained.total
    if not plan.is_sharded:
        sent = {"gradients": 2 * gradients}
    else:
        n = count_parameters(config) + trained.adapters
        in_blocks = config.n_blocks * trained.in_each_block
        sent = {"weights": plan.accumulation * 4 * fraction * (n + in_blocks),
                "gradients": plan.accumulation * gradients}
    if plan.optimizer == "muon" and trained.matrices:
        sent["Muon"] = fraction * BYTES[plan.dtype] * trained.matrices
        if plan.strategy == "fsdp":
            sent["Muon"] += 4 * fraction * trained.n_blocks * gathered_per_block(config)
    return {part: round(size) for part, size in sent.items()}


def gathered_per_block(config: Architecture) -> int:
    """Return the number of elements that FSDP2 gathers for Muon in a block."""
    total = 0
    for shape, count in Counter(matrices_in_blocks(config)).items():
        in_qkv = matrices_in_qkv(config, shape)
        total += (count - in_qkv) * prod(shape) + (prod(linear_shapes(config)["qkv"]) if in_qkv else 0)
    return total
