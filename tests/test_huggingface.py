"""Hugging Face folders: the same model as in transformers, and what is refused."""

import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_folders import CONFIGS, TOKENIZER, VOCAB, edit_json, memory_of_loading, save_folder, small_theirs
from small_runs import ROOT
from small_text import TEXT

import estimate
import terminal_demo
from data.prepare import open_tokens
from formats.huggingface import open_huggingface
from formats.huggingface_config import read_config
from formats.weight_names import GPT2, LLAMA, export_weights
from models.config import ModelConfig, ReplyConfig, SamplingConfig
from models.generate import generate, generate_text
from reading.options import ReadOptions
from tasks.language import Completion
from training.arguments import parse_settings
from training.checkpoint import load_checkpoint, load_model, read_start
from training.optim import make_optimizers
from training.run import train
from training.settings import OptimSettings
from utils import num_params_calculate
from utils.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MODELS = [
    ("gpt2", {}),
    ("gpt2", {"activation_function": "gelu", "n_inner": 40, "layer_norm_epsilon": 0.01}),
    ("gpt2", {"activation_function": "relu", "tie_word_embeddings": False}),
    ("gpt2", {"activation_function": "gelu_pytorch_tanh", "reorder_and_upcast_attn": True}),
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 0.01, "num_key_value_heads": 8}),
    ("llama", {"head_dim": 6}),
    ("llama", {"head_dim": 10, "attention_bias": True, "mlp_bias": True}),
    ("mistral", {}),
    ("mistral", {"sliding_window": 256}),
]
every_model = pytest.mark.parametrize("kind, changes", MODELS, ids=str)


def make_folder(folder, kind, **changes):
    return save_folder(folder, small_theirs(kind, **changes))


def transformers_logits(folder, x):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(x).logits


def assert_same_logits(folder):
    """Assert that our logits for a folder match transformers, within 1e-4 of the largest."""
    x = torch.randint(VOCAB, (2, 100))
    expected = transformers_logits(folder, x)
    with torch.no_grad():
        logits, _ = load_model(folder)[0](x)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()


def error_of(folder):
    """Return the message of the UserError for a folder, which must be one line."""
    with pytest.raises(UserError) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit_weights(folder, edit):
    """Apply a function to the weights in a folder, {name: tensor}."""
    weights = load_file(folder / WEIGHTS)
    save_file(edit(weights) or weights, folder / WEIGHTS, metadata={"format": "pt"})


# ---- The same logits -------------------------------------------------------------------------------------------------


@every_model
def test_logits_and_200_greedy_tokens_match_transformers(kind, changes, tmp_path):
    theirs = small_theirs(kind, **changes)
    folder = save_folder(tmp_path / "model", theirs)
    assert_same_logits(folder)
    prompt = TOKENIZER.encode("The fox asks")
    expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=200, do_sample=False, pad_token_id=0)[0].tolist()
    greedy = SamplingConfig(temperature=0)
    assert prompt + list(generate(load_model(folder)[0], prompt, 200, greedy)) == expected


