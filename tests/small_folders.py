"""Small Hugging Face folders, for tests."""

import json
import subprocess
import sys

import torch
import transformers
from small_runs import ROOT
from small_text import TEXT

from tokenization.load import train_tokenizer

PEAK = """
import sys
from models.config import ModelConfig
from training.checkpoint import load_checkpoint, read_start
from training.run import build_model
from training.settings import Settings

def peak():  # ru_maxrss would include the parent process
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

before = peak()
if sys.argv[2] == "to train":
    start, settings = read_start(sys.argv[1]), Settings()
    settings.model.name = start["model_class"]
    model = build_model(settings, ModelConfig(**start["config"]), None, start)
else:
    model = load_checkpoint(sys.argv[1]).model
print((peak() - before) / sum(4 * weight.numel() for weight in model.parameters()))
"""

TOKENIZER = train_tokenizer([TEXT], "bpe", 300)
VOCAB = TOKENIZER.vocab_size
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 2, "max_position_embeddings": 256,
         "rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}
CONFIGS = {"gpt2": (transformers.GPT2Config, GPT2), "llama": (transformers.LlamaConfig, LLAMA),
           "mistral": (transformers.MistralConfig, LLAMA | {"sliding_window": None})}


def small_theirs(kind, **changes):
    """Return a small model of transformers with random weights, as the initial zeros and ones could hide mistakes."""
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
    """Change fields of a JSON file, and remove others."""
    fields = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if name not in removed}),
                    encoding="utf-8")


def assert_matches(ours, theirs):
    """Assert that our model computes the logits of a model of transformers, in float32 over the whole context."""
    ids = torch.randint(theirs.config.vocab_size, (3, ours.block_size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits, expected = ours(ids)[0], theirs(ids).logits
    assert expected.abs().max() > 0.5
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def memory_of_loading(path, purpose="to use"):
    """Return the peak memory of loading a model "to use" or "to train", as a multiple of its size in float32."""
    done = subprocess.run([sys.executable, "-c", PEAK, path, purpose], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)
