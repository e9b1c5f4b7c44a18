"""The training settings that affect memory, the forecast's result, and constants."""

from dataclasses import dataclass
from typing import Literal

from utils.errors import UserError, check_numbers
from utils.fields import check_types
from utils.forecast.units import KIB, MIB

MUON_STACK = 2**25  # elements of the matrices that training/optim.py orthogonalizes at once
LOGITS_CHUNK = 2**26  # elements of the logits that models/loss.py computes at once

PARTS = {  # of the memory of a training step
    "weights": "4 bytes each",
    "gradients": "4 bytes per weight, of the gradients that exist at the peak",
    "optimizer state": "bytes per trained weight: Muon 4, AdamW 8; a moving average 4 more",
    "autocast copies": "weights in half precision, 2 bytes each",
    "activations": "saved by the forward pass for the backward pass",
    "logits and loss": "one chunk of tokens at a time",
    "backward buffers": "gradients of activations; what Muon allocates",
    "communication": "of DDP or FSDP: weights and gradients in transit",
    "workspaces": "of cuBLAS, for matrix products",
    "context and allocator": "the code of Python, PyTorch and CUDA, and fragmentation",
}


def cublas_workspace(major: int) -> int:
    """Return the bytes of a cuBLAS workspace on a GPU of compute capability `major`.x, as PyTorch chooses them."""
    return 32 * MIB if major >= 9 else 8320 * KIB  # getChosenWorkspaceSize


@dataclass(frozen=True)
class Plan:
    """The training settings that affect memory. Raises UserError for values outside their range."""

    batch_size: int = 16
    """Sequences per micro-batch and GPU (B)."""
    accumulation: int = 1
    """Micro-batches per step."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype of matrix products. The weights stay in float32."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the blocks and AdamW for the rest; adamw: AdamW for everything."""
    activation_checkpointing: bool = False
    """Save only the input of each block, and recompute the other activations in the backward pass."""
    device: Literal["cpu", "cuda"] = "cpu"
    gpus: int = 1
    """GPUs, or ranks on a CPU."""
    workspace: int = cublas_workspace(8)
    """CUDA: bytes of a cuBLAS workspace, which depends on the GPU (`cublas_workspace`)."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several GPUs, ddp: a full copy on each; fsdp: weights, gradients and optimizer state are sharded."""
    ema: bool = False
    """Keep an exponential moving average of the weights. It is counted as optimizer state."""
    lora_rank: int | None = None
    """Train only LoRA adapters of this rank, and the head of a classifier."""
    lora_targets: tuple = ("qkv", "out")
    """The matrices with adapters: names from `utils.forecast.parameters.lora_targets`."""
    trainable_blocks: int | None = None
    """Train only this many of the last blocks, the final norm and an untied head."""

    def __post_init__(self):
        check_types(self)
        check_numbers(self, positive=("batch_size", "accumulation", "gpus", "lora_rank"),
                      not_negative=("trainable_blocks",))
        if self.lora_rank is not None and self.trainable_blocks is not None:
            raise UserError("give lora_rank or trainable_blocks, not both: LoRA freezes all blocks")
        if self.batch_size * self.accumulation >= 2**63:
            raise UserError(f"batch_size {self.batch_size} times accumulation {self.accumulation} must be below 2^63")

    @property
    def autocast(self) -> bool:
        return self.dtype != "float32"

    @property
    def is_sharded(self) -> bool:
        return self.strategy == "fsdp" and self.gpus > 1


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the peak of a step, and the peak of each phase."""

    parts: dict[str, int]
    phases: dict[str, int]

    @property
    def total(self) -> int:
        """The memory that the machine or the GPU needs."""
        return sum(self.parts.values())

    @property
    def allocated(self) -> int:
        """The peak of PyTorch's allocator: `torch.cuda.max_memory_allocated`, or the same on a CPU."""
        return self.total - self.parts.get("context and allocator", 0)
