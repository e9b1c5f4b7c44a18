"""Export: transformers computes the same from the folder as this project from the checkpoint."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_exports import error_of, run_export
from small_models import small_model
from small_runs import ROOT
from small_tokenizers import SP_TEXTS, sp_library
from tokenizers import AddedToken, Tokenizer

from formats.weight_names import LLAMA as LLAMA_TABLE
from formats.weight_names import export_weights
from models.config import ReplyConfig, SamplingConfig
from models.generate import generate
from models.weights import file_weights
from records.dialogues import prompt_ids
from tasks.dialogue import reply_ids
from tokenization.bpe import BPETokenizer
from tokenization.characters import CharTokenizer
from tokenization.sentencepiece_bpe import SentencePieceTokenizer
from training.checkpoint import load_checkpoint, save_checkpoint
from utils.errors import UserError

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


def char_tokenizer(size):
    """Return a character tokenizer with `size` tokens."""
    return CharTokenizer((CHARACTERS + "".join(map(chr, range(0x4E00, 0x4E40))))[:size])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function from a name in MODELS to (checkpoint, folder of its export), which is written once."""
    made = {}

    def get(name):
        if name not in made:
            zoo_name, changes, _ = MODELS[name]
            model = small_model(zoo_name, **{"block_size": 256} | changes)
            tmp_path = tmp_path_factory.mktemp("export")
            checkpoint = save(tmp_path / "best.pt", model, char_tokenizer(model.config.vocab_size))
            run_export(checkpoint, tmp_path / "exported")
            made[name] = checkpoint, tmp_path / "exported"
        return made[name]

    return get


def load_theirs(folder):
    remote = (folder / "modeling_your_gpt.py").exists()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote).eval()


def their_tokenizer_of(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_gives_the_same_logits_and_greedy_tokens_as_the_checkpoint(name, exported):
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
def test_an_exported_model_is_imported_with_the_same_weights(name, exported):
    checkpoint, folder = exported(name)
    before, after = load_checkpoint(checkpoint).model, load_checkpoint(folder).model
    expected, found = file_weights(before), file_weights(after)
    if before.config.head_bias and MODELS[name][2] != REMOTE:  # it was moved into the bias of the final norm
        moved = found.pop("final_norm.bias") - expected.pop("final_norm.bias")
        torch.testing.assert_close(expected["head.weight"] @ moved, expected.pop("head.bias"), rtol=1e-4, atol=1e-4)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[weight], found[weight]) for weight in expected)


# ---- Tokenizers and generation ---------------------------------------------------------------------------------------


def test_a_character_tokenizer_reproduces_every_text(exported):
    _, folder = exported("BardGPT")
    tokenizer, ours = their_tokenizer_of(folder), char_tokenizer(11)
    ids = tokenizer(AWKWARD)["input_ids"]
    assert ids == ours.encode(AWKWARD) and len(tokenizer) == ours.vocab_size
    assert tokenizer.decode(ids) == AWKWARD
    with pytest.raises(Exception, match="UNK"):
        tokenizer("an unknown character: %")
    assert load_checkpoint(folder).tokenizer.to_dict() == ours.to_dict()


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BardGPT", "TransformerModel"])
def test_no_token_of_a_character_model_ends_a_text(name, exported):
    theirs = load_theirs(exported(name)[1])
    for config in (theirs.config, theirs.generation_config):
        assert config.eos_token_id is None and config.pad_token_id is None
    assert theirs.config.bos_token_id is None


def test_a_pipeline_generates_the_same_text_as_the_checkpoint(exported):
    checkpoint, folder = exported("GPT-2")
    complete = transformers.pipeline("text-generation", str(folder))
    model, tokenizer = load_checkpoint(checkpoint)[:2]
    [found] = complete("a b", max_new_tokens=30, do_sample=False)
    ids = tokenizer.encode("a b")
    assert found["generated_text"] == tokenizer.decode([*ids, *generate(model, ids, 30, SamplingConfig(temperature=0))])
    [found] = complete("a b")  # with the settings of the export, up to the end of the context
    assert len(tokenizer.encode(found["generated_text"])) == 256


