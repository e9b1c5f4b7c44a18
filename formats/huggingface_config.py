"""The configuration of a Hugging Face model as a ModelConfig, without torch.

What this project does not compute is refused by name, so that no model is imported that gives other logits.
"""

import json
from pathlib import Path

from models.config import ModelConfig
from utils.errors import UserError
from utils.fields import describe, has_type
from utils.files import read_json_object
from utils.printable import one_line

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact",
               "gelu_python": "gelu_exact", "relu": "relu", "relu2": "relu2"}


class Fields:
    """The fields of a config.json, which are checked as they are read."""

    def __init__(self, path, fields):
        self.path, self.fields = path, fields

    def get(self, name, kind, default):
        """The value of a field; `default` if it is missing or null. Raises UserError unless it has the type `kind`."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not has_type(value, kind):
            raise UserError(f"{self.path}: {name} cannot be {one_line(str(value), 80)}: it must be {describe(kind)}")
        return value

    def size(self, name):
        """A required integer > 0. Raises UserError."""
        value = self.get(name, int, None)
        if value is None or value < 1:
            raise UserError(f"{self.path}: {name} must be an integer > 0, not {value}: use another model")
        return value

    def activation(self, name, default):
        """Our name of an activation. Raises UserError."""
        value = self.get(name, str, default)
        if value not in ACTIVATIONS:
            raise self.refuse(f"{name} {value}")
        return ACTIVATIONS[value]

    def refuse(self, what):
        return UserError(f"{self.path} has {one_line(str(what), 200)}, which this project does not compute: use "
                         "another model")

    def require(self, name, kind, default, expected):
        """Raise UserError unless a field, `default` if it is missing, has the value that this project computes."""
        value = self.get(name, kind, default)
        if value != expected:
            raise self.refuse(f"{name} {json.dumps(value)}")


def read_config(path):
    """(name of a class in models.zoo.ZOO, ModelConfig) of a config.json, or of the folder that contains it. Raises
    UserError."""
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    elif path.suffix != ".json":
        raise UserError(f"{path} is not the config.json of a Hugging Face model: give that, or its folder")
    fields = Fields(path, read_json_object(path))
    architecture = architecture_of(fields)
    if fields.get("quantization_config", object, None) is not None:
        raise fields.refuse("quantization_config")
    model_class, read = ARCHITECTURES[architecture]
    return model_class, make_config(path, read(fields))


def make_config(where, values):
    """The ModelConfig of fields read from `where`. Raises UserError, which names `where`, if they do not fit together.
    """
    try:
        return ModelConfig(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def architecture_of(fields):
    """The key of ARCHITECTURES of a config.json. Raises UserError."""
    named, model_type = fields.get("architectures", list, None), fields.get("model_type", str, None)
    of_type = MODEL_TYPES.get(model_type, model_type)
    architecture = named[0] if named else of_type  # a file that was written by hand may lack either
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(f"{fields.path} has the architecture {one_line(str(architecture), 80)}: this project reads "
                        f"{', '.join(ARCHITECTURES)}")
    if model_type is not None and of_type != architecture:  # transformers goes by the model_type
        raise fields.refuse(f"the architecture {architecture} with the model_type {model_type}")
    return architecture


def gpt2(fields):
    """The fields of ModelConfig of a GPT2LMHeadModel."""
    fields.require("scale_attn_weights", bool, True, True)
    fields.require("scale_attn_by_inverse_layer_idx", bool, False, False)
    fields.require("add_cross_attention", bool, False, False)
    return {
        "n_embd": fields.size("n_embd"),
        "block_size": fields.size("n_positions"),
        "n_blocks": fields.size("n_layer"),
        "num_heads": fields.size("n_head"),
        "vocab_size": fields.size("vocab_size"),
        "n_hidden": fields.get("n_inner", int, None),
        "dropout": fields.get("resid_pdrop", float, 0.1),
        "feed_forward": fields.activation("activation_function", "gelu_new"),
        **biases(fields),
        "tied": fields.get("tie_word_embeddings", bool, True),
        "norm_eps": fields.get("layer_norm_epsilon", float, 1e-5),
    }


def biases(fields):
    """The fields of ModelConfig about biases, of an architecture that always has them: export.py records that they are
    zeros."""
    return {"bias": fields.get("bias", bool, True), "qkv_bias": fields.get("qkv_bias", bool, None)}


def your_gpt(fields):
    """The fields of ModelConfig of the class in formats/export/remote/modeling_your_gpt.py."""
    return gpt2(fields) | {name: fields.get(name, bool, False) for name in ("qk_norm", "head_bias")}


def persimmon(fields):
    """The fields of ModelConfig of a PersimmonForCausalLM."""
    return {
        "n_embd": fields.size("hidden_size"),
        "block_size": fields.size("max_position_embeddings"),
        "n_blocks": fields.size("num_hidden_layers"),
        "num_heads": fields.size("num_attention_heads"),
        "vocab_size": fields.size("vocab_size"),
        "n_hidden": fields.size("intermediate_size"),
        "dropout": fields.get("hidden_dropout", float, 0.0),
        "position": "rotary",
        "feed_forward": fields.activation("hidden_act", "relu2"),
        "qk_norm": fields.get("qk_layernorm", bool, True),
        **biases(fields),
        "tied": fields.get("tie_word_embeddings", bool, False),
        "norm_eps": fields.get("layer_norm_eps", float, 1e-5),
        "rope_theta": rope_theta(fields, rotated=0.5),
    }


def llama(fields):
    """The fields of ModelConfig of a LlamaForCausalLM."""
    activation = fields.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        raise fields.refuse(f"hidden_act {activation}")
    bias = fields.get("attention_bias", bool, False)
    if fields.get("mlp_bias", bool, False) != bias:
        raise fields.refuse("biases in either attention or the feed-forward network (attention_bias, mlp_bias)")
    fields.require("rope_interleaved", bool, False, False)
    return {
        "n_embd": fields.size("hidden_size"),
        "block_size": fields.size("max_position_embeddings"),
        "n_blocks": fields.size("num_hidden_layers"),
        "num_heads": fields.size("num_attention_heads"),
        "num_kv_heads": fields.get("num_key_value_heads", int, None),
        "head_dim": fields.get("head_dim", int, None),
        "vocab_size": fields.size("vocab_size"),
        "n_hidden": fields.size("intermediate_size"),
        "norm": "rms",
        "position": "rotary",
        "feed_forward": "swiglu",
        "bias": bias,
        "tied": fields.get("tie_word_embeddings", bool, False),
        "norm_eps": fields.get("rms_norm_eps", float, 1e-6),
        "rope_theta": rope_theta(fields),
    }


def rope_theta(fields, rotated=1.0):
    """The base of the rotary frequencies. Raises UserError for any scaling of them, and unless all channels are
    rotated: the share `rotated` is where there is no other.

    transformers 5 writes it, and the scaling, to rope_parameters; before, they were rope_theta and rope_scaling.
    """
    rope = Fields(fields.path, fields.get("rope_scaling", dict, {}) or fields.get("rope_parameters", dict, {}))
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind != "default":
        raise fields.refuse(f"rope scaling of the type {kind}")
    rope.require("partial_rotary_factor", float, fields.get("partial_rotary_factor", float, rotated), 1.0)
    return rope.get("rope_theta", float, fields.get("rope_theta", float, 10_000.0))


def mistral(fields):
    """The fields of ModelConfig of a MistralForCausalLM, which is a Llama if its window never ends before the context.
    """
    window = fields.fields.get("sliding_window", 4096)  # null: no window
    if window is not None and fields.get("sliding_window", int, 4096) < fields.size("max_position_embeddings"):
        raise fields.refuse(f"sliding_window {window}")
    return llama(fields) | {"num_kv_heads": fields.size("num_key_value_heads"), "bias": False}


ARCHITECTURES = {"GPT2LMHeadModel": ("GPT2", gpt2), "LlamaForCausalLM": ("Llama", llama),
                 "MistralForCausalLM": ("Llama", mistral), "PersimmonForCausalLM": ("BardGPT", persimmon),
                 "YourGPTForCausalLM": ("TransformerModel", your_gpt)}
MODEL_TYPES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
               "persimmon": "PersimmonForCausalLM", "your_gpt": "YourGPTForCausalLM"}
