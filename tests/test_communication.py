"""Communication and sharding, against hand computation and training steps on PyTorch's fake ranks.

The collectives of fake ranks do nothing.
"""

from math import prod

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from models.config import ModelConfig
from models.zoo import ZOO
from training.distributed import World
from training.optim import make_optimizers
from training.parallel import is_sharded, local_part, replicate, shard
from training.settings import OptimSettings
from training.shares import Share
from training.step import TrainStep
from utils.forecast.communication import sent_bytes, step_time
from utils.forecast.flops import flops_per_token
from utils.forecast.parameters import count_parameters
from utils.forecast.plan import Plan
from utils.forecast.step import training_memory

SMALL = ModelConfig(n_embd=64, block_size=32, n_blocks=3, num_heads=4, vocab_size=128, head_bias=True)
GROUPED = ModelConfig(n_embd=64, block_size=32, n_blocks=2, num_heads=4, num_kv_heads=2, vocab_size=128, tied=True,
                      norm="rms", position="rotary", feed_forward="swiglu")
BLOCK = 12 * 64**2 + 2 * 2 * 64  # weights of a block of SMALL, of which the first are matrices
REST = (128 + 32 + 128) * 64 + 128 + 2 * 64


@pytest.mark.parametrize("plan, expected", [
    (Plan(gpus=4), {"gradients": 2 * 3 / 4 * 4 * (3 * BLOCK + REST), "Muon": 3 / 4 * 4 * 3 * 12 * 64**2}),
    (Plan(gpus=4, dtype="bfloat16", accumulation=5),
     {"gradients": 2 * 3 / 4 * 4 * (3 * BLOCK + REST), "Muon": 3 / 4 * 2 * 3 * 12 * 64**2}),
    (Plan(gpus=2, optimizer="adamw", trainable_blocks=1), {"gradients": 4 * (BLOCK + 2 * 64 + 128 * 64 + 128)}),
    (Plan(gpus=2, strategy="fsdp", optimizer="adamw", accumulation=3),
     {"weights": 3 * 2 * (6 * BLOCK + REST), "gradients": 3 * 2 * (3 * BLOCK + REST)}),
    (Plan(gpus=1), {"gradients": 0, "Muon": 0}),
])
def test_sent_bytes_by_hand(plan, expected):
    assert sent_bytes(SMALL, plan) == expected


def test_computation_and_communication_take_their_sum_or_with_full_overlap_the_longer_one():
    config, plan = ZOO["GPT2"].config, Plan(batch_size=8, accumulation=2, gpus=16)
    time = step_time(config, plan, flops=1e14, link=50e9)
    assert time.computation == pytest.approx(16 * 1024 * flops_per_token(config, plan) / 1e14)
    assert time.communication == pytest.approx(sum(sent_bytes(config, plan).values()) / 50e9)
    assert time.without_overlap == time.computation + time.communication and time.with_full_overlap == max(time)


# ---- Fake ranks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_ranks():
    """Return a function that makes this process rank 0 of any number of ranks, and returns its World."""
    fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")

    def start(size):
        dist.init_process_group("fake", rank=0, world_size=size, store=fake_pg.FakeStore())
        return World(0, size, 0, size)

    yield start
    dist.destroy_process_group()


