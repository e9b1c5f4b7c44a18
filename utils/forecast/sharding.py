"""The memory of FSDP2's collectives."""

from utils.forecast.ledger import Ledger
from utils.forecast.plan import Plan


class Sharding:
    """The buffers in which FSDP2 gathers weights and reduces gradients, recorded in a `Ledger`.

    `block` and `rest` are the bytes of the weights of one block and of all weights outside the blocks. On a CPU, gloo
    allocates buffers of its own.
    """

    def __init__(self, ledger: Ledger, plan: Plan, block: int, rest: int):
        self.ledger, self.plan = ledger, plan
        self.block, self.rest = block, rest
        self.reduce_buffer = 0  # bytes of the gradients that are being reduced

    def gather_rest(self) -> None:
        """All-gather the weights outside the blocks into a buffer, then copy them out."""
        self.ledger.add("communication", 2 * self.rest)
        self.ledger.drop("communication", self.rest)

    def gather_last_block(self) -> None:
        """At the end of the forward pass: the last block, its buffer, and the buffer of the previous block."""
        self.ledger.add("communication", 3 * self.block)
        self.ledger.drop("communication", 2 * self.block)

    def free_last_block(self) -> None:
        self.ledger.drop("communication", self.block)

    def prefetch_block(self) -> None:
        """All-gather the weights of the next block of a backward pass into a buffer; gloo has a second one."""
        clone = self.block if self.plan.device == "cpu" else 0
        self.ledger.add("communication", self.block + clone)
        self.ledger.drop("communication", clone)

    def copy_out_block(self) -> None:
        """Copy the prefetched weights of a block out of their buffer."""
        self.ledger.add_temporary("communication", self.block)

    def reduce_block(self, gradients: int) -> None:
        self.reduce(self.block, gradients)

    def reduce_rest(self, gradients: int) -> None:
        self.reduce(self.rest, gradients)
        self.ledger.drop("communication", self.reduce_buffer)

    def reduce(self, weights: int, gradients: int) -> None:
        """Free gathered weights and reduce-scatter their gradients; both are in bytes.

        The buffer of a reduction is freed when the next one starts. gloo clones it; a late thread of gloo may free the
        clone only after the next prefetch, which is not simulated.
        """
        ledger, share = self.ledger, gradients // self.plan.gpus
        ledger.drop("communication", weights + self.reduce_buffer)
        ledger.add_temporary("communication", gradients)
        self.reduce_buffer = gradients
        ledger.add("gradients", share)
        if self.plan.device == "cpu":
            ledger.add_temporary("communication", gradients)
        if self.plan.accumulation > 1:  # accumulated into the share of earlier micro-batches
            ledger.drop("gradients", share)
