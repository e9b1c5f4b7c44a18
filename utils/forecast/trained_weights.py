"""The weights that a plan trains."""

from math import prod

from utils.errors import UserError
from utils.forecast.architecture import Architecture
from utils.forecast.parameters import (
    check_lora,
    count_parameters,
    lora_parameters,
    matrices_in_blocks,
    parameter_table,
)
from utils.forecast.plan import Plan
from utils.quantities import quantity


class TrainedWeights:
    """Numbers of the weights that a `Plan` trains. Raises UserError if the model does not have them."""

    def __init__(self, config: Architecture, plan: Plan):
        table = parameter_table(config)
        self.n_blocks = config.n_blocks  # the last ones, which have a backward pass
        self.per_block = sum(row.count for row in table if row.blocks) // config.n_blocks
        self.matrices_per_block = sum(prod(shape) for shape in matrices_in_blocks(config))
        self.head = sum(row.count for row in table if row.component.startswith("head."))
        self.adapters = 0  # of all blocks and the head
        self.has_embeddings = False
        self.in_each_block = self.per_block  # frozen weights and adapters included
        if plan.lora_rank is not None:
            check_lora(config, plan.lora_rank, plan.lora_targets)
            self.adapters = lora_parameters(config, plan.lora_rank, plan.lora_targets)
            in_head = lora_parameters(config, plan.lora_rank, ("head",)) if "head" in plan.lora_targets else 0
            self.per_block = (self.adapters - in_head) // config.n_blocks
            self.in_each_block += self.per_block
            self.matrices_per_block = 0
            self.n_blocks = config.n_blocks if self.per_block else 0
            self.head = self.head if config.n_labels else in_head
            self.total = self.n_blocks * self.per_block + self.head
        elif plan.trainable_blocks is not None:
            if plan.trainable_blocks > config.n_blocks:
                raise UserError(f"trainable_blocks {plan.trainable_blocks} is more than the "
                                f"{quantity(config.n_blocks, 'blocks')} of the model")
            self.n_blocks = plan.trainable_blocks
            norm = sum(row.count for row in table if row.component.startswith("final_norm."))
            self.total = self.n_blocks * self.per_block + norm + self.head
        else:
            self.has_embeddings = True
            self.total = count_parameters(config)

    @property
    def matrices(self) -> int:
        """Number of weights in the matrices that Muon trains."""
        return self.n_blocks * self.matrices_per_block
