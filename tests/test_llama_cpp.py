"""GGUF files: llama.cpp generates the same tokens as the checkpoint."""

import json
import sys
import urllib.request

import numpy as np
import pytest
import torch
from small_exports import error_of, run_export
from small_models import small_model
from small_tokenizers import sp_library
from tokenizers import AddedToken, pre_tokenizers

from formats.export.gguf import export_arrays, write_file
from models.config import SamplingConfig
from models.generate import generate
from tokenization.bpe import BPETokenizer
from tokenization.characters import CharTokenizer
from tokenization.sentencepiece_bpe import SentencePieceTokenizer
from training.checkpoint import save_checkpoint

gguf = pytest.importorskip("gguf")
GGUF = ("--format", "gguf")
TEXT = "Hello there, it's  12 small\n\ntokens: 你好，世界！"
CHARACTERS = CharTokenizer("".join(dict.fromkeys(TEXT + "\\\0\x01😀")))
BPE = BPETokenizer.train([TEXT * 3], 400)


def bpe_after(step):
    """Return a BPE tokenizer with a step before its split into words."""
    library = BPE.library.from_str(BPE.library.to_str())
    library.pre_tokenizer = pre_tokenizers.Sequence([step, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return BPETokenizer(library.to_str())


SMOLLM = bpe_after(pre_tokenizers.Digits(individual_digits=True))
TOKENIZERS = {"characters": CHARACTERS, "BPE": BPE, "SmolLM's BPE": SMOLLM}
MODELS = [
    ("GPT2", {}, "characters"),
    ("GPT2", {"tied": False, "qkv_bias": False}, "BPE"),
    ("PoemGPT", {}, "BPE"),
    ("Llama", {"num_kv_heads": 2}, "SmolLM's BPE"),
    ("EasyGPT", {"num_kv_heads": 2, "head_dim": 16}, "BPE"),
    ("Llama", {"num_kv_heads": 8, "tied": False, "bias": True, "rope_theta": 500.0, "norm_eps": 1e-3}, "characters"),
]


def save(folder, name, changes, tokenizer):
    """Save a checkpoint of a model with more tokens than its tokenizer; return the model."""
    model = small_model(name, **{"n_embd": 64, "block_size": 128, "vocab_size": tokenizer.vocab_size + 5} | changes)
    with torch.no_grad():  # otherwise, greedy tokens are soon the same
        for weight in model.blocks.parameters():
            weight *= 2
        if model.config.norm == "layer":
            model.final_norm.bias *= 0.1
    save_checkpoint(folder / "best.pt", model, tokenizer)
    return model


@pytest.fixture
def serve():
    """Return a function that opens a GGUF file in llama.cpp, and returns a function for requests to it."""
    xllamacpp = pytest.importorskip("xllamacpp")
    servers = []

    def start(path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 128, 1, 1
        params.warmup = params.fit_params = False
        params.verbosity = -1
        servers.append(xllamacpp.Server(params))
        address = servers[0].listening_address

        def post(endpoint, **body):
            request = urllib.request.Request(f"{address}/{endpoint}", json.dumps(body).encode(),
                                             {"Content-Type": "application/json"})
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)

        return post

    yield start
    servers.clear()


@pytest.mark.parametrize("name, changes, tokenizer", MODELS)
def test_llama_cpp_generates_the_same_greedy_tokens_as_the_checkpoint(name, changes, tokenizer, tmp_path, serve):
    tokenizer = TOKENIZERS[tokenizer]
    model = save(tmp_path, name, changes, tokenizer)
    run_export(tmp_path, tmp_path / "model.gguf", *GGUF)
    post = serve(tmp_path / "model.gguf")
    text = "".join(tokenizer.vocab) if isinstance(tokenizer, CharTokenizer) else TEXT
    ids = tokenizer.encode(text)
    assert post("tokenize", content=text)["tokens"] == ids
    assert post("detokenize", tokens=ids)["content"] == text
    expected = list(generate(model, ids, 50, SamplingConfig(temperature=0), vocab_size=tokenizer.vocab_size))
    assert not tokenizer.special_ids & {*expected} and len({*expected}) > 3
    found = post("completion", prompt=ids, n_predict=50, temperature=0, return_tokens=True)["tokens"]
    assert found == expected


def bpe_with(*words):
    """Return the BPE tokenizer with added words and a special token."""
    library = BPE.library.from_str(BPE.library.to_str())
    library.add_tokens([*words])
    library.add_special_tokens(["<|tool|>"])
    return BPETokenizer(library.to_str())


def test_llama_cpp_finds_the_added_words_of_a_tokenizer(tmp_path, serve):
    words = ["  ", "\n\n", "    ", "COVID", "small", "世界", "é", "\t"]
    tokenizer = bpe_with(*words)
    save(tmp_path, "GPT2", {}, tokenizer)
    run_export(tmp_path, tmp_path / "model.gguf", *GGUF)
    post = serve(tmp_path / "model.gguf")
    names = "COVIDs smaller\n\n\n     a       b  \n\n\té <|tool|>COVID<|im_end|>世界<|endoftext|>"
    for text in (TEXT, names, "  ", " COVID "):
        ids = tokenizer.encode(text)
        assert any(i >= BPE.vocab_size for i in ids) and tokenizer.special_ids.isdisjoint(ids)
        assert post("tokenize", content=text, parse_special=False)["tokens"] == ids
        assert post("detokenize", tokens=ids)["content"] == text
    found = post("tokenize", content="COVID <|tool|>", parse_special=True)["tokens"]
    assert found == tokenizer.encode_with_special_tokens("COVID <|tool|>", lambda part: part)


@pytest.mark.parametrize("words, reason", [
    (["cat", "attic"], "where 'cat' and 'attic' overlap"),
    ([" \n", "\n\n"], r"where ' \n' and '\n\n' overlap"),
    ([AddedToken("one", single_word=True)], "where it finds 'one'"),
    ([AddedToken("left", lstrip=True)], "where it finds 'left'"),
    ([AddedToken("right", rstrip=True)], "where it finds 'right'"),
])
def test_added_words_that_llama_cpp_would_find_elsewhere_are_refused(words, reason, tmp_path, capsys):
    save(tmp_path, "GPT2", {}, bpe_with(*words))
    assert reason in error_of(capsys, tmp_path, tmp_path / "model.gguf", *GGUF)


def test_a_character_model_has_no_end_token(tmp_path):
    save(tmp_path, "GPT2", {}, CHARACTERS)
    run_export(tmp_path, tmp_path / "model.gguf", *GGUF)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert "tokenizer.ggml.eos_token_id" not in reader.fields
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors["token_embd.weight"].data) == CHARACTERS.vocab_size
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}