def test_a_bpe_tokenizer_keeps_its_ids_and_ends_at_its_end_of_text(tmp_path):
    tokenizer = BPETokenizer.train([f"hello {name}, it's me: 你好！\n\n" * 3 for name in "abcdef"], 320)
    model = small_model("EasyGPT", num_kv_heads=2, vocab_size=tokenizer.vocab_size + 7)
    checkpoint = save(tmp_path / "best.pt", model, tokenizer, sampling={"top_k": 5, "temperature": 0.5})
    run_export(checkpoint, tmp_path / "exported")
    theirs, their_tokenizer = load_theirs(tmp_path / "exported"), their_tokenizer_of(tmp_path / "exported")
    text = " hello  it's\n\n 't , 你好 😀!"
    assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text)
    assert their_tokenizer.decode(tokenizer.encode(text)) == text
    assert theirs.generation_config.eos_token_id == their_tokenizer.eos_token_id == tokenizer.end_of_text
    assert theirs.get_input_embeddings().weight.shape == (tokenizer.vocab_size, 32)  # without the padding
    again = load_checkpoint(tmp_path / "exported")
    assert torch.equal(again.model.head.weight, model.head.weight[: tokenizer.vocab_size])
    assert (again.reply.top_k, again.reply.temperature) == (5, 0.5)


@pytest.mark.parametrize("scheme", ["normalizer", "first"])
def test_a_sentencepiece_tokenizer_keeps_its_ids_and_ends_at_its_own_token(scheme, tmp_path):
    tokenizer = SentencePieceTokenizer(sp_library(scheme).to_str())
    save(tmp_path / "best.pt", small_model("Llama", num_kv_heads=2, vocab_size=tokenizer.vocab_size), tokenizer)
    run_export(tmp_path, tmp_path / "out")
    theirs = their_tokenizer_of(tmp_path / "out")
    assert theirs.eos_token == "</s>" and len(theirs) == tokenizer.vocab_size
    for text in SP_TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text)


def end_a_reply(model, tokenizer):
    """Change a model so that its greedy reply to a message ends early; return the message and the reply."""
    for text in ("a", "b", "c", "ab", "ac", "bc", "tab"):
        ids = list(generate(model, prompt_ids([text], tokenizer), 20, SamplingConfig(temperature=0)))
        for i in range(1, 20):
            if ids[i] not in ids[:i] and not tokenizer.special_ids & {*ids[: i + 1]}:
                swapped = [tokenizer.message_end, ids[i]]
                with torch.no_grad():
                    model.head.weight[swapped] = model.head.weight[swapped[::-1]]
                return text, ids[:i]
    raise AssertionError("every reply starts with a special token, or repeats one token")


@pytest.mark.parametrize("library, kind", [
    (Tokenizer.from_str(BPETokenizer.train(["a fox"], 300).library.to_str()), BPETokenizer),
    (sp_library("normalizer"), SentencePieceTokenizer),
    (sp_library("first"), SentencePieceTokenizer),
], ids=["BPE", "normalizer", "first"])
def test_added_words_keep_their_ids_when_an_export_is_exported_again(library, kind, tmp_path):
    library.encode_special_tokens = False
    words = [AddedToken(word, normalized=False) for word in ("COVID", "世界", "  ", "\n\n")]
    words += [AddedToken("one", single_word=True, normalized=False), AddedToken("left", lstrip=True, normalized=False)]
    library.add_tokens(words)
    library.add_special_tokens(["<|tool|>"])
    tokenizer = kind(library.to_str())
    model = small_model("Llama", num_kv_heads=2, vocab_size=tokenizer.vocab_size)
    run_export(save(tmp_path / "best.pt", model, tokenizer), tmp_path / "once")
    run_export(tmp_path / "once", tmp_path / "twice")
    text = "COVIDs, one ones\n\n\n     a   left  b 世界"
    ids = library.encode(text, add_special_tokens=False).ids
    assert {library.token_to_id(word.content) for word in words} < {*ids}
    for folder in (tmp_path / "once", tmp_path / "twice"):
        theirs, ours = their_tokenizer_of(folder), load_checkpoint(folder).tokenizer
        assert theirs(text)["input_ids"] == ours.encode(text) == ids
        tool = theirs("COVID<|tool|>")["input_ids"]
        assert tool == ours.encode_with_special_tokens("COVID<|tool|>", lambda part: part)


