"""The models of the zoo against formulas, transformers, and transformer_4d.py."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from small_models import SIZES, sizes, small_model

import transformer_4d
from models.config import ModelConfig
from models.layers import plain_attention
from models.weights import file_weights, load_file_weights
from models.zoo import ZOO
from tokenization.characters import CharTokenizer
from training.checkpoint import load_model, save_checkpoint
from utils.errors import UserError

every_model = pytest.mark.parametrize("name", ZOO)


def batch(rows=2):
    return torch.randint(SIZES["vocab_size"], (2, rows, SIZES["block_size"]))  # x and y, (B, T) each


# ---- Parameters ------------------------------------------------------------------------------------------------------


def classic(C, T, L, V=65):
    """Count parameters: LayerNorms with bias, matrices without, learned positions, an untied head with bias."""
    return V * C + T * C + L * (12 * C * C + 2 * 2 * C) + 2 * C + (C * V + V)


def gpt2(C, T, L, V):
    """Count parameters: biases everywhere, learned positions, a tied head."""
    return V * C + T * C + L * (12 * C * C + (4 * C + 4 * C + C) + 2 * 2 * C) + 2 * C


@pytest.mark.parametrize("name, published, formula", [
    ("TransformerModel", 3_691_073, classic(384, 256, 2)),
    ("RainbowGPT", 10_775_105, classic(384, 256, 6)),
    ("DevModel", 10_775_105, classic(384, 256, 6)),
    ("UltimateModel", 10_873_409, classic(384, 512, 6)),
    ("HugeModel", 42_783_809, classic(768, 256, 6)),
    ("BardGPT", 10_676_736, 65 * 384 + 6 * (12 * 384**2 + 2 * 2 * 384) + 2 * 384 + 384 * 65),
    ("GPT2", 124_439_808, gpt2(768, 1024, 12, 50257)),
    ("GPT2Medium", 354_823_168, gpt2(1024, 1024, 24, 50257)),
    ("GPT2Large", 774_030_080, gpt2(1280, 1024, 36, 50257)),
    ("GPT2XL", 1_557_611_200, gpt2(1600, 1024, 48, 50257)),
    ("EasyGPT", 303_219_712, 50304 * 1024 + 24 * (2 * 1024**2 + 2 * 1024 * 256 + 3 * 1024 * 2560 + 2 * 1024) + 1024),
    ("Llama", 134_515_008, 49152 * 576 + 30 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576) + 576),
    ("SmallGPT90M", 91_079_424, gpt2(768, 256, 12, 7587)),
    ("SmallGPT300M", 295_394_880, gpt2(960, 256, 26, 7587)),
    ("PoemGPT", 9_976_320, 20000 * 256 + 512 * 256 + 6 * (12 * 256**2 + 2 * 2 * 256) + 2 * 256),
])  # fmt: skip
def test_a_model_has_the_published_number_of_parameters(name, published, formula):
    with torch.device("meta"):
        model = ZOO[name]()
    assert sum(weight.numel() for weight in model.parameters()) == published == formula


# ---- Properties of every model ---------------------------------------------------------------------------------------


@every_model
def test_attention_is_causal(name):
    model, (x, _) = small_model(name), batch()
    before, _ = model(x)
    for t in range(1, x.size(1)):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % SIZES["vocab_size"]
        after, _ = model(changed)
        torch.testing.assert_close(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t], after[:, t])
        assert not torch.allclose(before[:, -1], after[:, -1])


@every_model
def test_the_first_loss_is_the_uniform_baseline(name):
    torch.manual_seed(0)  # full width: a tied head that predicts its input is most confident there
    model = ZOO[name](block_size=32, n_blocks=2, vocab_size=1000, dropout=0.0)
    x, y = torch.randint(1000, (2, 4, 32))
    assert model(x, y)[1].item() == pytest.approx(math.log(1000), abs=0.5 if model.config.tied else 1e-5)


@every_model
def test_every_model_can_overfit_one_batch(name):
    torch.manual_seed(0)
    model = ZOO[name](**sizes(name))
    x, y = batch(rows=4)  # random: the model has to memorize them
    x[:, 0] = torch.arange(4)  # the first token identifies the row
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(120):
        _, loss = model(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@every_model
def test_a_saved_model_loads_unchanged(name, tmp_path):
    model, (x, _) = small_model(name), batch()
    save_checkpoint(tmp_path / "model.pt", model, CharTokenizer("abcdefghijk"))
    loaded, tokenizer = load_model(tmp_path / "model.pt")
    assert type(loaded) is ZOO[name] and loaded.config == model.config and tokenizer.vocab == "abcdefghijk"
    assert not loaded.training
    assert torch.equal(loaded(x)[0], model(x)[0])
    assert (loaded.head.weight is loaded.token_embedding.weight) == model.config.tied


@every_model
def test_the_loss_ignores_targets_of_minus_100(name):
    model, (x, y) = small_model(name), batch()
    y[0, :5] = y[1, 7] = -100
    logits, loss = model(x)[0], model(x, y)[1]
    counted = [-logits[b, t].log_softmax(0)[y[b, t]] for b in range(2) for t in range(12) if y[b, t] >= 0]
    assert len(counted) == 18
    torch.testing.assert_close(loss, sum(counted) / 18)


@every_model
def test_activation_checkpointing_runs_each_block_twice_and_gives_the_same_gradients(name):
    model, (x, y) = small_model(name, dropout=0.2).train(), batch()
    runs = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: runs.append(1))

    def gradients(recompute):
        model.activation_checkpointing = recompute
        model.zero_grad()
        runs.clear()
        torch.manual_seed(1)
        model(x, y)[1].backward()
        return len(runs), [weight.grad for weight in model.parameters()]

    (kept_runs, kept), (recomputed_runs, recomputed) = gradients(False), gradients(True)
    assert (kept_runs, recomputed_runs) == (2, 4)
    torch.testing.assert_close(recomputed, kept)


@every_model
def test_bfloat16_equals_float32_up_to_rounding(name):
    model, (x, _) = small_model(name), batch()
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(x)
    exact, _ = model(x)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()


def test_dropout_is_active_in_training_only():
    model, (x, _) = small_model("RainbowGPT", dropout=0.2), batch()
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.allclose(model(x)[0], model(x)[0])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_plain_attention_equals_pytorchs_fused_attention(dtype, tolerance):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 8, dtype=dtype)  # (B, nh, T, hs) = (2, 3, 7, 8) each
    fast = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(plain_attention(q, k, v), fast, atol=tolerance, rtol=tolerance)


# ---- transformer_4d.py -----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_transformer_4d_gives_the_same_logits_here(tmp_path, monkeypatch):
    monkeypatch.setattr(transformer_4d, "HERE", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "input.txt").write_text("To be, or not to be:\n" * 20, encoding="utf-8")
    config = transformer_4d.Config(n_embd=32, block_size=12, num_heads=8, dropout=0.1, batch_size=2, max_iters=1,
                                   max_new_chars=1, device="cpu")
    transformer_4d.train(config)
    [path] = (tmp_path / "checkpoints").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    for weight in checkpoint["weights"].values():
        weight.normal_(std=0.3)
    torch.save(checkpoint, path)

    original = transformer_4d.TransformerModel(config, checkpoint["config"]["vocab_size"]).eval()
    original.load_state_dict(checkpoint["weights"])
    model, tokenizer = load_model(path)
    ids = tokenizer.encode("or not to be")
    assert ids == ["\n :,Tbenort".index(character) for character in "or not to be"]
    torch.testing.assert_close(model(torch.tensor([ids]))[0], original(torch.tensor([ids]))[0])


def test_a_checkpoint_of_transformer_4d_from_before_qk_norm_still_loads(tmp_path):
    config = {name: SIZES[name] for name in ("n_embd", "block_size", "n_blocks", "num_heads", "dropout", "vocab_size")}
    model = ZOO["TransformerModel"](**config, qk_norm=False).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    torch.save({"format_version": 1, "model_class": "TransformerModel", "config": config,
                "weights": file_weights(model), "tokenizer": {"kind": "char", "vocab": "abcdefghijk"}},
               tmp_path / "old.pt")
    restored, _ = load_model(tmp_path / "old.pt")
    ids = torch.randint(11, (2, 12))
    assert not restored.config.qk_norm
    torch.testing.assert_close(restored(ids)[0], model(ids)[0])


def test_file_weights_split_queries_keys_and_values_and_share_memory_with_the_model():
    model = small_model("EasyGPT", bias=True)
    weights = file_weights(model)
    assert not any("qkv" in name for name in weights)
    for i, block in enumerate(model.blocks):
        for kind, weight in block.attention.qkv.named_parameters():
            parts = [weights[f"blocks.{i}.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            assert [len(part) for part in parts] == [32, 16, 16]
            assert torch.equal(torch.cat(parts), weight) and parts[0].data_ptr() == weight.data_ptr()
    assert weights["head.weight"].data_ptr() == weights["token_embedding.weight"].data_ptr()  # tied


def test_loading_file_weights_is_strict():
    model, other = small_model("EasyGPT", bias=True), small_model("EasyGPT", bias=True)
    weights = {name: weight + 1 for name, weight in file_weights(model).items()}
    load_file_weights(other, weights.items())
    for weight, loaded in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(loaded, weight + 1)
    for name in ("blocks.1.attention.key.weight", "final_norm.weight"):
        with pytest.raises(RuntimeError, match="Missing"):
            load_file_weights(other, [(key, weight) for key, weight in weights.items() if key != name])
    with pytest.raises(RuntimeError, match=r"Unexpected.*extra"):
        load_file_weights(other, [*weights.items(), ("extra", torch.zeros(1))])
    assert weights.keys() == file_weights(model).keys()  # the caller's dictionary is unchanged


# ---- transformers ----------------------------------------------------------------------------------------------------

LLAMA = {"token_embedding": "model.embed_tokens", "blocks": "model.layers", "final_norm": "model.norm",
         "head": "lm_head", "attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm",
         "attention": "self_attn", "query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj",
         "feed_forward": "mlp", "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def llama_weights(model):
    """Return the weights of a model by Llama's names."""
    return {".".join(LLAMA.get(part, part) for part in name.split(".")): weight
            for name, weight in file_weights(model).items()}


