"""Int8 weights against hand computation, and against float models with rounded weights."""

import copy

import pytest
import torch
from small_models import small_model
from small_text import TEXT

from data.windows import ConsecutiveWindows
from models.config import SamplingConfig
from models.generate import generate
from models.quantize import Int8Embedding, Int8Linear, Int8Matrix, int8_summary, quantize_int8
from models.zoo import ZOO
from training.checkpoint import SHIPPED, load_model
from training.evaluate import estimate_loss
from utils.forecast.parameters import weight_bytes

MODELS = [("RainbowGPT", {}), ("BardGPT", {}), ("GPT2", {}), ("EasyGPT", {"num_kv_heads": 2}),
          ("GPT2", {"n_labels": 3}), ("RainbowGPT", {"n_labels": 3, "auxiliary_lm": True})]


def quantized(model):
    model = copy.deepcopy(model)
    quantize_int8(model)
    return model


def rounded(model):
    """Return a float copy of a model whose matrices are rounded to int8 with one scale per row."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        if weight.dim() == 2:
            steps = (weight.data.abs().max(dim=1, keepdim=True).values / 127).to(torch.bfloat16).float()
            weight.data = torch.round(weight.data / steps) * steps
    return model


# ---- One matrix ------------------------------------------------------------------------------------------------------


def test_a_layer_matches_hand_computation():
    weight = torch.tensor([[254.0, -126.0, 3.2, 0.9], [0.0, 0.0, 0.0, 0.0], [-127.0, 1.4, 63.6, 0.0]])
    matrix = Int8Matrix(weight)
    assert matrix.int8.tolist() == [[127, -63, 2, 0], [0, 0, 0, 0], [-127, 1, 64, 0]]
    assert matrix.scale[0] == 2 and matrix.scale[1] > 0 and matrix.scale[2] == 1
    layer = Int8Linear(matrix, bias=torch.tensor([0.5, 7.0, -1.0]))
    assert layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[254 - 252 + 12 + 0.5, 7, -127 + 2 + 192 - 1]]
    assert Int8Embedding(matrix)(torch.tensor([[2, 0]])).tolist() == [[[-127, 1, 64, 0], [254, -126, 4, 0]]]


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_the_error_of_every_element_is_at_most_half_a_step(size):
    torch.manual_seed(0)
    weight = size * torch.randn(50, 300) * torch.logspace(-3, 3, 50)[:, None]  # rows of very different sizes
    weight[7, 5] *= 1000  # one outlier
    matrix = Int8Matrix(weight)
    step = weight.double().abs().amax(dim=1, keepdim=True) / 127
    assert torch.allclose(matrix.scale.double(), step, rtol=2**-8, atol=0)
    assert torch.equal(matrix.scale, matrix.scale.bfloat16().float())  # the same in both dtypes
    assert ((matrix.dequantize().double() - weight).abs() <= matrix.scale.double() / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("columns, kernel", [(16, True), (24, False), (33, False), (384, True)])
@pytest.mark.parametrize("bias", [True, False])
def test_one_token_in_bfloat16_matches_float64(columns, kernel, bias):
    torch.manual_seed(0)
    layer = Int8Linear(Int8Matrix(torch.randn(21, columns)), torch.nn.Parameter(torch.randn(21)) if bias else None)
    exact = layer.matrix.int8.double() * layer.matrix.scale.double()
    x = torch.randn(1, 1, columns).bfloat16()
    assert layer.bfloat16().has_kernel(x) == kernel
    assert not layer.has_kernel(x.repeat(1, 2, 1)) and not layer.has_kernel(x.float())
    expected = x[0].double() @ exact.T + (layer.bias.double() if bias else 0)  # (1, 21)
    scale = expected.abs().max()
    with torch.no_grad():
        for inputs in (x, x[0], x[0, 0], x.repeat(1, 2, 1)):
            y = layer(inputs)
            assert y.shape == (*inputs.shape[:-1], 21) and y.dtype == torch.bfloat16
            assert (y.double() - expected).abs().max() < 0.02 * scale


# ---- A model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, changes", MODELS)
def test_a_quantized_model_matches_a_float_model_with_rounded_weights(name, changes):
    model = small_model(name, **changes)
    int8, reference = quantized(model), rounded(model)
    x = torch.randint(0, 11, (2, 12))
    y = x.clone() if model.config.n_labels is None else x % 3
    with torch.no_grad():
        assert torch.equal(int8(x)[0], reference(x)[0]) and not torch.allclose(int8(x)[0], model(x)[0])
        assert torch.equal(int8(x, y)[1], reference(x, y)[1])
    if model.config.n_labels is None:  # beyond the context length, so that the cache is filled again
        sampling = SamplingConfig(seed=3)
        assert list(generate(int8, [1, 2, 3], 40, sampling)) == list(generate(reference, [1, 2, 3], 40, sampling))


@pytest.mark.parametrize("name", ["BardGPT", "GPT2"])
def test_generation_in_bfloat16_matches_a_float_model_with_rounded_weights(name):
    model = small_model(name, n_hidden=64, n_blocks=1)
    int8, reference = quantized(model).bfloat16(), rounded(model).bfloat16()
    seen = {}
    for key, each in (("int8", int8), ("float", reference)):
        each.head.register_forward_hook(lambda *arguments, key=key: seen.setdefault(key, []).append(arguments[2]))
    ids = list(generate(int8, [1, 2], 9, SamplingConfig(seed=0)))
    for i in range(9):  # without a cache
        reference.head(reference.features(torch.tensor([[1, 2, *ids[:i]]]))[0, -1])
    logits = {key: torch.stack(values).float() for key, values in seen.items()}
    assert logits["int8"].shape == logits["float"].shape
    assert (logits["int8"] - logits["float"]).abs().max() < 0.05 * logits["float"].abs().max()


@pytest.mark.parametrize("name, changes", MODELS)
def test_all_matrices_become_int8_and_norms_and_biases_are_kept(name, changes):
    model = small_model(name, **changes)
    int8 = quantized(model)
    kept = {key: weight for key, weight in model.named_parameters() if weight.dim() == 1}
    assert dict(int8.named_parameters()).keys() == kept.keys()
    assert all(torch.equal(weight, kept[key]) for key, weight in int8.named_parameters())
    int8.bfloat16()
    assert (int8.head.matrix is int8.token_embedding.matrix) == model.config.tied_head
    tensors = [*int8.parameters(), *(value for key, value in int8.named_buffers() if not key.startswith("rotary"))]
    elements = sum(tensor.numel() for tensor in tensors if tensor.dtype == torch.int8)
    assert elements == sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    assert sum(tensor.nbytes for tensor in tensors) == weight_bytes(model.config, "int8")


def test_int8_takes_at_most_three_tenths_of_the_size():
    for name, model in ZOO.items():
        assert weight_bytes(model.config, "int8") <= 0.3 * weight_bytes(model.config, "float32"), name
    assert int8_summary(ZOO["GPT2"].config) == "int8 weights: 119.05 MiB, 0.251 times the 474.70 MiB of float32"


def test_quantization_changes_the_loss_of_the_shipped_model_by_less_than_a_hundredth():
    model, tokenizer = load_model(SHIPPED)
    batches = ConsecutiveWindows(tokenizer.encode(TEXT), model.block_size, 8)
    assert abs(estimate_loss(quantized(model), batches) - estimate_loss(model, batches)) < 0.01