class RingBytes(TorchDispatchMode):
    """Counts the bytes that a rank would send for the collectives in its context."""

    def __init__(self, size):
        super().__init__()
        self.size, self.sent = size, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if any(hasattr(kind, "full_tensor") for kind in types):
            return NotImplemented  # a sharded tensor calls the operations that are counted
        name, tensor, fraction = str(operation), args[0], (self.size - 1) / self.size
        if "allreduce_" in name or "all_reduce" in name:
            tensors = tensor if isinstance(tensor, list) else [tensor]
            self.sent += 2 * fraction * sum(each.nbytes for each in tensors)
        elif "broadcast" in name:
            self.sent += fraction * sum(each.nbytes for each in tensor)
        elif "_allgather_base_" in name:  # output, input
            self.sent += fraction * tensor.nbytes
        elif "_reduce_scatter_base_" in name:
            self.sent += fraction * args[1].nbytes
        elif "all_gather_into_tensor" in name:  # of an input
            self.sent += fraction * self.size * tensor.nbytes
        return operation(*args, **(kwargs or {}))

    def reduce_bucket(self, bucket):
        """Count the bytes of a bucket: a communication hook, as DDP's own all-reduce does not work on fake ranks."""
        self.sent += 2 * (self.size - 1) / self.size * bucket.buffer().nbytes
        reduced = torch.futures.Future()
        reduced.set_result(bucket.buffer())
        return reduced


def counted_replicas(counted):
    """Return a class of DistributedDataParallel whose gradients are counted by a RingBytes."""

    class CountedReplicas(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.register_comm_hook(counted, RingBytes.reduce_bucket)

    return CountedReplicas


@pytest.mark.parametrize("config, size", [(SMALL, 2), (GROUPED, 8)], ids=["small", "grouped"])
@pytest.mark.parametrize("changes", [
    {}, {"accumulation": 3, "dtype": "bfloat16"}, {"optimizer": "adamw"},
    {"strategy": "fsdp"}, {"strategy": "fsdp", "accumulation": 3, "dtype": "bfloat16"},
    {"strategy": "fsdp", "optimizer": "adamw", "activation_checkpointing": True},
], ids=lambda changes: "-".join(map(str, changes.values())) or "ddp")
def test_sent_bytes_match_a_training_step(fake_ranks, config, size, changes, monkeypatch):
    plan, world = Plan(gpus=size, batch_size=2, **changes), fake_ranks(size)
    model = ZOO["TransformerModel"](**vars(config))
    model.activation_checkpointing = plan.activation_checkpointing
    counted = RingBytes(size)
    monkeypatch.setattr("torch.nn.parallel.DistributedDataParallel", counted_replicas(counted))
    forward = model
    if plan.strategy == "fsdp":
        shard(model, "cpu")
    else:
        forward = replicate(model)
    dtype = getattr(torch, plan.dtype)
    optimizers = make_optimizers(model, OptimSettings(name=plan.optimizer), dtype, world)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = TrainStep(forward, optimizers, grad_clip=1.0, dtype=dtype, scaler=scaler, world=world)
    batch = (torch.zeros(2, 32, dtype=torch.long),) * 2
    share = Share([batch] * plan.accumulation, 0, 64 * plan.accumulation * size, 64 * plan.accumulation * size)
    step(0, share, 1.0)
    counted.sent = 0
    with counted:
        step(1, share, 1.0)
    assert counted.sent == pytest.approx(sum(sent_bytes(config, plan).values()), rel=0.002)  # plus gradient norms


def test_each_of_64_ranks_keeps_a_64th_of_the_weights_and_optimizer_state_as_forecast(fake_ranks):
    from torch._subclasses.fake_tensor import FakeTensorMode

    world = fake_ranks(64)
    with FakeTensorMode():
        model = ZOO["GPT2XL"]()
    shard(model, "cpu")
    muon, adamw = make_optimizers(model, OptimSettings(), torch.float32, world)
    assert all(is_sharded(weight) for weight in model.parameters())
    in_muon, in_adamw = (4 * sum(prod(local_part(weight).shape) for weight in optimizer.param_groups[0]["params"])
                         for optimizer in (muon, adamw))
    parts = training_memory(model.config, Plan(gpus=64, strategy="fsdp")).parts
    assert in_muon + in_adamw == pytest.approx(parts["weights"], rel=0.001)  # 50,257 rows do not divide by 64
    assert in_muon + 2 * in_adamw == pytest.approx(parts["optimizer state"], rel=0.001)
    assert in_muon + in_adamw == pytest.approx(4 * count_parameters(model.config) / 64, rel=0.001)