@pytest.mark.parametrize("bpe", [False, True])
def test_a_chat_export_has_the_template_of_training_and_stops_at_its_end_marker(bpe, tmp_path):
    tokenizer = BPETokenizer.train(["how are you"], 300) if bpe else CharTokenizer("\n ',?abct", special=True)
    model = small_model("BardGPT", vocab_size=tokenizer.vocab_size, block_size=128)
    text, reply = end_a_reply(model, tokenizer)
    checkpoint = save(tmp_path / "best.pt", model, tokenizer, task={"kind": "dialogue"})
    run_export(checkpoint, tmp_path / "exported")
    their_tokenizer = their_tokenizer_of(tmp_path / "exported")
    records = [("system", "cab"), ("user", "a b , c ?"), ("assistant", "b\n\nc"), ("user", "abt ")]
    messages = [{"role": role, "content": text} for role, text in records]
    expected = prompt_ids(["cab\n\na b , c ?", "b\n\nc", "abt "], tokenizer)
    options = {"add_generation_prompt": True, "return_dict": False}
    assert their_tokenizer.apply_chat_template(messages, **options) == expected

    theirs = load_theirs(tmp_path / "exported")
    ids = torch.tensor([prompt_ids([text], tokenizer)])
    found = theirs.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.size(1):].tolist()
    assert found == [*reply, tokenizer.message_end]
    assert reply_ids(model, tokenizer, [text], ReplyConfig(temperature=0, max_tokens=40)) == reply


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "BardGPT", "TransformerModel"])
def test_a_batch_of_prompts_gives_the_same_tokens_as_each_prompt_alone(name, exported):
    checkpoint, folder = exported(name)
    theirs, tokenizer, model = load_theirs(folder), their_tokenizer_of(folder), load_checkpoint(checkpoint).model
    tokenizer.pad_token = "a"
    texts = ["cab", "a b , c ?", "t"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    found = theirs.generate(**batch, max_new_tokens=20, do_sample=False)[:, batch["input_ids"].size(1) :]
    assert found.tolist() == [
        list(generate(model, char_tokenizer(11).encode(text), 20, SamplingConfig(temperature=0))) for text in texts]


def test_the_verification_asks_no_questions_and_leaves_no_code_in_the_cache_of_transformers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", asked.append)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    checkpoint = save(tmp_path / "best.pt", small_model("TransformerModel"), char_tokenizer(11))
    run_export(checkpoint, tmp_path / "out")
    assert not asked and not (tmp_path / "modules").exists()


def test_weights_that_are_only_renamed_are_not_copied():
    model = small_model("EasyGPT", num_kv_heads=2)
    weights = file_weights(model)
    memory = {weight.data_ptr() for weight in weights.values()}
    assert all(tensor.data_ptr() in memory for _, tensor in export_weights(LLAMA_TABLE, model.config, weights))


def test_a_model_with_its_own_code_does_not_open_without_it(exported):
    _, folder = exported("TransformerModel")
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert their_tokenizer_of(folder)("abc")["input_ids"] == char_tokenizer(11).encode("abc")


# ---- What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, changes, reason", [
    ("GPT2", {"norm": "rms"}, "GPT2LMHeadModel has no norm rms"),
    ("GPT2", {"num_kv_heads": 2}, "GPT2LMHeadModel has no key and value heads fewer than heads"),
    ("GPT2", {"head_dim": 6}, "GPT2LMHeadModel has no head size its own"),
    ("GPT2", {"position": "rotary", "feed_forward": "swiglu"}, "PersimmonForCausalLM has no feed_forward swiglu"),
    ("Llama", {"num_kv_heads": 2, "qk_norm": True}, "LlamaForCausalLM has no qk_norm True"),
    ("Llama", {"num_kv_heads": 2, "tied": False, "head_bias": True}, "LlamaForCausalLM has no head bias not solvable"),
    ("Llama", {"num_kv_heads": 2, "qkv_bias": True}, "no biases of queries, keys and values only"),
    ("BardGPT", {"head_bias": True, "vocab_size": 40}, "PersimmonForCausalLM has no head bias not solvable"),
    ("BardGPT", {"n_labels": 3}, "is a classifier"),
])
def test_a_model_that_no_class_computes_is_refused_with_the_reason(name, changes, reason, tmp_path, capsys):
    model = small_model(name, **changes)
    tokenizer = char_tokenizer(model.config.vocab_size)
    more = {}
    if model.config.n_labels:
        tokenizer = CharTokenizer(CHARACTERS[:7], special=True)
        more["task"] = {"kind": "classification", "labels": ["a", "b", "c"], "mask_padding": True,
                        "both_directions": False}
    checkpoint = save(tmp_path / "best.pt", model, tokenizer, **more)
    assert reason in error_of(capsys, checkpoint, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_a_head_bias_that_cannot_be_moved_is_refused(tmp_path, capsys):
    model = small_model("RainbowGPT")
    with torch.no_grad():
        model.head.weight[1] = model.head.weight[0]
    checkpoint = save(tmp_path / "best.pt", model, char_tokenizer(11))
    assert "linearly dependent" in error_of(capsys, checkpoint, tmp_path / "exported")


@pytest.mark.parametrize("name, value", [
    ("model.layers.1.self_attn.q_layernorm.weight", 1.5), ("model.layers.0.self_attn.k_layernorm.bias", 0.1),
    ("model.layers.1.self_attn.query_key_value.bias", 0.1), ("model.layers.0.mlp.dense_4h_to_h.bias", 0.1)])
def test_a_persimmon_with_weights_that_our_models_lack_is_refused_by_name(name, value, exported, tmp_path, capsys):
    folder = shutil.copytree(exported("BardGPT")[1], tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights[name][3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=re.escape(name)):
        load_checkpoint(folder)


def test_a_persimmon_with_the_default_partial_rotary_factor_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported("BardGPT")[1], tmp_path / "other")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["partial_rotary_factor"], config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="partial_rotary_factor 0.5"):
        load_checkpoint(folder)


