"""The training step against a plain loop; CUDA graphs against eager steps."""

import copy
from functools import partial

import pytest
import torch
from host_reads import HostReads
from small_models import small_model

from models.lora import add_lora
from training import step as step_module
from training.optim import WeightAverage, make_optimizers
from training.settings import OptimSettings
from training.shares import Shares
from training.step import TrainStep, accelerate, optimizer_tensors

DISABLED = torch.amp.GradScaler("cpu", enabled=False)


def make_step(device="cpu", dropout=0.0, name="muon", ema=None):
    """Return a small model on a device, and its TrainStep, always with the same weights."""
    model = small_model("BardGPT", dropout=dropout).to(device).train()
    average = None if ema is None else WeightAverage(model, ema)
    optimizers = make_optimizers(model, OptimSettings(name=name), torch.float32)
    return model, TrainStep(model, optimizers, grad_clip=1.0, dtype=torch.float32, scaler=DISABLED, average=average)


def batches(step, n=1):
    torch.manual_seed(100 + step)
    return [tuple(torch.randint(11, (2, 4, 12))) for _ in range(n)]


def shares(n=1):
    """Return the Shares of the only rank, with n micro-batches per step."""
    each = partial(batches, n=n)
    each.same_shape = True
    return Shares(each)


def run(train_step, steps, n=1):
    return [train_step(step, shares(n)(step), 1 / (1 + step)).item() for step in steps]


def weights_of(model):
    return torch.cat([weight.detach().flatten().cpu() for weight in model.parameters()])