@every_model
def test_importing_and_exporting_weights_are_inverse(kind, changes, tmp_path):
    theirs = small_theirs(kind, **changes)
    foreign = open_huggingface(save_folder(tmp_path / "model", theirs))
    table = GPT2 if kind == "gpt2" else LLAMA
    exported = dict(export_weights(table, foreign.config, dict(foreign.weights)))
    state = theirs.state_dict()
    tied = {"lm_head.weight"} if foreign.config.tied else set()
    assert exported.keys() == state.keys() - tied
    assert all(torch.equal(exported[name], state[name]) for name in exported)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_becomes_float32_and_tied_weights_stay_one_tensor(kind, dtype, tmp_path):
    folder = save_folder(tmp_path / "model", small_theirs(kind, tie_word_embeddings=True).to(dtype))
    assert_same_logits(folder)
    model = load_model(folder)[0]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert model.head.weight is model.token_embedding.weight
    optimizers = make_optimizers(model, OptimSettings(), torch.float32)
    trained = [id(weight) for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(trained) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("kind, removed, changes", [
    ("llama", ["rope_parameters"], {"rope_theta": 777.0}),
    ("llama", ["rope_parameters"], {"rope_theta": 777, "rope_scaling": None}),
    ("llama", ["rope_parameters"], {}),
    ("llama", [], {"rope_theta": 5.0}),
    ("llama", ["rms_norm_eps", "tie_word_embeddings", "head_dim", "attention_bias", "mlp_bias", "hidden_act"], {}),
    ("gpt2", ["tie_word_embeddings", "layer_norm_epsilon", "activation_function", "scale_attn_weights"], {}),
    ("gpt2", ["architectures"], {}),
])  # fmt: skip
def test_missing_fields_and_fields_of_older_versions_are_read_as_in_transformers(kind, removed, changes,
                                                                                        tmp_path):
    folder = make_folder(tmp_path / "model", kind)
    edit_json(folder / "config.json", *removed, **changes)
    assert_same_logits(folder)


def test_missing_num_key_value_heads_means_as_many_as_heads(tmp_path):
    folder = make_folder(tmp_path / "model", "llama", num_key_value_heads=8)
    edit_json(folder / "config.json", "num_key_value_heads")
    assert_same_logits(folder)


def test_a_minimal_config_gets_the_defaults_of_transformers(tmp_path):
    path = tmp_path / "config.json"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
             "max_position_embeddings": 64, "vocab_size": 300}
    path.write_text(json.dumps({"model_type": "llama"} | sizes))
    model_class, config = read_config(path)
    assert model_class == "Llama" and config.kv_heads == 4 and not config.tied and not config.bias
    assert (config.norm_eps, config.rope_theta, config.head_size) == (1e-6, 10_000.0, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool])
def test_a_gpt2_loads_without_the_prefix_and_with_the_buffers_of_old_files(dtype, tmp_path):
    folder = make_folder(tmp_path / "model", "gpt2")
    x = torch.randint(VOCAB, (1, 50))
    expected = transformers_logits(folder, x)

    def rename_as_in_old_files(weights):
        weights = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
        for i in range(2):
            weights[f"h.{i}.attn.bias"] = torch.ones(1, 1, 256, 256).tril().to(dtype)
            weights[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        return weights

    edit_weights(folder, rename_as_in_old_files)
    torch.testing.assert_close(load_model(folder)[0](x)[0], expected, rtol=1e-4, atol=1e-4)
    edit_weights(folder, lambda weights: {name: weight for name, weight in weights.items() if "1.ln_2.b" not in name})
    assert "is missing the weight h.1.ln_2.bias" in error_of(folder)


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, changes, message", [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx true"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights false"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention true"),
    ("gpt2", {"activation_function": "silu"}, "activation_function silu"),
    ("gpt2", {"architectures": ["GPTNeoForCausalLM"]}, "architecture GPTNeoForCausalLM"),
    ("gpt2", {"architectures": None, "model_type": "bloom"}, "architecture bloom"),
    ("gpt2", {"architectures": [["GPT2LMHeadModel"]]}, r"the architecture \['GPT2LMHeadModel'\]"),
    ("llama", {"model_type": "mistral", "sliding_window": 16}, "LlamaForCausalLM with the model_type mistral"),
    ("llama", {"model_type": "qwen2"}, "LlamaForCausalLM with the model_type qwen2"),
    ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("gpt2", {"n_embd": 0}, "n_embd must be an integer > 0, not 0"),
    ("gpt2", {"n_embd": "32"}, "n_embd cannot be 32"),
    ("gpt2", {"n_head": 5}, "config.json: n_embd 32 must be a multiple of num_heads 5"),
    ("gpt2", {"n_layer": 10**12}, "is missing the weight transformer.h.2.ln_1.weight"),
    ("gpt2", {"n_embd": 64}, r"wte.weight has shape \(\d+, 32\), but by its configuration \(\d+, 64\)"),
    ("gpt2", {"tie_word_embeddings": False}, "is missing the weight lm_head.weight"),
    ("gpt2", {"n_layer": 1}, r"has an unexpected weight transformer.h.1"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling of the type yarn"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling of the type linear"),
    ("llama", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
    ("llama", {"rope_parameters": "default"}, "rope_parameters cannot be default"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved true"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act gelu"),
    ("llama", {"attention_bias": True}, "biases in either attention or the feed-forward network"),
    ("llama", {"architectures": ["Qwen2ForCausalLM"]}, "architecture Qwen2ForCausalLM"),
    ("llama", {"max_position_embeddings": 2**62}, "of memory, and .* is free"),
    ("mistral", {"sliding_window": 255}, "sliding_window 255"),
])  # fmt: skip
def test_an_unsupported_or_inconsistent_setting_is_refused_by_name(kind, changes, message, tmp_path):
    folder = make_folder(tmp_path / "model", kind)
    edit_json(folder / "config.json", **changes)
    assert re.search(message, error_of(folder))


