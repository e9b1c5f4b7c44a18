"""The memory of generation and classification."""

from utils.forecast.activations import block_activations
from utils.forecast.architecture import Architecture
from utils.forecast.context import CONTEXT
from utils.forecast.parameters import rotary_bytes, weight_bytes
from utils.forecast.plan import Memory, Plan
from utils.forecast.units import BYTES


def inference_memory(config: Architecture, prompt_tokens: int, dtype: str = "float32", device: str = "cpu",
                     workspace: int = Plan.workspace) -> Memory:
    """Return the `Memory` of the forward pass of one prompt, the peak of generation or classification.

    models/generate.py allocates the KV cache for block_size tokens at the start; a classifier has none. With int8
    weights, everything else is in bfloat16. `workspace` is as in `Plan`.
    """
    weights = weight_bytes(config, dtype)
    dtype = "bfloat16" if dtype == "int8" else dtype
    generates = config.n_labels is None
    kv_dtype = cache_dtype(dtype, device) if generates else dtype
    S = min(prompt_tokens, config.block_size)
    activations = block_activations(config, S, dtype, kv_dtype)
    activations += rotary_bytes(config, dtype) * S // config.block_size  # the rows of the prompt
    if not generates and device == "cpu" and dtype == "bfloat16":  # attention scores (nh, S, S), and their softmax
        activations += 2 * BYTES[dtype] * config.num_heads * S**2
    parts = {
        "weights": weights + rotary_bytes(config, dtype),
        "KV cache": cache_bytes(config, config.block_size, kv_dtype) if generates else 0,
        "activations": activations,
        "workspaces": workspace if device == "cuda" else 0,
        "context and allocator": CONTEXT[device],
    }
    return Memory({part: size for part, size in parts.items() if size}, {})


def cache_bytes(config: Architecture, tokens: int, dtype: str, batch_size: int = 1) -> int:
    """Return the bytes of the KV cache for `tokens` tokens."""
    return 2 * config.n_blocks * batch_size * tokens * config.kv_heads * config.head_size * BYTES[dtype]


def cache_dtype(dtype: str, device: str) -> str:
    """Return the dtype of the KV cache of a model in `dtype`."""
    return "float32" if device == "cpu" else dtype
