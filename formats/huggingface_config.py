"""Reading a Hugging Face config.json as a ModelConfig, without torch.

Every setting that this project does not compute is an error that names it, so no model is imported with other logits.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from models.config import ModelConfig
from utils.errors import UserError
from utils.fields import describe, has_type
from utils.files import read_json_object
from utils.printable import one_line

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu", "gelu": "gelu_exact",
               "gelu_python": "gelu_exact", "relu": "relu", "relu2": "relu2"}


class Fields:
    """The fields of a JSON object in a file, which are checked as they are read; `path` names it in messages."""

    def __init__(self, path: Path | str, fields: dict[str, Any]):
        self.path, self.fields = path, fields

    def get(self, name: str, kind: type, default: Any) -> Any:
        """Return a field, or `default` if it is missing or null. Raises UserError unless it has the type `kind`."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not has_type(value, kind):
            raise UserError(f"{self.path}: {name} cannot be {one_line(str(value), 80)}: it must be {describe(kind)}")
        return value

    def size(self, name: str) -> int:
        """Return a required field. Raises UserError unless it is an integer > 0."""
        value = self.get(name, int, None)
        if value is None or value < 1:
            raise UserError(f"{self.path}: {name} must be an integer > 0, not {value}: use another model")
        return value

    def activation(self, name: str, default: str) -> str:
        """Return our name for an activation. Raises UserError if there is none."""
        value = self.get(name, str, default)
        if value not in ACTIVATIONS:
            raise self.unsupported(f"{name} {value}")
        return ACTIVATIONS[value]

    def require(self, name: str, kind: type, default: Any, expected: Any) -> None:
        """Raise UserError unless a field has the value `expected`, the only one that this project computes."""
        value = self.get(name, kind, default)
        if value != expected:
            raise self.unsupported(f"{name} {json.dumps(value)}")

    def unsupported(self, setting: str) -> UserError:
        """Return the error for a setting that this project does not compute."""
        return UserError(f"{self.path} has {one_line(setting, 200)}, which this project does not compute: use another "
                         "model")


def read_config(path: str | Path) -> tuple[str, ModelConfig]:
    """Return (name of a class in models.zoo.ZOO, ModelConfig) for a config.json, or for a folder that contains one.

    Raises UserError.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    elif path.suffix != ".json":
        raise UserError(f"{path} is not the config.json of a Hugging Face model: give that, or its folder")
    fields = Fields(path, read_json_object(path))
    architecture = read_architecture(fields)
    if fields.get("quantization_config", object, None) is not None:
        raise fields.unsupported("quantization_config")
    return architecture.model_class, make_config(path, architecture.read(fields))


def make_config(where: Path | str, values: dict[str, Any]) -> ModelConfig:
    """Return the ModelConfig with these values, from `where`. Raises UserError if they do not fit together."""
    try:
        return ModelConfig(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_architecture(fields: Fields) -> "Architecture":
    """Return the architecture in a config.json. Raises UserError if it is not in ARCHITECTURES."""
    names, model_type = fields.get("architectures", list, None), fields.get("model_type", str, None)
    name_of_type = MODEL_TYPES.get(model_type, model_type)
    name = names[0] if names else name_of_type  # a file that was written by hand may lack either
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(f"{fields.path} has the architecture {one_line(str(name), 80)}: this project reads "
                        f"{', '.join(ARCHITECTURES)}")
    if model_type is not None and name_of_type != name:  # transformers goes by the model_type
        raise fields.unsupported(f"the architecture {name} with the model_type {model_type}")
    return ARCHITECTURES[name]


# ---- The values of ModelConfig, by architecture ----------------------------------------------------------------------


def read_gpt2(fields: Fields) -> dict[str, Any]:
    """Return the values of ModelConfig of a GPT2LMHeadModel."""
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
        **read_biases(fields),
        "tied": fields.get("tie_word_embeddings", bool, True),
        "norm_eps": fields.get("layer_norm_epsilon", float, 1e-5),
    }


def read_biases(fields: Fields) -> dict[str, bool | None]:
    """Return the values of ModelConfig about biases, for an architecture that always has them.

    Our exports record which of them are zeros, because the model has none.
    """
    return {"bias": fields.get("bias", bool, True), "qkv_bias": fields.get("qkv_bias", bool, None)}


def read_your_gpt(fields: Fields) -> dict[str, Any]:
    """Return the values of ModelConfig of the class in formats/export/remote/modeling_your_gpt.py."""
    return read_gpt2(fields) | {name: fields.get(name, bool, False) for name in ("qk_norm", "head_bias")}


def read_persimmon(fields: Fields) -> dict[str, Any]:
    """Return the values of ModelConfig of a PersimmonForCausalLM."""
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
        **read_biases(fields),
        "tied": fields.get("tie_word_embeddings", bool, False),
        "norm_eps": fields.get("layer_norm_eps", float, 1e-5),
        "rope_theta": read_rope_theta(fields, default_rotary_factor=0.5),
    }


def read_llama(fields: Fields) -> dict[str, Any]:
    """Return the values of ModelConfig of a LlamaForCausalLM."""
    activation = fields.get("hidden_act", str, "silu")
    if activation not in ("silu", "swish"):
        raise fields.unsupported(f"hidden_act {activation}")
    bias = fields.get("attention_bias", bool, False)
    if fields.get("mlp_bias", bool, False) != bias:
        raise fields.unsupported("biases in either attention or the feed-forward network (attention_bias, mlp_bias)")
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
        "rope_theta": read_rope_theta(fields),
    }


def read_mistral(fields: Fields) -> dict[str, Any]:
    """Return the values of ModelConfig of a MistralForCausalLM: a Llama, if its window is as long as its context."""
    window = fields.fields.get("sliding_window", 4096)  # null: no window
    if window is not None and fields.get("sliding_window", int, 4096) < fields.size("max_position_embeddings"):
        raise fields.unsupported(f"sliding_window {window}")
    return read_llama(fields) | {"num_kv_heads": fields.size("num_key_value_heads"), "bias": False}


def read_rope_theta(fields: Fields, default_rotary_factor: float = 1.0) -> float:
    """Return the base of the rotary frequencies. Raises UserError if they are scaled, or not all channels are rotated.

    transformers 5 writes rope_parameters; older versions, rope_theta and rope_scaling.
    """
    rope = Fields(fields.path, fields.get("rope_scaling", dict, {}) or fields.get("rope_parameters", dict, {}))
    kind = rope.get("rope_type", str, rope.get("type", str, "default"))
    if kind != "default":
        raise fields.unsupported(f"rope scaling of the type {kind}")
    rotary_factor = fields.get("partial_rotary_factor", float, default_rotary_factor)
    rope.require("partial_rotary_factor", float, rotary_factor, 1.0)
    return rope.get("rope_theta", float, fields.get("rope_theta", float, 10_000.0))


class Architecture(NamedTuple):
    """A class of transformers that this project reads."""

    model_class: str
    """A name in models.zoo.ZOO."""
    read: Callable[[Fields], dict[str, Any]]
    """Returns the values of ModelConfig."""


ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture("GPT2", read_gpt2),
    "LlamaForCausalLM": Architecture("Llama", read_llama),
    "MistralForCausalLM": Architecture("Llama", read_mistral),
    "PersimmonForCausalLM": Architecture("BardGPT", read_persimmon),
    "YourGPTForCausalLM": Architecture("TransformerModel", read_your_gpt),
}
MODEL_TYPES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
               "persimmon": "PersimmonForCausalLM", "your_gpt": "YourGPTForCausalLM"}
