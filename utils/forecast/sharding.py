"""The memory that FSDP2 takes to gather weights and to reduce gradients."""


class Sharding:
    """Adds to a `Ledger` what the collectives of FSDP2 allocate.

    `block` and `rest` are the bytes of the weights of one block and of all weights outside the blocks. On a CPU, gloo
    has buffers of its own.
    """

    def __init__(self, ledger, plan, block, rest):
        self.ledger, self.plan = ledger, plan
        self.block, self.rest = block, rest
        self.reducing = 0  # size of the buffer with the gradients that are reduced

    def gather_rest(self):
        """Gather the weights outside the blocks in a buffer, and copy them from there."""
        self.ledger.add("communication", 2 * self.rest)
        self.ledger.drop("communication", self.rest)

    def gather_last_block(self):
        """At the end of the forward pass: the last block, its buffer, and the buffer of the block before."""
        self.ledger.add("communication", 3 * self.block)
        self.ledger.drop("communication", 2 * self.block)

    def free_last_block(self):
        self.ledger.drop("communication", self.block)

    def prefetch(self):
        """Gather the weights of the next block of a backward pass in a buffer; gloo has one of its own."""
        clone = self.block if self.plan.device == "cpu" else 0
        self.ledger.add("communication", self.block + clone)
        self.ledger.drop("communication", clone)

    def copy_block(self):
        """Copy the weights of a block from the buffer in which they were gathered."""
        self.ledger.add_temporary("communication", self.block)

    def reduce_block(self, gradients):
        self.reduce(self.block, gradients)

    def reduce_rest(self, gradients):
        self.reduce(self.rest, gradients)
        self.ledger.drop("communication", self.reducing)

    def reduce(self, weights, gradients):
        """Free gathered weights, and replace their gradients with this rank's share of the sum over all ranks.

        `weights` and `gradients` are in bytes. The buffer is freed when the next one is needed; gloo clones it. The
        thread of gloo may be so late that it frees the clone only after the next prefetch, which is not included.
        """
        ledger, share = self.ledger, gradients // self.plan.gpus
        ledger.drop("communication", weights + self.reducing)
        ledger.add_temporary("communication", gradients)
        self.reducing = gradients
        ledger.add("gradients", share)
        if self.plan.device == "cpu":
            ledger.add_temporary("communication", gradients)
        if self.plan.accumulation > 1:  # added to the share of earlier micro-batches
            ledger.drop("gradients", share)
