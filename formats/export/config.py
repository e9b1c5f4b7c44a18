"""The config.json and generation_config.json of an export. The reverse is formats/huggingface_config.py."""

from typing import Any

from formats.huggingface_config import ACTIVATIONS
from models.config import ModelConfig, ReplyConfig

EXPORTED_BY = {"exported_by": "YourGPT"}  # marks the folders that another export may replace
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first name of each


def config_json(class_name: str, config: ModelConfig, end_id: int | None) -> dict[str, Any]:
    """Return the content of the config.json for a class of transformers; `end_id` is the token that ends a text."""
    return {
        "architectures": [class_name],
        **FIELDS[class_name](config),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,  # if it is missing, some classes use the tokens 1 and 2
        "eos_token_id": end_id,
        "pad_token_id": None,
        "dtype": "float32",
        "torch_dtype": "float32",  # before transformers 5
        **EXPORTED_BY,
    }


def gpt2_fields(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "n_layer": config.n_blocks,
        "n_head": config.num_heads,
        "n_inner": config.hidden_size,
        "activation_function": ACTIVATION_NAMES[config.feed_forward],
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        **bias_fields(config),
    }


def your_gpt_fields(config: ModelConfig) -> dict[str, Any]:
    file = "modeling_your_gpt"
    return gpt2_fields(config) | {
        "model_type": "your_gpt",
        "auto_map": {"AutoConfig": f"{file}.YourGPTConfig", "AutoModelForCausalLM": f"{file}.YourGPTForCausalLM"},
        "qk_norm": config.qk_norm,
        "head_bias": config.head_bias,
    }


def llama_fields(config: ModelConfig) -> dict[str, Any]:
    return rotary_fields(config) | {
        "model_type": "llama",
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def persimmon_fields(config: ModelConfig) -> dict[str, Any]:
    return rotary_fields(config) | {
        "model_type": "persimmon",
        "hidden_act": ACTIVATION_NAMES[config.feed_forward],
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout": config.dropout,
        "qk_layernorm": config.qk_norm,
        **bias_fields(config),
    }


def rotary_fields(config: ModelConfig) -> dict[str, Any]:
    """Return what LlamaForCausalLM and PersimmonForCausalLM have in common."""
    rope = {"rope_theta": config.rope_theta, "partial_rotary_factor": 1.0}
    return {
        "hidden_size": config.n_embd,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_blocks,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_size,
        "rope_parameters": {"rope_type": "default", **rope},
        **rope,  # before transformers 5
        "attention_dropout": 0.0,
    }


def bias_fields(config: ModelConfig) -> dict[str, Any]:
    """Return which biases the model has, for its import: in transformers it has all of them, some of them zeros."""
    return {"bias": config.bias, "qkv_bias": config.qkv_bias}


FIELDS = {"GPT2LMHeadModel": gpt2_fields, "LlamaForCausalLM": llama_fields, "PersimmonForCausalLM": persimmon_fields,
          "YourGPTForCausalLM": your_gpt_fields}


def generation_config_json(config: ModelConfig, reply: ReplyConfig, start_id: int | None, end_id: int | None,
                           padding_id: int | None) -> dict[str, Any]:
    """Return the content of the generation_config.json.

    The ids are of the tokens that start a text without a prompt, end a text, and pad a batch.
    """
    fields = {
        "bos_token_id": start_id,
        "eos_token_id": end_id,
        "pad_token_id": padding_id,
        "max_length": config.block_size,
        "repetition_penalty": reply.repetition_penalty,
        "do_sample": reply.temperature > 0,
    }
    if reply.temperature > 0:
        fields |= {"temperature": reply.temperature, "top_k": reply.top_k or 0, "top_p": reply.top_p or 1.0}
    return fields
