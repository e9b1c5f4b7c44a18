"""Export: what other programs load is the model of the checkpoint."""

import json

import pytest
import torch
from small_models import small_model

import export
from data.bpe import BPETokenizer
from data.dialogues import prompt_ids
from data.tokenizer import CharTokenizer
from models.config import SamplingConfig
from models.generate import generate
from models.weights import file_weights
from training.checkpoint import load_checkpoint, save_checkpoint

transformers = pytest.importorskip("transformers")

CHARACTERS = "\n ',?abct"
AWKWARD = "a b , c ?\n\n 't"
GPT2, LLAMA, PERSIMMON, REMOTE = ("GPT2LMHeadModel", "LlamaForCausalLM", "PersimmonForCausalLM", "YourGPTForCausalLM")
MODELS = {  # name: model of the zoo, changes, class of transformers
    "GPT-2": ("GPT2", {}, GPT2),
    "GPT-2 untied": ("GPT2", {"tied": False, "feed_forward": "gelu_exact"}, GPT2),
    "GPT-2 with fewer biases": ("GPT2", {"qkv_bias": False, "norm_eps": 1e-3}, GPT2),
    "PoemGPT, no biases": ("PoemGPT", {}, GPT2),
    "RainbowGPT, head bias": ("RainbowGPT", {}, GPT2),
    "RainbowGPT, many tokens": ("RainbowGPT", {"vocab_size": 40}, REMOTE),
    "TransformerModel without QK norm": ("TransformerModel", {"qk_norm": False}, GPT2),
    "TransformerModel": ("TransformerModel", {}, REMOTE),
    "TransformerModel, biases": ("TransformerModel", {"bias": True}, REMOTE),
    "Llama": ("Llama", {"num_kv_heads": 2}, LLAMA),
    "Llama untied, biases": ("Llama", {"num_kv_heads": 8, "bias": True, "tied": False, "head_dim": 6}, LLAMA),
    "EasyGPT": ("EasyGPT", {"num_kv_heads": 2, "norm_eps": 1e-3, "rope_theta": 500.0}, LLAMA),
    "BardGPT": ("BardGPT", {}, PERSIMMON),
    "BardGPT, other": ("BardGPT", {"bias": True, "tied": True, "feed_forward": "gelu", "norm_eps": 1e-3}, PERSIMMON),
    "BardGPT without QK norm": ("BardGPT", {"qk_norm": False, "head_bias": True, "rope_theta": 500.0}, PERSIMMON),
}


def save(path, model, tokenizer, **more):
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(path, model, tokenizer, **more)
    return path


def tokenizer_of(size):
    """A character tokenizer with this many tokens."""
    return CharTokenizer((CHARACTERS + "".join(map(chr, range(0x4E00, 0x4E40))))[:size])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a name in MODELS to (checkpoint, folder of the export), which is made once."""
    made = {}

    def get(name):
        if name not in made:
            zoo_name, changes, _ = MODELS[name]
            model = small_model(zoo_name, **{"block_size": 256} | changes)
            tmp_path = tmp_path_factory.mktemp("export")
            checkpoint = save(tmp_path / "best.pt", model, tokenizer_of(model.config.vocab_size))
            run_export(checkpoint, tmp_path / "exported")
            made[name] = checkpoint, tmp_path / "exported"
        return made[name]

    return get


def run_export(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export.py", *map(str, arguments)])
        export.main()


def error_of(capsys, *arguments):
    """The message of an export that must fail: one line, with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_code:
        run_export(*arguments)
    assert exit_code.value.code == 2
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    return message


def load_theirs(folder):
    remote = (folder / "modeling_your_gpt.py").exists()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote).eval()


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_logits_and_the_greedy_tokens_of_the_checkpoint(name, exported):
    checkpoint, folder = exported(name)
    model = load_checkpoint(checkpoint).model
    theirs = load_theirs(folder)
    assert type(theirs).__name__ == MODELS[name][2]
    ids = torch.randint(model.config.vocab_size, (2, 256), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = model(ids)[0], theirs(ids).logits
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    prompt = [3, 1, 2]
    greedy = theirs.generate(torch.tensor([prompt]), max_new_tokens=200, do_sample=False)[0, 3:].tolist()
    assert greedy == list(generate(model, prompt, 200, SamplingConfig(temperature=0)))


@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_that_is_imported_has_the_same_weights(name, exported):
    checkpoint, folder = exported(name)
    before, after = load_checkpoint(checkpoint).model, load_checkpoint(folder).model
    expected, found = file_weights(before), file_weights(after)
    if before.config.head_bias and MODELS[name][2] != REMOTE:  # it is in the bias of the final norm
        moved = found.pop("final_norm.bias") - expected.pop("final_norm.bias")
        torch.testing.assert_close(expected["head.weight"] @ moved, expected.pop("head.bias"), rtol=1e-4, atol=1e-4)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[weight], found[weight]) for weight in expected)
