"""Small Hugging Face folders, for tests."""

import json

import torch
import transformers
from small_text import TEXT

from data.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer([TEXT], "bpe", 300)
VOCAB = TOKENIZER.vocab_size
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "max_position_embeddings": 256,
         "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}
CONFIGS = {"gpt2": (transformers.GPT2Config, GPT2), "llama": (transformers.LlamaConfig, LLAMA),
           "mistral": (transformers.MistralConfig, LLAMA | {"sliding_window": None})}


def small_theirs(kind, **changes):
    """A random model of transformers without the zeros and ones of its start, behind which mistakes could hide."""
    torch.manual_seed(0)
    config_class, fields = CONFIGS[kind]
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = config_class(**{"vocab_size": VOCAB} | fields | special | changes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def save_folder(folder, model, **more):
    """Save a model of transformers and the tokenizer to a folder."""
    model.save_pretrained(folder, **more)
    TOKENIZER.save(folder / "tokenizer.json")
    return folder


def edit_json(path, *removed, **changes):
    """Change the fields of a JSON file, and remove others."""
    fields = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if name not in removed}),
                    encoding="utf-8")