def llama_settings(config):
    return {"hidden_size": config.n_embd, "intermediate_size": config.n_hidden, "vocab_size": config.vocab_size,
            "num_hidden_layers": config.n_blocks, "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_size,
            "max_position_embeddings": config.block_size, "rms_norm_eps": config.norm_eps, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}


def assert_same_logits(model, theirs, weights):
    theirs.load_state_dict(weights)
    x = torch.randint(model.config.vocab_size, (2, model.block_size))
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], theirs.eval()(x).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rope_theta", [10_000.0, 500.0])
@pytest.mark.parametrize("num_kv_heads", [1, 4, 8])
def test_grouped_queries_rms_norm_rotary_positions_and_swiglu_match_llama(num_kv_heads, rope_theta):
    model = small_model("EasyGPT", block_size=64, num_kv_heads=num_kv_heads, rope_theta=rope_theta)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_settings(model.config)))
    assert_same_logits(model, llama, llama_weights(model))


def test_qk_norm_matches_qwen3():
    model = small_model("EasyGPT", block_size=64, qk_norm=True)
    qwen3 = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**llama_settings(model.config)))
    unscaled = {f"model.layers.{i}.self_attn.{x}_norm.weight": torch.ones(4) for i in range(2) for x in "qk"}
    assert_same_logits(model, qwen3, llama_weights(model) | unscaled)