# ---- Files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_checkpoints(tmp_path, monkeypatch):
    """Return the paths of two checkpoints and of an export; hide transformers, whose import takes seconds."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    one = save(tmp_path / "one.pt", small_model("GPT2"), char_tokenizer(11))
    other = save(tmp_path / "other.pt", small_model("TransformerModel"), char_tokenizer(11))
    return one, other, tmp_path / "exports" / "exported"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_replaces_an_earlier_one_as_a_whole(two_checkpoints, capsys):
    one, other, folder = two_checkpoints
    run_export(other, folder)
    assert (folder / "modeling_your_gpt.py").is_file()
    assert "transformers is not installed" in capsys.readouterr().out
    run_export(one, folder)
    assert sorted(contents(folder)) == ["README.md", "config.json", "generation_config.json", "model.safetensors",
                                        "tokenizer.json", "tokenizer_config.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["exported"]
    before = contents(folder)
    run_export(one, folder)
    assert contents(folder) == before


def test_a_folder_that_is_not_an_export_is_not_replaced(two_checkpoints, capsys):
    one, _, folder = two_checkpoints
    folder.mkdir(parents=True)
    run_export(one, folder)  # an empty folder is replaced
    (folder / "config.json").write_text("{}", encoding="utf-8")
    before = contents(folder)
    assert "is not an earlier export" in error_of(capsys, one, folder)
    assert "is not an earlier export" in error_of(capsys, one, one)
    assert contents(folder) == before


def test_an_export_with_other_files_in_it_is_not_replaced(two_checkpoints, capsys):
    one, other, folder = two_checkpoints
    run_export(one, folder)
    (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    assert "notes.txt in it is not from an export" in error_of(capsys, other, folder)
    assert contents(folder) == before


def test_a_model_that_transformers_saved_after_fine_tuning_is_not_replaced(exported, tmp_path, capsys):
    checkpoint, folder = exported("GPT-2")
    shutil.copytree(folder, tmp_path / "tuned")
    load_theirs(folder).save_pretrained(tmp_path / "tuned")
    before = contents(tmp_path / "tuned")
    assert "is not an earlier export" in error_of(capsys, checkpoint, tmp_path / "tuned")
    assert contents(tmp_path / "tuned") == before


def test_a_loop_of_links_is_a_one_line_error(two_checkpoints, capsys):
    one, _, folder = two_checkpoints
    folder.parent.mkdir()
    folder.symlink_to(folder)
    assert "cannot write" in error_of(capsys, one, folder)


def damage(weights):
    for name, tensor in weights:
        yield name, tensor + 0.01


@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_verification_removes_what_was_written(exists, two_checkpoints, capsys, monkeypatch):
    one, other, folder = two_checkpoints
    if exists:
        run_export(other, folder)
        before = contents(folder)
    target = "formats.export.huggingface.export_weights"
    monkeypatch.setattr(target, lambda *arguments: damage(export_weights(*arguments)))
    assert "verification failed" in error_of(capsys, one, folder)
    assert not any(path.suffix == ".partial" for path in folder.parent.iterdir())
    assert contents(folder) == before if exists else not folder.exists()


def test_a_killed_export_leaves_the_earlier_one(two_checkpoints, monkeypatch):
    one, other, folder = two_checkpoints
    run_export(other, folder)
    before = contents(folder)
    code = ("import os, sys, formats.export.huggingface as target; target.verify_folder = lambda *_: os._exit(9); "
            "import export; export.main()")
    done = subprocess.run([sys.executable, "-c", code, one, folder], cwd=ROOT)
    assert done.returncode == 9
    assert contents(folder) == before and len(list(folder.parent.iterdir())) == 2
    run_export(one, folder)
    assert contents(folder) != before


def test_the_model_card_has_the_validation_loss(two_checkpoints, tmp_path, capsys):
    one, _, folder = two_checkpoints
    best = shutil.copy(one, tmp_path / "best.pt")
    run_export(best, folder)
    assert "loss" not in (folder / "README.md").read_text(encoding="utf-8")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"val_loss": 2.5}\n{"val_loss": 1.5, "ema_val_loss": 1.25}\n{"val_loss": 2}\n')
    run_export(best, folder)
    assert "**1.2500** nats per token" in (folder / "README.md").read_text(encoding="utf-8")
    metrics.write_text("{")
    assert "metrics.jsonl is damaged" in error_of(capsys, best, folder)