def test_a_mistral_without_sliding_window_has_the_default_window(tmp_path):
    folder = make_folder(tmp_path / "model", "mistral")
    edit_json(folder / "config.json", "sliding_window", max_position_embeddings=8192)
    assert "sliding_window 4096" in error_of(folder)


@pytest.mark.parametrize("edit, message", [
    (lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight") is None,
     "is missing the weight model.layers.1.mlp.up_proj.weight"),
    (lambda weights: weights.update(extra=torch.zeros(1)), "has an unexpected weight extra"),
    (lambda weights: weights.update({"lm_head.weight": torch.zeros(VOCAB, 31)}), "lm_head.weight has shape .* 31"),
    (lambda weights: weights.update({"model.norm.weight": torch.zeros(32).int()}), "norm.weight has the dtype I32"),
    (lambda weights: weights["model.norm.weight"].fill_(torch.nan) is None, "norm.weight has values that are not"),
])
def test_damaged_weights_are_errors_that_name_them(edit, message, tmp_path):
    folder = make_folder(tmp_path / "model", "llama")
    edit_weights(folder, lambda weights: None if edit(weights) else None)
    assert re.search(message, error_of(folder))


def test_a_tied_head_in_the_file_must_be_the_embedding(tmp_path):
    folder = make_folder(tmp_path / "model", "gpt2")
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": weights["transformer.wte.weight"].clone()}))
    assert_same_logits(folder)
    edit_weights(folder, lambda weights: weights.update({"lm_head.weight": weights["transformer.wte.weight"] + 1}))
    assert "lm_head.weight differs from transformer.wte.weight" in error_of(folder)


def test_missing_and_damaged_files_are_errors_that_name_them(tmp_path):
    folder = make_folder(tmp_path / "model", "gpt2")
    content = (folder / WEIGHTS).read_bytes()
    for damaged in (b"", content[:4], content[:100], content[:-1], b"\xff" * 8 + content[8:]):
        (folder / WEIGHTS).write_bytes(damaged)
        assert f"{WEIGHTS} is damaged or incomplete" in error_of(folder)
    (folder / WEIGHTS).unlink()
    assert f"{folder} has no {WEIGHTS}: save" in error_of(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is not valid JSON" in error_of(folder)
    (folder / "config.json").write_text("[]")
    assert "config.json is not a JSON object" in error_of(folder)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, INDEX, "pytorch_model.bin", "model-00001.safetensors"])
def test_a_single_file_of_a_folder_is_an_error(name, tmp_path):
    folder = make_folder(tmp_path / "model", "gpt2")
    (folder / name).touch()
    assert f"{name} is one file of a Hugging Face model: give the folder" in error_of(folder / name)


@pytest.mark.parametrize("name", [WEIGHTS, INDEX, "pytorch_model.bin"])
def test_a_folder_without_config_json_is_an_error(name, tmp_path):
    (tmp_path / name).touch()
    assert f"there is no file {tmp_path / 'config.json'}" in error_of(tmp_path)