def test_qk_norm_with_layer_norm_matches_stablelm():
    model = small_model("EasyGPT", block_size=64, norm="layer", qk_norm=True, tied=False)
    settings = llama_settings(model.config)
    settings["rope_parameters"]["partial_rotary_factor"] = 1.0
    stablelm = transformers.StableLmForCausalLM(transformers.StableLmConfig(
        **settings | {"layer_norm_eps": model.config.norm_eps, "qk_layernorm": True, "tie_word_embeddings": False}))
    unscaled = {f"model.layers.{i}.self_attn.{x}_layernorm.norms.{head}.weight": torch.ones(4)
                for i in range(2) for x, heads in (("q", 8), ("k", 4)) for head in range(heads)}
    assert_same_logits(model, stablelm, llama_weights(model) | unscaled)


@pytest.mark.parametrize("ours, theirs", [("gelu", "gelu_new"), ("relu", "relu"), ("relu2", "relu2")])
def test_gpt2_matches_transformers(ours, theirs):
    model = small_model("GPT2", feed_forward=ours)
    config = transformers.GPT2Config(n_embd=32, n_positions=12, n_layer=2, n_head=8, n_inner=48, vocab_size=11,
                                     activation_function=theirs)
    w = file_weights(model)
    weights = {"transformer.wte.weight": w["token_embedding.weight"], "lm_head.weight": w["token_embedding.weight"],
               "transformer.wpe.weight": w["position_embedding.weight"]}
    for kind in ("weight", "bias"):
        weights[f"transformer.ln_f.{kind}"] = w[f"final_norm.{kind}"]
        for i in range(2):
            us, them = f"blocks.{i}", f"transformer.h.{i}"
            weights[f"{them}.ln_1.{kind}"] = w[f"{us}.attention_norm.{kind}"]
            weights[f"{them}.ln_2.{kind}"] = w[f"{us}.feed_forward_norm.{kind}"]
            qkv = torch.cat([w[f"{us}.attention.{part}.{kind}"] for part in ("query", "key", "value")])
            weights[f"{them}.attn.c_attn.{kind}"] = qkv.t()  # .t(): the weight of a Conv1D is transposed
            weights[f"{them}.attn.c_proj.{kind}"] = w[f"{us}.attention.out.{kind}"].t()
            weights[f"{them}.mlp.c_fc.{kind}"] = w[f"{us}.feed_forward.up.{kind}"].t()
            weights[f"{them}.mlp.c_proj.{kind}"] = w[f"{us}.feed_forward.down.{kind}"].t()
    assert_same_logits(model, transformers.GPT2LMHeadModel(config), weights)


