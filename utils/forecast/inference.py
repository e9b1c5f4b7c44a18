"""The memory of generation and classification."""

from utils.forecast.activations import block_activations
from utils.forecast.parameters import rotary_bytes, weight_bytes
from utils.forecast.plan import CONTEXT, Memory, Plan
from utils.forecast.units import BYTES


def inference_memory(config, prompt_tokens, dtype="float32", device="cpu", workspace=Plan.workspace):
    """The `Memory` of generating one text at its peak, the forward pass of the prompt; or of classifying the prompt.

    As models/generate.py does it. The KV cache is allocated at once, for block_size tokens; a classifier has none. With
    int8 weights all else is bfloat16. `workspace` is that of `Plan`.
    """
    weights, dtype = weight_bytes(config, dtype), "bfloat16" if dtype == "int8" else dtype
    generates = config.n_labels is None
    kv_dtype = cache_dtype(dtype, device) if generates else dtype
    S = min(prompt_tokens, config.block_size)
    activations = block_activations(config, S, dtype, kv_dtype)
    if not generates and device == "cpu" and dtype == "bfloat16":  # scores (nh, S, S), and their softmax
        activations += 2 * BYTES[dtype] * config.num_heads * S**2
    gathered = rotary_bytes(config, dtype) * S // config.block_size
    parts = {
        "weights": weights + rotary_bytes(config, dtype),
        "KV cache": cache_bytes(config, config.block_size, kv_dtype) if generates else 0,
        "activations": activations + gathered,
        "workspaces": workspace if device == "cuda" else 0,
        "context and allocator": CONTEXT[device],
    }
    return Memory({part: size for part, size in parts.items() if size}, {})


def cache_bytes(config, tokens, dtype, batch_size=1):
    """Bytes of the KV cache for `tokens` tokens."""
    return 2 * config.n_blocks * batch_size * tokens * config.kv_heads * config.head_size * BYTES[dtype]


def cache_dtype(dtype, device):
    """The dtype of the KV cache of a model in `dtype`."""
    return "float32" if device == "cpu" else dtype