def flip_a_weight(path):
    with open(path, "rb+") as file:
        file.seek(int(gguf.GGUFReader(path).tensors[3].data_offset))
        file.write(b"\1")


def rename_the_model(path):
    path.write_bytes(path.read_bytes().replace(b"unique", b"chance"))


@pytest.mark.parametrize("damage, problem", [(flip_a_weight, "a different tensor"), (rename_the_model, "general.name")])
def test_a_file_that_fails_the_verification_is_not_kept(damage, problem, tmp_path, capsys, monkeypatch):
    save(tmp_path, "GPT2", {}, CHARACTERS)
    path = tmp_path / "unique.gguf"
    run_export(tmp_path, path, *GGUF)
    assert f"{CHARACTERS.vocab_size} tokens" in capsys.readouterr().out
    before = path.read_bytes()

    def write(writer, arrays):
        write_file(writer, arrays)
        damage(writer.path)

    monkeypatch.setattr("formats.export.gguf.write_file", write)
    assert problem in error_of(capsys, tmp_path, path, *GGUF)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 2


def test_a_file_with_more_embeddings_than_tokens_is_not_kept(tmp_path, capsys, monkeypatch):
    save(tmp_path, "GPT2", {}, CHARACTERS)

    def arrays(*arguments):
        for name, array in export_arrays(*arguments):
            yield name, np.concatenate((array, array[:1])) if name == "token_embd.weight" else array

    monkeypatch.setattr("formats.export.gguf.export_arrays", arrays)
    assert f"{CHARACTERS.vocab_size + 1} embeddings" in error_of(capsys, tmp_path, tmp_path / "model.gguf", *GGUF)


@pytest.mark.parametrize("name, changes, reason", [
    ("BardGPT", {}, "gpt2 has no position rotary, feed_forward relu2, qk_norm True"),
    ("RainbowGPT", {}, "gpt2 has no feed_forward relu"),
    ("GPT2", {"feed_forward": "gelu_exact"}, "gpt2 has no feed_forward gelu_exact"),
])
def test_a_model_that_llama_cpp_does_not_compute_is_refused_with_the_reason(name, changes, reason, tmp_path, capsys):
    save(tmp_path, name, changes, CHARACTERS)
    assert reason in error_of(capsys, tmp_path, tmp_path / "model.gguf", *GGUF)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


@pytest.mark.parametrize("tokenizer", [bpe_after(pre_tokenizers.Punctuation()),
                                       SentencePieceTokenizer(sp_library("normalizer").to_str())])
def test_a_tokenizer_that_llama_cpp_may_not_know_is_refused(tmp_path, capsys, tokenizer):
    save(tmp_path, "GPT2", {}, tokenizer)
    assert "splits text into words" in error_of(capsys, tmp_path, tmp_path / "model.gguf", *GGUF)


def test_a_bpe_without_merges_is_refused(tmp_path, capsys):
    save(tmp_path, "GPT2", {}, BPETokenizer.train(["a"], 260))
    assert "no merges" in error_of(capsys, tmp_path, tmp_path / "model.gguf", *GGUF)


def test_bad_paths_and_a_missing_package_are_one_line_errors(tmp_path, capsys, monkeypatch):
    save(tmp_path, "GPT2", {}, CHARACTERS)
    assert "ends with .gguf" in error_of(capsys, tmp_path, tmp_path / "folder", *GGUF)
    other = tmp_path / "other.gguf"
    for content in (b"mine", b"GGUF from elsewhere"):
        other.write_bytes(content)
        assert "is not an earlier export" in error_of(capsys, tmp_path, other, *GGUF)
        assert other.read_bytes() == content
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install gguf" in error_of(capsys, tmp_path, tmp_path / "model.gguf", *GGUF)