# ---- Bad configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, named", [
    ({"n_embd": 0}, "n_embd cannot be 0"), ({"block_size": -1}, "block_size cannot be -1"),
    ({"n_blocks": 0}, "n_blocks"), ({"num_heads": 0}, "num_heads"), ({"vocab_size": 0}, "vocab_size"),
    ({"num_kv_heads": 0}, "num_kv_heads"), ({"n_hidden": 0}, "n_hidden"), ({"n_embd": 33}, "n_embd 33"),
    ({"num_kv_heads": 3}, "num_kv_heads 3"), ({"num_kv_heads": 16}, "num_kv_heads 16"),
    ({"n_embd": 24, "position": "rotary"}, "even head size, not 3"), ({"dropout": 1.0}, "dropout cannot be 1.0"),
    ({"dropout": -0.1}, "dropout"), ({"dropout": math.nan}, "dropout"), ({"norm": "batch"}, "norm cannot be batch"),
    ({"position": "sine"}, "position cannot be sine"), ({"feed_forward": "tanh"}, "feed_forward cannot be tanh"),
    ({"norm_eps": 0.0}, "norm_eps"), ({"rope_theta": math.nan}, "rope_theta"),
    ({"tied": True, "head_bias": True}, "head_bias"),
])  # fmt: skip
def test_an_invalid_configuration_is_an_error_that_quotes_it(change, named):
    with pytest.raises(UserError) as error:
        ModelConfig(**{"n_embd": 32, "block_size": 12, "n_blocks": 2, "num_heads": 8} | change)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_changes_to_a_named_model_are_validated():
    with pytest.raises(UserError, match="num_heads 7"):
        ZOO["RainbowGPT"](num_heads=7)
    with pytest.raises(TypeError, match="n_heads"):
        ZOO["RainbowGPT"](n_heads=6)