def test_code_in_a_pytorch_file_is_never_run(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    folder = make_folder(tmp_path / "model", "gpt2")
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    assert "pytorch_model.bin is not read, as such files can contain code" in error_of(folder)
    assert not (tmp_path / "attacked").exists()


def test_a_missing_or_too_large_tokenizer_is_an_error(tmp_path):
    folder = make_folder(tmp_path / "model", "gpt2", vocab_size=VOCAB - 1)
    assert f"has a tokenizer of {VOCAB} tokens, but a model of {VOCAB - 1}" in error_of(folder)
    (folder / "tokenizer.json").unlink()
    assert "contains no tokenizer" in error_of(folder)


@pytest.mark.parametrize("name", ["add_prefix_space", "add_bos_token"])
def test_options_that_only_tokenizer_config_has_are_refused(name, tmp_path):
    folder = make_folder(tmp_path / "model", "gpt2")
    (folder / "tokenizer_config.json").write_text(json.dumps({name: True}))
    load_checkpoint(folder)  # the tokenizer.json decides
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    assert f"tokenizer_config.json has {name}" in error_of(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({name: False}))
    assert load_checkpoint(folder).tokenizer.encode(TEXT) == TOKENIZER.encode(TEXT)


# ---- Shards ----------------------------------------------------------------------------------------------------------


def save_shards(folder):
    save_folder(folder, small_theirs("llama"), max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return folder, shards


def test_the_index_decides_which_shards_are_read(tmp_path):
    folder, shards = save_shards(tmp_path / "model")
    (folder / "model-00009-of-00009.safetensors").write_bytes(b"stray")
    (folder / WEIGHTS).write_bytes(b"stray")
    weights = load_file(shards[0])  # a tensor that the index has in another shard
    save_file(weights | {"model.norm.weight": torch.zeros(7)}, shards[0], metadata={"format": "pt"})
    (folder / WEIGHTS).unlink()
    assert_same_logits(folder)


def test_a_missing_shard_and_a_shard_without_its_tensor_are_errors(tmp_path):
    folder, shards = save_shards(tmp_path / "model")
    name, *_ = weights = load_file(shards[1])
    save_file({other: weights[other] for other in weights if other != name}, shards[1], metadata={"format": "pt"})
    assert f"{shards[1]} is missing the weight {name}" in error_of(folder)
    shards[1].unlink()
    assert f"there is no file {shards[1]}" in error_of(folder)


@pytest.mark.parametrize("path", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x", "", "..", 7,
                                  "x" * 300, "é"])
def test_an_index_cannot_leave_its_folder(path, tmp_path, monkeypatch):
    folder, _ = save_shards(tmp_path / "model")
    names = json.loads((folder / INDEX).read_text())["weight_map"]
    edit_json(folder / INDEX, weight_map=names | {"model.norm.weight": path})
    monkeypatch.setattr("formats.huggingface.safe_open", None)  # nothing is opened
    assert f"names the file {str(path)[:20]}".replace("\\", "") in error_of(folder).replace("\\", "")


# ---- Use -------------------------------------------------------------------------------------------------------------


def test_padding_of_the_vocabulary_is_never_sampled(tmp_path):
    theirs = small_theirs("llama", vocab_size=VOCAB + 20)
    theirs.lm_head.weight.data[VOCAB:] *= 50
    model, tokenizer = load_model(save_folder(tmp_path / "model", theirs))
    greedy = SamplingConfig(temperature=0)
    assert max(generate(model, [1], 50, greedy)) >= VOCAB
    assert "".join(generate_text(model, tokenizer, [1], 50, greedy))  # decoding another id would raise IndexError
    sampling = SamplingConfig(temperature=100.0, seed=0)
    assert max(generate(model, [1], 200, sampling, vocab_size=tokenizer.vocab_size)) < VOCAB


@pytest.mark.parametrize("files", [
    {"generation_config.json": {"eos_token_id": 99}},
    {"tokenizer_config.json": {"eos_token": TOKENIZER.library.id_to_token(99)}},
    {},
], ids=str)
def test_a_completion_ends_before_the_stop_token_of_the_model(files, tmp_path):
    theirs = small_theirs("llama")
    end = 99 if files else TOKENIZER.end_of_text
    folder = save_folder(tmp_path / "model", theirs)
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields), encoding="utf-8")
    loaded = load_checkpoint(folder)
    config = ReplyConfig(temperature=1.0, seed=1, max_tokens=3000)
    text = "".join(Completion(loaded.model, loaded.tokenizer, loaded.task, print).answer("The fox", config))
    prompt = TOKENIZER.encode("The fox")
    unbounded = list(generate(loaded.model, prompt, 3000, config))
    assert text == TOKENIZER.decode(unbounded[: unbounded.index(end)])


