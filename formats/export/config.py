"""The config.json and generation_config.json of Hugging Face folders. The reverse is formats/huggingface_config.py."""

from formats.huggingface_config import ACTIVATIONS

EXPORTED_BY = {"exported_by": "YourGPT"}  # marks the folders that another export may replace
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}  # the first name of each


def write_config(name, c, end):
    """The content of the config.json of a class of transformers, for a ModelConfig and the id of the token that ends a
    text, or None."""
    return {
        "architectures": [name],
        **CLASSES[name](c),
        "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied,
        "bos_token_id": None,  # without these, some classes use the tokens 1 and 2
        "eos_token_id": end,
        "pad_token_id": None,
        "dtype": "float32",
        "torch_dtype": "float32",  # before transformers 5
        **EXPORTED_BY,
    }


def gpt2(c):
    return {
        "model_type": "gpt2",
        "n_embd": c.n_embd,
        "n_positions": c.block_size,
        "n_layer": c.n_blocks,
        "n_head": c.num_heads,
        "n_inner": c.hidden_size,
        "activation_function": ACTIVATION_NAMES[c.feed_forward],
        "layer_norm_epsilon": c.norm_eps,
        "embd_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "attn_pdrop": 0.0,
        **biases(c),
    }


def your_gpt(c):
    file = "modeling_your_gpt"
    auto_map = {"AutoConfig": f"{file}.YourGPTConfig", "AutoModelForCausalLM": f"{file}.YourGPTForCausalLM"}
    return gpt2(c) | {"model_type": "your_gpt", "auto_map": auto_map, "qk_norm": c.qk_norm, "head_bias": c.head_bias}


def rotary(c):
    """What LlamaForCausalLM and PersimmonForCausalLM have in common."""
    rope = {"rope_theta": c.rope_theta, "partial_rotary_factor": 1.0}
    return {
        "hidden_size": c.n_embd,
        "max_position_embeddings": c.block_size,
        "num_hidden_layers": c.n_blocks,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.hidden_size,
        "rope_parameters": {"rope_type": "default", **rope},
        **rope,  # before transformers 5
        "attention_dropout": 0.0,
    }


def llama(c):
    return rotary(c) | {
        "model_type": "llama",
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": c.norm_eps,
        "attention_bias": c.bias,
        "mlp_bias": c.bias,
    }


def persimmon(c):
    return rotary(c) | {
        "model_type": "persimmon",
        "hidden_act": ACTIVATION_NAMES[c.feed_forward],
        "layer_norm_eps": c.norm_eps,
        "hidden_dropout": c.dropout,
        "qk_layernorm": c.qk_norm,
        **biases(c),
    }


def biases(c):
    """Which biases are zeros, for the import: transformers has all of them."""
    return {"bias": c.bias, "qkv_bias": c.qkv_bias}


CLASSES = {"GPT2LMHeadModel": gpt2, "LlamaForCausalLM": llama, "PersimmonForCausalLM": persimmon,
           "YourGPTForCausalLM": your_gpt}


def write_generation_config(c, reply, start, end, padding):
    """The content of the generation_config.json for a ReplyConfig and the ids of the tokens, or None, that start a text
    without a prompt, end one, and fill a batch."""
    config = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": padding, "max_length": c.block_size,
              "repetition_penalty": reply.repetition_penalty, "do_sample": reply.temperature > 0}
    if reply.temperature > 0:
        config |= {"temperature": reply.temperature, "top_k": reply.top_k or 0, "top_p": reply.top_p or 1.0}
    return config