def test_a_step_equals_a_plain_loop():
    model, train_step = make_step(name="adamw")
    plain = copy.deepcopy(model)
    blocks = [weight for weight in plain.blocks.parameters() if weight.ndim == 2]
    others = [weight for weight in plain.parameters() if all(weight is not block for block in blocks)]
    adamw = torch.optim.AdamW([{"params": blocks, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                              betas=(0.9, 0.95), foreach=False)
    for step in range(3):
        loss = train_step(step, shares(3)(step), 0.5)
        whole = [torch.cat(ids) for ids in zip(*batches(step, 3), strict=True)]
        expected = plain(*whole)[1]
        for group in adamw.param_groups:
            group["lr"] = 0.5 * OptimSettings().adamw_lr
        adamw.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        adamw.step()
        torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(weights_of(model), weights_of(plain), atol=1e-5, rtol=1e-5)


# ---- CUDA graphs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_cuda_needed(monkeypatch):
    """Make `capture` work on a CPU: a graph calls its function again, after the same warmup."""
    def fake_graph(function, stream, pool):
        for _ in range(3):
            function()
        return function

    monkeypatch.setattr(step_module, "cuda_graph", fake_graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("n, captured_after", [(1, 0), (3, 0), (2, 2)])
def test_capture_changes_no_state_and_no_step(no_cuda_needed, name, n, captured_after):
    eager_model, eager = make_step(dropout=0.3, name=name, ema=0.9)
    model, train_step = make_step(dropout=0.3, name=name, ema=0.9)
    expected = run(eager, range(6), n)
    losses = run(train_step, range(captured_after), n)
    train_step.capture(*batches(0)[0])
    losses += run(train_step, range(captured_after, 6), n)
    assert losses == expected and torch.equal(weights_of(model), weights_of(eager_model))
    for averaged, other in zip(train_step.average.averages.values(), eager.average.averages.values(), strict=True):
        assert torch.equal(averaged, other)


def test_the_two_graphs_of_a_step_have_a_stream_of_their_own(no_cuda_needed, monkeypatch):
    """Deleting a graph, as after each sample, frees the cuBLAS workspaces of its stream (pytorch/pytorch#193402)."""
    streams, steps = [], [make_step()[1] for _ in range(2)]
    monkeypatch.setattr(step_module, "cuda_graph", lambda function, stream, pool: streams.append(stream) or function)
    for train_step in (steps[0], steps[1], steps[0]):
        train_step.capture(*batches(0)[0])
    first, second = steps[0].stream, steps[1].stream
    assert streams == [first, first, second, second, first, first] and first is not second


def test_the_check_for_host_reads_sees_them():
    with HostReads(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("model_name, changes", [
    ("BardGPT", {"dropout": 0.3}), ("EasyGPT", {}), ("RainbowGPT", {}), ("GPT2", {}),
    ("SmallGPT90M", {"n_labels": 2, "auxiliary_lm": True}), ("BardGPT", {"lora": True})], ids=str)
def test_a_captured_step_reads_no_values_and_keeps_all_addresses(no_cuda_needed, model_name, changes, name, dtype):
    changes = dict(changes)
    lora = changes.pop("lora", False)
    model = small_model(model_name, **changes).train()
    if lora:
        add_lora(model, 2, 2, ("qkv", "head"))
    optimizers = make_optimizers(model, OptimSettings(name=name), dtype)
    train_step = TrainStep(model, optimizers, grad_clip=1.0, dtype=dtype, scaler=DISABLED,
                           average=WeightAverage(model, 0.9))
    train_step.capture(*batches(0)[0])

    def addresses():
        tensors = [*model.parameters(), *(weight.grad for weight in train_step.weights), train_step.x, train_step.y,
                   *optimizer_tensors(optimizers).values(), *train_step.average.averages.values(), train_step.loss,
                   train_step.loss_weight, train_step.average.rate, *(lr for lr, _ in train_step.learning_rates)]
        return [tensor.data_ptr() for tensor in tensors]

    before, weights = addresses(), weights_of(model)
    for step in range(2):
        train_step(step, shares(2)(step), 1.0)
        with train_step.average.in_model():
            pass
    assert addresses() == before and not torch.equal(weights_of(model), weights)
    with HostReads():
        train_step.run_micro_step()
        train_step.run_update()


@pytest.mark.parametrize("seconds, wish, compiled", [
    (0.1, "auto", True), (0.001, "auto", False), (0.1, "no", False), (0.001, "yes", True)])
def test_on_a_gpu_compiling_is_chosen_for_long_runs(monkeypatch, capsys, seconds, wish, compiled):
    def compile_forward(train_step, batch):
        train_step.forward = "fast"
        return True

    def capture(train_step, x, y):
        captures.append(train_step.forward)
        train_step.captured = True

    captures = []
    monkeypatch.setattr(TrainStep, "capture", capture)
    monkeypatch.setattr(step_module, "time_micro_step", lambda *_: seconds)
    monkeypatch.setattr(step_module, "compile_forward", compile_forward)
    model, train_step = make_step()
    train_step.device = torch.device("cuda")
    assert accelerate(train_step, shares(), wish, micro_steps=10_000) is compiled
    assert captures == [model] * (wish == "auto" or not compiled) + ["fast"] * compiled
    line = capsys.readouterr().out
    assert line.startswith(f"training step: captured as CUDA graphs; {'compiled' if compiled else 'not compiled'} (")
    assert ("minutes of training remain" in line) == (wish == "auto")


def test_a_step_that_cannot_be_compiled_trains_on_the_batches_it_is_given(monkeypatch):
    """With graphs that read the tensors they were recorded with, as CUDA graphs do."""
    def fake_graph(function, stream, pool):
        x, y = train_step.x, train_step.y

        def replay():
            train_step.x, train_step.y = x, y
            function()

        return replay

    to = torch.Tensor.to

    def to_device(tensor, *device, **more):
        return to(tensor, "cpu", copy=True) if device else to(tensor, **more)

    def failing_compile(forward, dynamic):
        def fail(x, y):
            raise RuntimeError("no compiler")
        return fail

    monkeypatch.setattr(step_module, "cuda_graph", fake_graph)
    monkeypatch.setattr(step_module, "time_micro_step", lambda *_: 1.0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch, "compile", failing_compile)
    monkeypatch.setattr(torch.Tensor, "to", to_device)
    _, eager = make_step()
    _, train_step = make_step()
    train_step.device = torch.device("cuda")
    monkeypatch.setattr(step_module, "autocast", lambda *_: torch.enable_grad())
    assert not accelerate(train_step, shares(), "auto", micro_steps=10_000) and train_step.captured
    assert run(train_step, range(1, 4)) == run(eager, range(1, 4))


def test_batches_that_differ_in_length_are_neither_captured_nor_planned_by_cudnn(capsys, monkeypatch):
    _, train_step = make_step()
    train_step.device, differing = torch.device("cuda"), shares()
    differing.batches.same_shape = False
    flags = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", flags.append)
    assert not accelerate(train_step, differing, "auto", micro_steps=10) and not train_step.captured
    assert flags == [False] and "not captured as CUDA graphs: batches differ in length" in capsys.readouterr().out


def test_a_line_says_why_a_step_is_not_captured(capsys, monkeypatch):
    model, train_step = make_step()
    model.activation_checkpointing = True
    train_step.device = torch.device("cuda")
    assert not accelerate(train_step, shares(), "no", micro_steps=10) and not train_step.captured
    assert "not captured as CUDA graphs: activation checkpointing" in capsys.readouterr().out


def test_a_step_of_a_sharded_model_is_not_captured_on_one_rank_either(capsys, monkeypatch):
    model, train_step = make_step()
    monkeypatch.setattr(type(model), "reshard", None, raising=False)  # FSDP2 adds it
    train_step.device = torch.device("cuda")
    assert not accelerate(train_step, shares(), "no", micro_steps=10) and not train_step.captured
    assert "not captured as CUDA graphs: ranks exchange" in capsys.readouterr().out


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_cuda
@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("n", [1, 3])
def test_captured_steps_equal_eager_steps(name, n):
    eager_model, eager = make_step("cuda", name=name, ema=0.9)
    model, train_step = make_step("cuda", name=name, ema=0.9)
    train_step.capture(*batches(0)[0])
    expected, losses = run(eager, range(20), n), run(train_step, range(20), n)
    assert losses == pytest.approx(expected, rel=1e-3) and losses[-1] < losses[0]


@needs_cuda
def test_captured_dropout_depends_on_seed_and_step_only():
    def first_loss(seed, step):
        _, train_step = make_step("cuda", dropout=0.5)
        train_step.seed = seed
        train_step.capture(*batches(0)[0])
        return train_step(step, shares()(0), 0.0).item()

    losses = [first_loss(seed, step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert len(set(losses)) == 3 and first_loss(0, 1) == losses[1]


@needs_cuda
def test_a_resumed_captured_run_equals_an_uninterrupted_one():
    model, train_step = make_step("cuda", dropout=0.5)
    train_step.capture(*batches(0)[0])
    run(train_step, range(3))
    weights = copy.deepcopy(model.state_dict())
    states = [copy.deepcopy(optimizer.state_dict()["state"]) for optimizer in train_step.optimizers]
    expected = run(train_step, range(3, 6))

    model.load_state_dict(weights)
    optimizers = make_optimizers(model, OptimSettings(), torch.float32)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    resumed = TrainStep(model, optimizers, grad_clip=1.0, dtype=torch.float32, scaler=DISABLED)
    resumed.capture(*batches(0)[0])
    assert run(resumed, range(3, 6)) == pytest.approx(expected, rel=1e-6)