def test_the_sampling_settings_and_the_chat_template_of_a_folder_are_read(tmp_path):
    folder = make_folder(tmp_path / "model", "gpt2")
    edit_json(folder / "generation_config.json", temperature=0.6, top_p=0.9, top_k=0)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    loaded, foreign = load_checkpoint(folder), open_huggingface(folder)
    assert (loaded.reply.temperature, loaded.reply.top_p, loaded.reply.top_k) == (0.6, 0.9, None)
    assert foreign.template.source == "{{ messages }}"
    assert loaded.task == {"kind": "language", "template": foreign.template, "stop_tokens": frozenset()}
    edit_json(folder / "generation_config.json", do_sample=True)
    assert load_checkpoint(folder).reply.temperature == 0.6
    edit_json(folder / "generation_config.json", do_sample=False)
    assert load_checkpoint(folder).reply.temperature == 0  # greedy, as in transformers, whatever the temperature is
    edit_json(folder / "generation_config.json", top_p=7)
    assert "generation_config.json: top_p cannot be 7" in error_of(folder)


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Create a working directory with text.txt and the folders gpt2 and llama."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.record.plot_losses", lambda *_: None)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    for kind in ("gpt2", "llama"):
        make_folder(tmp_path / kind, kind)
    return tmp_path


def fine_tune(*more):
    train(parse_settings([
        "--data.path=text.txt", "--output.folder=runs", "--output.sample_tokens=4", "--training.max_iters=2",
        "--training.eval_interval=1", "--training.batch_size=2", "--training.device=cpu", "--training.dtype=float32",
        *more]))


def transformers_loss(folder, ids, block_size):
    """Return the mean loss of transformers' model over consecutive windows."""
    model, ids = transformers.AutoModelForCausalLM.from_pretrained(folder), torch.tensor([int(i) for i in ids])
    total = 0.0
    for start in range(0, len(ids) - 1, block_size):
        x, y = ids[start : start + block_size], ids[start + 1 : start + block_size + 1]
        with torch.no_grad():
            total += torch.nn.functional.cross_entropy(model(x[None, : len(y)]).logits[0], y, reduction="sum").item()
    return total / (len(ids) - 1)


def main(script, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["script", *arguments])
    script.main()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_scripts_take_a_folder(kind, text, monkeypatch, capsys):
    main(terminal_demo, monkeypatch, kind, "--prompt", "The owl", "--max_tokens", "5", "--temperature", "0")
    ids = TOKENIZER.encode("The owl")
    model = load_model(kind)[0].to(terminal_demo.inference_dtype("cpu"))
    expected = TOKENIZER.decode(generate(model, ids, 5, SamplingConfig(temperature=0)))
    assert capsys.readouterr().out == f"{expected}\n"
    main(estimate, monkeypatch, kind, "--data", "text.txt", "--split", "all", "--device", "cpu")
    loss = float(re.search(r"loss +([\d.]+)", capsys.readouterr().out)[1])
    text = open_tokens("text.txt", ReadOptions(), TOKENIZER)
    expected = transformers_loss(kind, [*text.train, *text.val], block_size=256)
    assert loss == pytest.approx(expected, rel=0.02)  # in bfloat16 where the hardware supports it


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_training_starts_from_a_folder_with_a_shorter_context_and_dropout(kind, text):
    fine_tune(f"--init={kind}", "--run=tuned", "--model.block_size=32", "--model.dropout=0.1")
    first = json.loads((text / "runs" / "tuned" / "metrics.jsonl").read_text().splitlines()[0])
    expected = transformers_loss(kind, open_tokens("text.txt", ReadOptions(), TOKENIZER).val, block_size=32)
    assert first["step"] == 0 and first["val_loss"] == pytest.approx(expected, rel=1e-4)
    config = load_model("runs/tuned")[0].config
    assert config.block_size == 32 and config.dropout == 0.1
    with pytest.raises(UserError, match="--init has block_size 256, not 300"):
        fine_tune(f"--init={kind}", "--run=longer", "--model.block_size=300")


def test_a_shorter_context_keeps_the_first_positions(text):
    fine_tune("--init=gpt2", "--run=frozen", "--model.block_size=32", "--training.trainable_blocks=0")
    tuned, whole = load_model("runs/frozen")[0], load_model("gpt2")[0]
    assert torch.equal(tuned.position_embedding.weight, whole.position_embedding.weight[:32])


