"""Sampling against the model without a cache, against transformers, and with a model of the alphabet."""

import itertools
import math

import pytest
import torch
import transformers
from host_reads import HostReads
from small_models import small_model

import models.generate
from models.config import SamplingConfig
from models.generate import draw, generate, generate_text, window_start
from models.zoo import ZOO
from tokenization.characters import CharTokenizer
from utils.errors import UserError

GREEDY = SamplingConfig(temperature=0)


def draw_id(logits, context, sampling, generator=None):
    """Draw a token id, given the token ids of the context as a list."""
    in_context = torch.zeros(len(logits), dtype=torch.bool)
    in_context[context] = True
    return draw(logits, in_context, sampling, torch.empty(len(logits)).exponential_(generator=generator)).item()


# ---- The window ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 2, 3, 4, 7, 8])
def test_a_full_window_drops_half_of_its_tokens(block_size):
    start = 0
    for n in range(1, 100):
        if n - start > block_size:
            start += max(1, block_size // 2)
        assert window_start(n, block_size) == start


# ---- The cache -------------------------------------------------------------------------------------------------------


def window_logits(model, ids):
    """Return the logits of the next token, computed without a cache."""
    with torch.no_grad():
        return model(torch.tensor([ids[window_start(len(ids), model.block_size) :]]))[0][0, -1]


@pytest.mark.parametrize("penalty", [1.0, 3.0])  # 1.0: an untrained model soon repeats one token
@pytest.mark.parametrize("n_prompt", [1, 30])
@pytest.mark.parametrize("block_size", [1, 2, 7, 12])
@pytest.mark.parametrize("name", ["RainbowGPT", "BardGPT", "EasyGPT"])  # learned, rotary; EasyGPT: grouped queries
def test_greedy_output_is_the_same_with_and_without_a_cache(name, block_size, n_prompt, penalty):
    model = small_model(name, block_size=block_size)
    sampling = SamplingConfig(temperature=0, repetition_penalty=penalty)
    prompt = [i * i % 11 for i in range(n_prompt)]
    ids = list(prompt)
    for _ in range(40):
        ids.append(draw_id(window_logits(model, ids), ids[window_start(len(ids), block_size) :], sampling))
    assert list(generate(model, prompt, 40, sampling)) == ids[n_prompt:]
    assert penalty == 1 or len(set(ids[n_prompt:])) >= min(block_size, 3)


def text_and_logits(model, monkeypatch):
    """Return the ids of a generated text, and the logits from which each of them but the first was drawn."""
    seen = []
    monkeypatch.setattr(models.generate, "draw", lambda logits, *rest: seen.append(logits) or draw(logits, *rest))
    return [3, *generate(model, [3], 40, SamplingConfig(temperature=1.0, seed=0))], seen


@pytest.mark.parametrize("name", ["RainbowGPT", "BardGPT", "EasyGPT"])
def test_tokens_are_drawn_from_the_logits_of_the_window(name, monkeypatch):
    model = small_model(name, block_size=7)
    ids, seen = text_and_logits(model, monkeypatch)
    assert len(set(ids)) > 8
    for n, logits in enumerate(seen, start=1):
        torch.testing.assert_close(logits, window_logits(model, ids[:n]))


@pytest.mark.parametrize("name", ["RainbowGPT", "BardGPT", "EasyGPT"])
def test_bfloat16_logits_equal_float32_logits_up_to_rounding(name, monkeypatch):
    model = small_model(name, block_size=7)
    ids, seen = text_and_logits(small_model(name, block_size=7).bfloat16(), monkeypatch)
    for n, logits in enumerate(seen, start=1):
        expected = window_logits(model, ids[:n])
        assert (logits - expected).abs().max() < 0.2 * expected.std()


def test_onednn_is_restored_between_tokens_and_after_an_error(monkeypatch):
    model = small_model("BardGPT")
    for _ in generate(model, [3], 3, GREEDY):
        assert torch.backends.mkldnn.enabled
    monkeypatch.setattr(model, "features", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(generate(model, [3], 3, GREEDY))
    assert torch.backends.mkldnn.enabled


def test_ids_beyond_the_vocabulary_are_never_drawn():
    model, sampling = small_model("BardGPT", vocab_size=64), SamplingConfig(temperature=5.0, seed=0)
    assert max(generate(model, [3], 100, sampling)) > 5 >= max(generate(model, [3], 100, sampling, vocab_size=6))
    text = "".join(generate_text(model, CharTokenizer("abcdef"), [0, 1], 100, sampling))
    assert len(text) == 100 and set(text) <= set("abcdef")


def test_the_model_reads_one_token_at_a_time_except_where_the_window_moves(monkeypatch):
    model, lengths = small_model("BardGPT", block_size=8), []
    features = model.features
    monkeypatch.setattr(model, "features", lambda x, cache: lengths.append(x.size(1)) or features(x, cache))
    list(generate(model, [1, 2, 3], 20, GREEDY))
    assert lengths == [3, 1, 1, 1, 1, 1, 5, 1, 1, 1, 5, 1, 1, 1, 5, 1, 1, 1, 5, 1]


# ---- CUDA graphs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [
    GREEDY, SamplingConfig(temperature=0, repetition_penalty=3.0), SamplingConfig(seed=1, temperature=1.0, top_p=0.9)],
    ids=["greedy", "penalty", "top_p"])
