"""nanoGPT's ckpt.pt: the same logits as transformers with the same weights, and what is refused."""

import json
import pickle
import string
import sys

import pytest
import torch
from small_folders import assert_matches, memory_of_loading, small_theirs

import estimate
import terminal_demo
from formats.nanogpt import find_tokenizer
from tokenization.bpe import BYTE_OF
from training.arguments import parse_settings
from training.checkpoint import load_checkpoint
from training.run import train
from utils.errors import UserError

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
CHARACTERS = sorted("\n " + string.ascii_letters + "0123456789!")  # 65


def small_gpt2(activation_function="gelu", vocab_size=65, **changes):
    return small_theirs("gpt2", activation_function=activation_function, vocab_size=vocab_size, n_positions=16,
                        **changes)


def nanogpt_weights(model, prefix="_orig_mod."):
    """Return nanoGPT's state_dict for a GPT2LMHeadModel: its linear layers are not transposed."""
    return {prefix + name: weight.T.contiguous() if name.endswith(TRANSPOSED) else weight
            for name, weight in model.state_dict().items()}


def optimizer_state(weights):
    """Return the state_dict of an AdamW that trains these weights."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights.values()]
    optimizer = torch.optim.AdamW(parameters)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    return optimizer.state_dict()


def write_checkpoint(folder, weights, meta=True, **arguments):
    """Write out/ckpt.pt to a folder and, unless `meta` is false, data/letters/meta.pkl; return the path."""
    file = folder / "out" / "ckpt.pt"
    file.parent.mkdir()
    arguments = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "bias": True, "vocab_size": 65,
                 "dropout": 0.1} | arguments
    torch.save({"model": weights, "optimizer": optimizer_state(weights), "model_args": arguments, "iter_num": 3,
                "best_val_loss": torch.tensor(1.5), "config": {"dataset": "letters", "device": "cuda"}}, file)
    if meta:
        write_meta(folder / "data" / "letters" / "meta.pkl")
    return file


def write_meta(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    ids = {character: i for i, character in enumerate(CHARACTERS)}
    file.write_bytes(pickle.dumps({"vocab_size": 65, "itos": dict(enumerate(CHARACTERS)), "stoi": ids}))


@pytest.fixture
def checkpoint(tmp_path):
    """Write a nanoGPT checkpoint; return its path."""
    return write_checkpoint(tmp_path, nanogpt_weights(small_gpt2()))


@pytest.mark.parametrize(("suffix", "activation"), [("", "gelu"), (":tanh", "gelu_new")])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_the_logits_match_transformers(tmp_path, prefix, suffix, activation):
    theirs = small_gpt2(activation)
    file = write_checkpoint(tmp_path, nanogpt_weights(theirs, prefix))
    loaded = load_checkpoint(f"{file}{suffix}")
    assert_matches(loaded.model, theirs)
    assert loaded.model.head.weight is loaded.model.token_embedding.weight
    assert loaded.tokenizer.vocab == "".join(CHARACTERS)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}


def test_tanh_selects_the_approximation_of_gelu(checkpoint):
    theirs = small_gpt2()
    assert_matches(load_checkpoint(checkpoint).model, theirs)
    with pytest.raises(AssertionError):
        assert_matches(load_checkpoint(f"{checkpoint}:tanh").model, theirs)


def test_a_checkpoint_without_biases_loads(tmp_path):
    theirs = small_gpt2()
    for name, weight in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(weight)
    weights = {name: weight for name, weight in nanogpt_weights(theirs).items() if not name.endswith("bias")}
    file = write_checkpoint(tmp_path, weights, bias=False)
    model = load_checkpoint(file).model
    assert_matches(model, theirs)
    assert model.blocks[0].attention.qkv.bias is None


def test_an_untied_head_loads(tmp_path):
    theirs = small_gpt2(tie_word_embeddings=False)
    model = load_checkpoint(write_checkpoint(tmp_path, nanogpt_weights(theirs))).model
    assert_matches(model, theirs)
    assert not model.config.tied


def test_old_files_without_bias_in_model_args_and_with_attention_buffers_load(tmp_path):
    theirs = small_gpt2("gelu_new")
    weights = nanogpt_weights(theirs, prefix="")
    for i in range(2):
        weights[f"transformer.h.{i}.attn.bias"] = torch.ones(16, 16).tril()[None, None]
    file = write_checkpoint(tmp_path, weights, meta=False)
    content = torch.load(file)
    del content["model_args"]["bias"], content["model_args"]["dropout"], content["config"]
    torch.save(content, file)
    write_meta(tmp_path / "out" / "meta.pkl")
    assert_matches(load_checkpoint(f"{file}:tanh").model, theirs)


def test_a_folder_with_a_checkpoint_that_was_saved_on_a_gpu_loads_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    theirs = small_gpt2()
    file = write_checkpoint(tmp_path, nanogpt_weights(theirs))
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(file)
    assert_matches(load_checkpoint(file.parent).model, theirs)


def test_a_padded_vocabulary_works_with_the_tokenizer_of_gpt2(tmp_path, run_main):
    theirs = small_gpt2(vocab_size=304)
    with torch.no_grad():
        theirs.transformer.wte.weight[257:] *= 100  # padding that would otherwise be sampled
    file = write_checkpoint(tmp_path, nanogpt_weights(theirs), meta=False, vocab_size=304)
    tokens = {token: i for i, token in enumerate([*BYTE_OF, "<|endoftext|>"])}
    (file.parent / "encoder.json").write_text(json.dumps(tokens), encoding="utf-8")
    (file.parent / "vocab.bpe").write_text("#version: 0.2\n", encoding="utf-8")
    assert_matches(load_checkpoint(file).model, theirs)
    assert run_main(terminal_demo.main, file, "--prompt", "a", "--max_tokens", "9", "--device", "cpu")


@pytest.mark.parametrize("vocab_size", [50257, 50304])
def test_without_meta_pkl_the_tokenizer_of_gpt2_is_used(tmp_path, monkeypatch, vocab_size):
    monkeypatch.setattr("formats.nanogpt.load_tokenizer", lambda name: f"the tokenizer {name}")
    file = tmp_path / "out" / "ckpt.pt"
    assert find_tokenizer(file, {"dataset": "openwebtext"}, vocab_size) == "the tokenizer gpt2"


def test_the_scripts_read_a_checkpoint(checkpoint, tmp_path, run_main):
    text = tmp_path / "text.txt"
    text.write_text("abc ABC\n" * 200)
    assert "GPT2, 28,064 parameters" in run_main(estimate.main, checkpoint, "--data", text, "--device", "cpu")
    assert run_main(terminal_demo.main, checkpoint, "--prompt", "abc", "--max_tokens", "5", "--device", "cpu").strip()


def test_training_starts_from_a_checkpoint(checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("abc ABC\n" * 200)
    train(parse_settings([f"--init={checkpoint}:tanh", f"--data.path={tmp_path}/text.txt", "--run=more",
                          f"--output.folder={tmp_path}/runs", "--training.max_iters=2", "--training.eval_interval=1",
                          "--training.batch_size=2", "--training.device=cpu", "--output.sample_tokens=2"]))
    trained, start = load_checkpoint(tmp_path / "runs/more").model, load_checkpoint(f"{checkpoint}:tanh").model
    assert trained.config == start.config
    assert 0 < (trained.token_embedding.weight - start.token_embedding.weight).abs().max() < 0.02


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc/self/status")
def test_loading_takes_less_than_1_3_times_the_memory_of_the_model(tmp_path):
    sizes = {"n_embd": 512, "n_layer": 6, "vocab_size": 20_000}
    file = write_checkpoint(tmp_path, nanogpt_weights(small_gpt2(**sizes)), **sizes)
    assert memory_of_loading(file) < 1.3


# ---- What is refused -------------------------------------------------------------------------------------------------

C_PROJ = "_orig_mod.transformer.h.1.mlp.c_proj.weight"


def edit_checkpoint(file, edit):
    """Apply a function to the content of a checkpoint."""
    content = torch.load(file)
    edit(content)
    torch.save(content, file)


@pytest.mark.parametrize(("edit", "message"), [
    (lambda content: content["model"].pop(C_PROJ), "missing the weight transformer.h.1.mlp.c_proj.weight"),
    (lambda content: content["model"].update(x=torch.ones(2)), "unexpected weight x"),
    (lambda content: content["model"].update({C_PROJ: torch.ones(32, 127)}), "c_proj.weight has shape"),
    (lambda content: content["model"].update({C_PROJ: torch.ones(32, 128, dtype=torch.int64)}), "is not a weight"),
    (lambda content: content["model"].update({C_PROJ: torch.ones(1).expand(32, 128)}), "is not a weight"),
    (lambda content: content["model"].update({C_PROJ: "x"}), "is not a weight"),
    (lambda content: content["model"][C_PROJ].fill_(torch.nan), "not finite"),
    (lambda content: content["model_args"].update(n_layer=3), "missing the weight transformer.h.2.ln_1.weight"),
    (lambda content: content["model_args"].update(n_layer=10**9), "missing the weight transformer.h.2.ln_1.weight"),
    (lambda content: content["model_args"].update(n_layer=1), "unexpected weight transformer.h.1.ln_1.weight"),
    (lambda content: content["model_args"].update(n_layer="2"), "n_layer cannot be 2"),
    (lambda content: content["model_args"].update(n_head=5), "must be a multiple of num_heads 5"),
    (lambda content: content["model_args"].update(bias=False), "unexpected weight transformer.h.0.ln_1.bias"),
    (lambda content: content["model_args"].update(vocab_size=64), "has shape"),
    (lambda content: content["model_args"].pop("n_embd"), "n_embd must be an integer"),
    (lambda content: content.update(model=[]), "is not a checkpoint of nanoGPT"),
    (lambda content: content.update(model_args={"dim": 64}), "model.bin"),
    (lambda content: content.update(config={"dataset": "../letters"}), "no meta.pkl"),
    (lambda content: content.update(config=None), "no meta.pkl"),
])  # fmt: skip
def test_damaged_checkpoints_are_refused(checkpoint, edit, message):
    edit_checkpoint(checkpoint, edit)
    with pytest.raises(UserError, match=message):
        load_checkpoint(checkpoint)


def test_a_truncated_file_is_refused(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(checkpoint)


def test_code_in_a_checkpoint_is_not_run(checkpoint, capsys):
    class Code:
        def __reduce__(self):
            return print, ("code was run",)

    edit_checkpoint(checkpoint, lambda content: content.update(config=Code()))
    with pytest.raises(UserError, match="contains code, which is not run"):
        load_checkpoint(checkpoint)
    assert capsys.readouterr().out == ""


def test_a_meta_pkl_of_other_data_is_refused(tmp_path):
    theirs = small_gpt2(vocab_size=20)
    file = write_checkpoint(tmp_path, nanogpt_weights(theirs), vocab_size=20)
    with pytest.raises(UserError, match="a tokenizer of 65 tokens, but a model of 20"):
        load_checkpoint(file)


def test_tanh_is_only_for_nanogpt_checkpoints(tmp_path):
    with pytest.raises(UserError, match="there is no"):
        load_checkpoint(tmp_path / "missing.pt:tanh")
    torch.save({"weights": {}}, tmp_path / "ours.pt")
    with pytest.raises(UserError, match="is not a checkpoint of nanoGPT"):
        load_checkpoint(tmp_path / "ours.pt:tanh")
