"""The bytes that GPUs exchange in a training step, and the seconds that this takes: computed, from the same Plan as the
memory.

Collectives are ring algorithms: of a tensor of b bytes, each of N ranks sends (N-1)/N b in an all-gather or a
reduce-scatter, and 2 (N-1)/N b in an all-reduce, which is one after the other. No algorithm sends less (Thakur et al.,
2005; Patarasuk & Yuan, 2009). Latency, which grows with the number of ranks and of collectives, is not counted.
"""

from collections import Counter
from math import prod
from typing import NamedTuple

from utils.forecast.flops import flops_per_token
from utils.forecast.muon import matrices_in_qkv
from utils.forecast.parameters import count_parameters, linear_shapes, matrices_in_blocks, parameter_table
from utils.forecast.trained_weights import TrainedWeights
from utils.forecast.units import BYTES


class StepTime(NamedTuple):
    """Seconds of a training step on several GPUs."""

    computation: float
    """Forward and backward passes; neither Muon nor loading data."""
    communication: float

    @property
    def apart(self):
        """One after the other."""
        return self.computation + self.communication

    @property
    def overlapped(self):
        """At the same time, as far as possible."""
        return max(self.computation, self.communication)


def step_time(config, plan, flops, link):
    """The StepTime of GPUs that achieve `flops` operations per second.

    `link` is what the slowest link of the ring carries, in bytes per second: between machines, all network adapters of
    one together, as NCCL makes a ring for each of them.
    """
    tokens = plan.batch_size * plan.accumulation * config.block_size
    operations = flops_per_token(config, plan.trainable_blocks, plan.lora_rank, plan.lora_targets,
                                 plan.activation_checkpointing)
    return StepTime(tokens * operations / flops, sum(sent_bytes(config, plan).values()) / link)


def sent_bytes(config, plan):
    """Bytes that each GPU sends in a training step, by what they are, for a ModelConfig c.

    - DDP: one all-reduce of the float32 gradients, 2 (N-1)/N 4 n.
    - FSDP2, in each micro-batch: all-gathers of the float32 weights, those of the blocks for the forward pass and again
      for the backward pass, all others once; and reduce-scatters of the float32 gradients (Zhao et al., 2023).
    - Muon: with FSDP2, all-gathers of the float32 updates, those of queries, keys and values together, once for each
      shape that they have. Then all-reduces of the orthogonalized ones, in the compute dtype.
    """
    trained = TrainedWeights(config, plan)
    fraction = (plan.gpus - 1) / plan.gpus
    gradients = 4 * fraction * trained.total
    if not plan.is_sharded:
        sent = {"gradients": 2 * gradients}
    else:
        n = count_parameters(config) + trained.adapters
        in_blocks = sum(row.count for row in parameter_table(config) if row.blocks)
        if trained.adapters:
            in_blocks += trained.blocks * trained.per_block
        sent = {"weights": plan.accumulation * 4 * fraction * (n + in_blocks),
                "gradients": plan.accumulation * gradients}
    if plan.optimizer == "muon" and trained.matrices:
        sent["Muon"] = 2 * fraction * BYTES[plan.dtype] * trained.matrices
        if plan.strategy == "fsdp":
            sent["Muon"] += 4 * fraction * trained.blocks * gathered_per_block(config)
    return {part: round(size) for part, size in sent.items()}


def gathered_per_block(config):
    """Elements of the weights in a block that FSDP2 gathers for Muon."""
    total = 0
    for shape, count in Counter(matrices_in_blocks(config)).items():
        in_qkv = matrices_in_qkv(config, shape)
        total += (count - in_qkv) * prod(shape) + (prod(linear_shapes(config)["qkv"]) if in_qkv else 0)
    return total