@pytest.mark.parametrize("n_prompt", [1, 30])
@pytest.mark.parametrize("block_size", [1, 7])
@pytest.mark.parametrize("name", ["RainbowGPT", "BardGPT", "EasyGPT"])
def test_the_graph_sampler_generates_the_tokens_of_the_eager_one(name, block_size, n_prompt, sampling, monkeypatch):
    """On a CPU, with a fake graph that calls its function after the same warmup."""
    def fake_graph(function, stream):
        for _ in range(3):
            function()
        return function

    model, prompt = small_model(name, block_size=block_size), [i * i % 11 for i in range(n_prompt)]
    expected = list(generate(model, prompt, 40, sampling))
    monkeypatch.setattr(models.generate, "cuda_graph", fake_graph)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(models.generate, "Sampler", models.generate.GraphSampler)
    assert list(generate(model, prompt, 40, sampling)) == expected


def test_the_graph_sampler_never_uses_the_attention_of_cudnn(monkeypatch):
    model, enabled = small_model("BardGPT"), []
    features = model.features

    def record(x, cache):
        enabled.append(torch.backends.cuda.cudnn_sdp_enabled())
        return features(x, cache)

    monkeypatch.setattr(model, "features", record)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(models.generate, "cuda_graph", lambda function, stream: function)
    monkeypatch.setattr(models.generate, "Sampler", models.generate.GraphSampler)
    torch.backends.cuda.enable_cudnn_sdp(True)  # the default
    assert len(list(generate(model, [3], 3, GREEDY))) == 3
    assert enabled == [False] * 3 and torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("sampling", [
    GREEDY, SamplingConfig(temperature=0.8), SamplingConfig(repetition_penalty=1.3, top_k=5, top_p=0.8)], ids=str)
@pytest.mark.parametrize("name", ["RainbowGPT", "BardGPT", "EasyGPT"])
@torch.inference_mode()
def test_a_captured_token_reads_no_values_and_keeps_all_addresses(name, sampling):
    sampler = models.generate.GraphSampler(small_model(name).bfloat16(), sampling, exempt_ids=[1, 2])
    sampler.restart([1, 2, 3])
    sampler.cache.position.fill_(3)

    def addresses():
        caches = [tensor for layer in sampler.cache.layers for tensor in (layer.keys, layer.values)]
        return [tensor.data_ptr() for tensor in (*caches, sampler.next_token, sampler.in_context, sampler.noise)]

    before = addresses()
    with HostReads():
        sampler.sample_next()
    assert addresses() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("penalty", [1.0, 3.0])
