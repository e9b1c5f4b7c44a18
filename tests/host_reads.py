"""A check that operations can be captured as a CUDA graph, without a GPU."""

from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")


class HostReads(TorchDispatchMode):
    """Context in which an operation that reads a value of a tensor on the host raises: a capture would fail at it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket.__name__ not in READS, function
        return function(*args, **(kwargs or {}))