def test_biases_of_query_key_and_value_can_be_left_out_or_start_at_zero(text, capsys):
    def fill_biases(value):
        def edit(weights):
            for name, weight in weights.items():
                if name.endswith("attn.c_attn.bias"):
                    weight.fill_(value)

        edit_weights(text / "gpt2", edit)

    ids = open_tokens("text.txt", ReadOptions(), TOKENIZER).val
    fill_biases(0.5)
    losses = {}
    for kind, bias in (("gpt2", "true"), ("gpt2", "false"), ("llama", "true")):
        run = f"{kind}-{bias}"
        fine_tune(f"--init={kind}", f"--run={run}", f"--model.qkv_bias={bias}", "--model.block_size=32",
                  "--lora.rank=2", "--lora.merge=false")
        losses[run] = json.loads((text / "runs" / run / "metrics.jsonl").read_text().splitlines()[0])["val_loss"]
        assert load_model(f"runs/{run}")[0].config.has_qkv_bias == (bias == "true")
    printed = capsys.readouterr().out
    assert "value of --init are left out" in printed and "value start at zero" in printed
    assert losses["gpt2-true"] == pytest.approx(transformers_loss("gpt2", ids, block_size=32), rel=1e-4)
    assert losses["llama-true"] == pytest.approx(transformers_loss("llama", ids, block_size=32), rel=1e-4)
    fill_biases(0)
    assert losses["gpt2-false"] == pytest.approx(transformers_loss("gpt2", ids, block_size=32), rel=1e-4)
    assert losses["gpt2-false"] != pytest.approx(losses["gpt2-true"], rel=1e-4)
    fine_tune("--model.name=GPT2", "--run=new", "--model.qkv_bias=false", "--model.block_size=16", "--model.n_embd=16",
              "--model.num_heads=2", "--model.n_blocks=1")
    names = dict(load_model("runs/new")[0].named_parameters())
    assert "blocks.0.attention.out.bias" in names and "blocks.0.attention.qkv.bias" not in names


def test_lora_adapters_load_only_with_the_folder_they_were_trained_for(text):
    fine_tune("--init=gpt2", "--run=lora", "--lora.rank=2", "--lora.merge=false", "--model.block_size=32")
    loaded = load_model("runs/lora")[0]
    fine_tune("--init=gpt2", "--run=merged", "--lora.rank=2", "--model.block_size=32")
    merged = load_model("runs/merged")[0]
    x = torch.randint(VOCAB, (1, 32))
    torch.testing.assert_close(loaded(x)[0], merged(x)[0])
    edit_weights(text / "gpt2", lambda weights: weights["transformer.h.0.ln_1.bias"].add_(1) is None or None)
    with pytest.raises(UserError, match="gpt2 is not the model that they belong to"):
        load_model("runs/lora")


def test_read_start_returns_the_config_and_the_model_class(tmp_path):
    folder = make_folder(tmp_path / "model", "llama")
    start = read_start(folder)
    assert ModelConfig(**start["config"]) == load_model(folder)[0].config and start["model_class"] == "Llama"


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_calculator_counts_the_parameters_of_a_folder(kind, tmp_path, monkeypatch, capsys):
    theirs = small_theirs(kind)
    folder = save_folder(tmp_path / "model", theirs)
    for path in (folder, folder / "config.json"):
        main(num_params_calculate, monkeypatch, "--model", str(path))
        assert f"{sum(weight.numel() for weight in theirs.parameters()):,} parameters" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(num_params_calculate, monkeypatch, "--model", str(folder / WEIGHTS))
    assert f"{WEIGHTS} is not the config.json of a Hugging Face model" in capsys.readouterr().err
    main(num_params_calculate, monkeypatch, "--model", str(folder), "--n_blocks", "1")
    fewer = small_theirs(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 1})
    assert f"{sum(weight.numel() for weight in fewer.parameters()):,} parameters" in capsys.readouterr().out


def test_a_config_is_read_without_torch():
    code = "import formats.huggingface_config, sys; print(sorted({'torch', 'safetensors'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc/self/status")
@pytest.mark.parametrize("kind, dtype, changes", [
    ("gpt2", torch.float32, {"n_embd": 512, "n_layer": 8, "vocab_size": 30_000}),
    ("llama", torch.bfloat16, {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 20_000}),
    ("llama", torch.float32, {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 20_000}),
])
def test_loading_takes_less_than_1_3_times_the_memory_of_the_model(kind, dtype, changes, tmp_path):
    folder = save_folder(tmp_path / "model", small_theirs(kind, **changes).to(dtype))
    assert memory_of_loading(folder) < 1.3
    assert memory_of_loading(folder, "to train") < 1.3