@pytest.mark.parametrize("name", ["RainbowGPT", "BardGPT", "EasyGPT"])
def test_greedy_output_on_cuda_is_the_same_as_without_a_cache(name, penalty):
    model = small_model(name).to("cuda")
    sampling, ids = SamplingConfig(temperature=0, repetition_penalty=penalty), [3]
    for _ in range(40):
        x = torch.tensor([ids[window_start(len(ids), model.block_size) :]], device="cuda")
        with torch.no_grad():
            ids.append(draw_id(model(x)[0][0, -1].cpu(), x[0].tolist(), sampling))
    assert list(generate(model, [3], 40, sampling)) == ids[1:]


# ---- Sampling --------------------------------------------------------------------------------------------------------


def transformers_probabilities(logits, context, sampling):
    """Return the probabilities (V) after transformers' logits processors, in the order of its `generate`."""
    processors = [transformers.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.repetition_penalty != 1:
        processors.insert(0, transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.top_k:
        processors.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p:
        processors.append(transformers.TopPLogitsWarper(sampling.top_p))
    return transformers.LogitsProcessorList(processors)(torch.tensor([context]), logits[None].clone())[0].softmax(0)


@pytest.mark.parametrize("settings", [
    {"temperature": 1.0}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 4}, {"temperature": 1.0, "top_k": 99},
    {"temperature": 1.0, "top_p": 0.7}, {"temperature": 0.7, "top_k": 6, "top_p": 0.9},
    {"temperature": 1.0, "repetition_penalty": 1.8}, {"temperature": 1.5, "repetition_penalty": 0.6, "top_k": 5},
], ids=str)  # fmt: skip
def test_sampling_frequencies_match_transformers(settings):
    torch.manual_seed(0)
    logits, context, sampling, n = torch.randn(9) * 1.5, [4, 0, 4, 7], SamplingConfig(**settings), 4000
    expected = n * transformers_probabilities(logits, context, sampling)
    before, generator = logits.clone(), torch.Generator().manual_seed(0)
    counts = torch.zeros(9)
    for _ in range(n):
        counts[draw_id(logits, context, sampling, generator)] += 1
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected).square() / expected)[possible].sum()
    assert chi_square < 32  # at most 8 degrees of freedom: exceeded by chance once in ten thousand
    assert torch.equal(logits, before)


@pytest.mark.parametrize("top_p, possible", [(0.4, {2}), (0.49, {2}), (0.51, {2, 0}), (0.9, {2, 0, 3}),
                                             (0.99, {2, 0, 3, 1})])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, possible):
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log()
    sampling, generator = SamplingConfig(temperature=1.0, top_p=top_p), torch.Generator().manual_seed(0)
    assert {draw_id(logits, [], sampling, generator) for _ in range(300)} == possible


def test_temperature_zero_is_greedy_and_the_repetition_penalty_applies():
    logits = torch.tensor([2.0, -1.0, 1.5])
    assert draw_id(logits, [0, 1], GREEDY) == 0
    assert draw_id(logits, [0, 1], SamplingConfig(temperature=0, repetition_penalty=2.0)) == 2  # of 1, -2, 1.5
    assert draw_id(-logits, [1], SamplingConfig(temperature=0, repetition_penalty=4.0)) == 1  # of -2, 0.25, -1.5
    assert draw_id(torch.tensor([-1.0, -1.5]), [0], SamplingConfig(temperature=0, repetition_penalty=2.0)) == 1


def test_the_repetition_penalty_applies_to_the_tokens_in_the_window(monkeypatch):
    contexts = []

    def first_token(logits, in_context, *_):
        contexts.append(in_context.nonzero().flatten().tolist())
        return torch.tensor(0)

    monkeypatch.setattr(models.generate, "draw", first_token)
    list(generate(small_model("BardGPT", block_size=4), [1, 2, 3], 5, GREEDY))
    assert contexts == [[1, 2, 3], [0, 1, 2, 3], [0, 3], [0, 3], [0]]


