"""A model on several ranks: replicated (DDP), or sharded (FSDP2)."""

import warnings
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from training.distributed import World
from training.shares import EMPTY


def replicate(model: nn.Module) -> nn.parallel.DistributedDataParallel:
    """Return the DistributedDataParallel of a GPT: its backward pass averages gradients over all ranks.

    Gradients are views of its buckets, and zero. They have to stay views: without them, micro-batches under `no_sync`
    would allocate gradients of their own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has another name in later versions
        replicas = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    x, y = (ids.to(model.device) for ids in EMPTY)
    for _ in range(2):  # the second forward pass replaces the buckets by those in the order of the backward pass
        replicas.zero_grad()
        _, loss = replicas(x, y)
        loss.backward()
    replicas.zero_grad(set_to_none=False)
    return replicas


def shard(model: nn.Module, device: str) -> None:
    """Shard a GPT over the devices of all ranks (FSDP2), each named `device`.

    Each rank keeps a part of the rows of every weight, and gathers the weights of a block to compute with them. A model
    in main memory is moved block by block, so that a GPU never holds all of it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)  # moves it to the device, keeps this rank's part, and frees the rest
    fully_shard(model, mesh=mesh)


def is_sharded(value: Tensor | nn.Module) -> bool:
    """Return whether a tensor, or a model, is sharded."""
    # Recognized by their methods: importing their classes takes a second.
    return hasattr(value, "reshard" if isinstance(value, nn.Module) else "full_tensor")


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank has: all of it, unless it is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def local_rows(tensor: Tensor, world: World) -> tuple[int, int]:
    """Return the rows of a tensor that this rank has, as (first, last + 1)."""
    if not is_sharded(tensor):
        return 0, len(tensor)
    start = min(len(tensor), world.rank * -(-len(tensor) // world.size))
    return start, start + len(tensor.to_local())


def gather_whole(value: Any) -> Any:
    """Return a value, or nested dictionaries and lists, with whole tensors in place of the sharded ones.

    These are gathered in main memory of the first rank; on others they are None.
    """
    if isinstance(value, dict):
        return {key: gather_whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [gather_whole(inner) for inner in value]
    if not is_sharded(value):
        return value
    tensor = value.full_tensor()
    return tensor.cpu() if dist.get_rank() == 0 else None


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Shard a tensor, equal on all ranks, like `other`; return it as it is if that is whole or has another shape."""
    if not is_sharded(other) or tensor.shape != other.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(other.device)
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