def test_special_tokens_have_no_repetition_penalty(monkeypatch):
    tokenizer, penalized = CharTokenizer("ab").with_special_tokens(), []

    def first_token(logits, in_context, *_):
        penalized.append(in_context.nonzero().flatten().tolist())
        return torch.tensor(tokenizer.message_end)

    monkeypatch.setattr(models.generate, "draw", first_token)
    model = small_model("BardGPT", vocab_size=tokenizer.vocab_size)
    list(generate_text(model, tokenizer, [tokenizer.message_start, 1], 3, GREEDY))
    assert penalized == [[1]] * 3


def test_a_fixed_seed_gives_reproducible_output_and_none_varies_it():
    model = small_model("BardGPT")

    def tokens(seed):
        return list(generate(model, [0], 50, SamplingConfig(temperature=1.0, seed=seed)))

    assert tokens(1) == tokens(1) != tokens(2)
    assert tokens(None) != tokens(None)


@pytest.mark.parametrize("seed", [1, None])
def test_sampling_does_not_touch_the_global_random_state(seed):
    model = small_model("BardGPT")
    before = torch.get_rng_state()
    list(generate(model, [0], 5, SamplingConfig(seed=seed)))
    assert torch.equal(torch.get_rng_state(), before)


def test_nan_predictions_are_a_user_error():
    model = small_model("BardGPT")
    model.head.weight.data.mul_(1e38)  # finite, but sums of their products are not
    model.final_norm.weight.data.mul_(1e38)
    with pytest.raises(UserError, match="predictions of the model are NaN"):
        list(generate(model, [0], 5, GREEDY))


@pytest.mark.parametrize("change, named", [
    ({"temperature": -1.0}, "temperature cannot be -1.0"), ({"temperature": math.nan}, "temperature"),
    ({"temperature": math.inf}, "temperature"), ({"temperature": 1e-30}, "temperature"),
    ({"top_k": 0}, "top_k cannot be 0"), ({"top_p": 0.0}, "top_p cannot be 0.0"), ({"top_p": 1.1}, "top_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty cannot be 0.0"), ({"repetition_penalty": math.inf}, "repetition"),
    ({"seed": -1}, "seed cannot be -1"), ({"seed": 2**63}, "seed"),
])  # fmt: skip
def test_invalid_sampling_settings_are_user_errors(change, named):
    with pytest.raises(UserError, match=named):
        SamplingConfig(**change)


# ---- Text ------------------------------------------------------------------------------------------------------------


def alphabet_model():
    """Return a model that predicts the next of eight tokens after each one, and the first after the last."""
    model = ZOO["RainbowGPT"](n_embd=8, num_heads=2, n_blocks=1, block_size=6, vocab_size=8, dropout=0.0).eval()
    with torch.no_grad():
        model.token_embedding.weight.copy_(torch.eye(8))
        model.position_embedding.weight.zero_()
        model.head.weight.copy_(torch.eye(8).roll(1, 0))
    return model


def pieces(prompt, n, vocab="abcdefgh", **stops):
    """Return the pieces of generated text that are not empty."""
    tokenizer = CharTokenizer(vocab)
    generated = generate_text(alphabet_model(), tokenizer, tokenizer.encode(prompt), n, GREEDY, **stops)
    return [piece for piece in generated if piece]


def test_text_continues_the_prompt_for_the_given_number_of_tokens():
    assert pieces("cd", 7) == ["e", "f", "g", "h", "a", "b", "c"]
    assert pieces("cd", 0) == []


def test_text_is_streamed():
    endless = generate_text(alphabet_model(), CharTokenizer("abcdefgh"), [0], 10**9, GREEDY)
    assert "".join(itertools.islice(endless, 10)) == "bcdefghabc"


def test_generation_ends_before_a_stop_token():
    assert "".join(pieces("c", 20, stop_tokens=(0,))) == "defgh"
    assert list(generate(alphabet_model(), [2], 20, GREEDY, stop_tokens=(6, 5))) == [3, 4]
