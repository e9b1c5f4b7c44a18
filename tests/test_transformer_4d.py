"""transformer_4d.py against independent references, and as a command in its own folder."""

import copy
import errno
import hashlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_text import TEXT

import transformer_4d
from training.checkpoint import load_model
from transformer_4d import Config, Muon, TransformerModel, evaluate, make_train_step, orthogonalize, print_sample, train

SCRIPT = Path(transformer_4d.__file__)
TINY = {"n_embd": 16, "block_size": 12, "n_blocks": 2, "num_heads": 4, "dropout": 0.0, "batch_size": 4,
        "max_iters": 6, "eval_interval": 3, "max_new_chars": 20, "device": "cpu"}


def tiny_model(vocab_size=11, seed=0, **changes):
    """Return a small model with random weights, as the initial zeros could hide mistakes."""
    torch.manual_seed(seed)
    model = TransformerModel(Config(**TINY | changes), vocab_size).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a text, which the script takes for its own folder."""
    monkeypatch.setattr(transformer_4d, "HERE", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def checkpoint_path(folder):
    [path] = (folder / "checkpoints").iterdir()
    return path


def load_checkpoint(folder):
    return torch.load(checkpoint_path(folder), weights_only=True)


# ---- The file --------------------------------------------------------------------------------------------------------


def test_inline_script_metadata_names_the_packages_that_the_file_needs():
    source = SCRIPT.read_text(encoding="utf-8")
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", source, re.MULTILINE)[1]  # the regex of PEP 723, in short
    needed = re.findall(r'"([a-z]+)', re.search(r"^# dependencies = (.*)$", block, re.MULTILINE)[1])
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE)) - sys.stdlib_module_names
    assert set(needed) == imported | {"numpy"}  # without numpy, torch prints a warning


def test_the_file_has_at_most_300_lines_and_reaches_attention_before_line_100():
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 300
    assert lines.index("class Attention(nn.Module):") < 100


# ---- The model -------------------------------------------------------------------------------------------------------


def test_the_defaults_give_3_691_073_parameters():
    config, V = Config(), 65
    C, T = config.n_embd, config.block_size
    block = 4 * C * C + 2 * C * 4 * C + 2 * (C + C)
    formula = V * C + T * C + config.n_blocks * block + (C + C) + (C * V + V)
    model = TransformerModel(config, V)
    assert sum(weight.numel() for weight in model.parameters()) == formula == 3_691_073


def reference_logits(model, ids):
    """Return the logits (T, V), computed as in the papers: one sequence, one head, one position at a time."""
    w = dict(model.named_parameters())

    def standardize(x):
        centered = x - x.mean()
        return centered / (centered.square().mean() + 1e-5).sqrt()

    def norm(x, name):
        return standardize(x) * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = [w["token_embedding.weight"][i] + w["position_embedding.weight"][t] for t, i in enumerate(ids)]
    for b in range(len(model.blocks)):
        nh = model.blocks[b].attention.num_heads
        n = [norm(v, f"blocks.{b}.attention_norm") for v in x]
        q, k, v = ([w[f"blocks.{b}.attention.{part}.weight"] @ y for y in n] for part in ("query", "key", "value"))
        for t in range(len(x)):
            heads = []
            for h in range(nh):
                part = slice(h * len(x[t]) // nh, (h + 1) * len(x[t]) // nh)
                query, keys = standardize(q[t][part]), [standardize(k[past][part]) for past in range(t + 1)]
                scores = torch.stack([query @ key for key in keys]) * len(query) ** -0.5
                share = scores.exp() / scores.exp().sum()
                heads.append(sum(share[past] * v[past][part] for past in range(t + 1)))
            x[t] = x[t] + w[f"blocks.{b}.attention.out.weight"] @ torch.cat(heads)
        for t in range(len(x)):
            wide = w[f"blocks.{b}.feed_forward.up.weight"] @ norm(x[t], f"blocks.{b}.feed_forward_norm")
            x[t] = x[t] + w[f"blocks.{b}.feed_forward.down.weight"] @ wide.clamp(min=0).square()
    return torch.stack([w["head.weight"] @ norm(v, "final_norm") + w["head.bias"] for v in x])


def test_the_model_matches_the_reference_formula():
    model = tiny_model().double()
    ids = torch.randint(11, (3, 12))
    logits, _ = model(ids)
    expected = torch.stack([reference_logits(model, row.tolist()) for row in ids])
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention_matches_pytorch(dtype, tolerance):
    torch.manual_seed(0)
    attention = transformer_4d.Attention(Config(**TINY)).to(dtype)
    torch.nn.init.normal_(attention.out.weight, std=0.3)
    x = torch.randn(2, 7, 16, dtype=dtype)
    q, k, v = (part(x).view(2, 7, 4, 4).transpose(1, 2) for part in (attention.query, attention.key, attention.value))
    q, k = F.layer_norm(q, (4,)), F.layer_norm(k, (4,))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 7, 16)
    torch.testing.assert_close(attention(x), attention.out(y), atol=tolerance, rtol=tolerance)


def test_bfloat16_equals_float32_up_to_rounding():
    model, x = tiny_model(), torch.randint(11, (2, 12))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(x)
    exact, _ = model(x)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_attention_is_causal():
    model, x = tiny_model(), torch.randint(11, (2, 12))
    for t in range(1, 12):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % 11
        before, after = model(x)[0], model(changed)[0]
        torch.testing.assert_close(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t:], after[:, t:])


def test_the_first_loss_is_the_uniform_baseline():
    torch.manual_seed(0)
    model = TransformerModel(Config(), 65)
    x, y = torch.randint(65, (2, 2, 64))
    assert model(x, y)[1].item() == pytest.approx(math.log(65), abs=0.01)  # the bias of the head is random


def test_the_model_can_overfit_one_batch():
    torch.manual_seed(0)
    config = Config(**TINY | {"n_embd": 32, "adamw_lr": 0.01, "weight_decay": 0.0})
    train_step = make_train_step(TransformerModel(config, 11), config, torch.float32)
    sequences = torch.randint(11, (4, 13))  # random: the model has to memorize them
    for _ in range(150):
        loss = train_step(sequences, lr_factor=1.0)
    assert loss.item() < 0.05


def test_a_sample_is_drawn_from_the_predictions_for_the_last_context(capsys):
    model, vocab = tiny_model(), "\nabcdefghij"
    print_sample(model, vocab, Config(**TINY | {"temperature": 0.001, "max_new_chars": 25}))
    sample = capsys.readouterr().out
    assert len(sample) == 25
    for t in range(1, 25):  # at this temperature, the most likely character is always drawn
        logits, _ = model(torch.tensor([[vocab.index(character) for character in sample[max(0, t - 12) : t]]]))
        assert sample[t] == vocab[logits[0, -1].argmax()]


# ---- Optimizer and evaluation ----------------------------------------------------------------------------------------


def per_matrix_muon(weight, gradients, lr, weight_decay, dtype):
    """Return one matrix after a step of Muon for each of these gradients."""
    average = torch.zeros_like(weight)
    for gradient in gradients:
        average = 0.9 * average + 0.1 * gradient
        x = (0.1 * gradient + 0.9 * average).to(dtype)
        transposed = x.size(0) > x.size(1)
        x = x.T if transposed else x
        x = x / x.norm()
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        update = (x.T if transposed else x).to(weight.dtype)
        weight = weight * (1 - lr * weight_decay) - lr * max(1, weight.size(0) / weight.size(1)) ** 0.5 * update
    return weight


def test_batched_muon_matches_muon_per_matrix():
    torch.manual_seed(0)
    shapes = ((8, 8), (32, 8), (8, 32), (8, 8), (32, 8))
    weights = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    gradients = [[torch.randn_like(weight) for _ in range(5)] for weight in weights]
    expected = [per_matrix_muon(weight, steps, 0.02, 0.1, torch.float64)
                for weight, steps in zip(weights, gradients, strict=True)]
    muon = Muon(weights, torch.tensor(0.02, dtype=torch.float64), 0.1, torch.float64)
    for step in range(5):
        for weight, steps in zip(weights, gradients, strict=True):
            weight.grad = steps[step]
        muon.step()
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-6)  # the update passes through float32


def test_muon_matches_pytorch():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 8), (32, 8), (8, 32))]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in ours]
    optimizers = (Muon(ours, lr=torch.tensor(0.02), weight_decay=0.1, dtype=torch.bfloat16),
                  torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9))
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0.0)  # bfloat16 rounds stacked matrices differently


@pytest.mark.parametrize("shape", [(6, 6), (24, 6), (6, 24)])
def test_orthogonalize_keeps_the_singular_vectors_and_levels_the_singular_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, lengths, vt = torch.linalg.svd(matrix, full_matrices=False)
    leveled = u.T @ orthogonalize(matrix[None])[0] @ vt.T  # diagonal, if the directions are the same
    assert (leveled - leveled.diag().diag()).abs().max() < 1e-4
    assert lengths.max() / lengths.min() > leveled.diag().max() / leveled.diag().min()
    assert leveled.diag().min() > 0.5 and leveled.diag().max() < 1.3


def test_a_train_step_is_one_step_of_both_optimizers():
    config = Config(**TINY | {"weight_decay": 0.1})
    ours = tiny_model()
    reference = copy.deepcopy(ours)
    train_step = make_train_step(ours, config, torch.float32)
    adamw = torch.optim.AdamW([w for name, w in reference.named_parameters() if w.ndim == 1 or "blocks" not in name],
                              config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
    matrices = {name: w for name, w in reference.named_parameters() if w.ndim == 2 and "blocks" in name}
    start, seen = {name: w.detach().clone() for name, w in matrices.items()}, {name: [] for name in matrices}
    for step in range(4):
        sequences = torch.randint(11, (4, 13), generator=torch.Generator().manual_seed(step))
        loss = train_step(sequences, lr_factor=1.0)
        _, expected = reference(sequences[:, :-1], sequences[:, 1:])
        reference.zero_grad()
        expected.backward()
        torch.testing.assert_close(loss, expected.detach())
        adamw.step()
        for name, w in matrices.items():
            seen[name].append(w.grad.clone())
            w.data = per_matrix_muon(start[name], seen[name], config.muon_lr, 0.1, torch.float32)
    for (name, a), b in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=name)


def test_steps_with_a_learning_rate_of_zero_do_not_change_the_weights():
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    train_step = make_train_step(model, Config(**TINY), torch.float32)
    for _ in range(3):
        train_step(torch.randint(11, (4, 13)), lr_factor=0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_step_matches_an_eager_step(monkeypatch):
    def losses_and_weights(capture):
        with monkeypatch.context() as patch:
            if not capture:  # the same three warmup steps, then eager ones
                patch.setattr(transformer_4d, "cuda_graph", lambda step: [step() for _ in range(3)] and step)
            model = tiny_model().cuda().train()
            train_step = make_train_step(model, Config(**TINY | {"device": "cuda"}), torch.float32)
            generator = torch.Generator().manual_seed(1)
            losses = [train_step(torch.randint(11, (4, 13), generator=generator), 1.0).item() for _ in range(20)]
        return torch.tensor(losses), [*model.parameters()]

    torch.testing.assert_close(losses_and_weights(True), losses_and_weights(False), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_consecutive_captured_steps_draw_different_dropout_masks():
    model = tiny_model(dropout=0.5).cuda().train()
    train_step = make_train_step(model, Config(**TINY | {"device": "cuda"}), torch.float32)
    sequences = torch.randint(11, (4, 13))
    assert len({train_step(sequences, 0).item() for _ in range(5)}) == 5


@pytest.mark.parametrize("length", [13, 36, 37, 38, 60])  # with a block of 12: one sequence; a short last one, or none
def test_evaluation_predicts_every_token_of_a_split_once(length):
    model = tiny_model()
    tokens = torch.randint(11, (length,))
    losses = []
    for t in range(1, length):
        start = (t - 1) // 12 * 12
        logits, _ = model(tokens[None, start:t])
        losses.append(F.cross_entropy(logits[0, -1], tokens[t]).item())
    for batch_size in (1, 2, 64):
        assert evaluate(model, tokens, 12, batch_size) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_evaluation_disables_dropout_and_training_continues_with_it():
    model, tokens = tiny_model(dropout=0.5).train(), torch.randint(11, (50,))
    assert evaluate(model, tokens, 12, 2) == evaluate(model, tokens, 12, 2)
    assert model.training


# ---- A run -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch):
    """Record the sequences of every training step of a run, (B, T + 1) each, without the ten that measure speed."""
    seen, make = [], transformer_4d.make_train_step

    def make_and_record(*arguments):
        train_step = make(*arguments)

        def record(sequences, lr_factor):
            if lr_factor > 0:
                seen.append(sequences.clone())
            return train_step(sequences, lr_factor)

        return record

    monkeypatch.setattr(transformer_4d, "make_train_step", make_and_record)
    return seen


def test_a_run_trains_on_sequences_of_the_first_nine_tenths(folder, batches):
    train(Config(**TINY))
    vocab, first = load_checkpoint(folder)["tokenizer"]["vocab"], TEXT[: int(0.9 * len(TEXT))]
    sequences = ["".join(vocab[i] for i in sequence) for batch in batches for sequence in batch]
    assert len(batches) == 6 and len(sequences) == 6 * 4 and len(set(sequences)) > 12
    assert all(len(sequence) == 13 and sequence in first for sequence in sequences)


def test_every_epoch_takes_the_text_once_in_random_order(folder, batches):
    text = "".join(chr(0x4E00 + i) for i in range(400))  # no character twice, so that each tells its position
    (folder / "data" / "input.txt").write_text(text, encoding="utf-8")
    train(Config(**TINY | {"max_iters": 22, "eval_interval": 22}))  # 29 sequences fit into 360 characters
    starts = torch.cat(batches)[:, 0]
    epochs = [starts[:29], starts[29:58], starts[58:87]]
    for epoch in epochs:
        assert (epoch.sort().values.diff() == 12).all()  # side by side, without gaps or overlap
        assert not torch.equal(epoch, epoch.sort().values)
    assert len({epoch.min().item() for epoch in epochs}) > 1  # each epoch cuts the text in other places


def test_the_checkpoint_loads_in_the_zoo_and_has_the_printed_loss(folder, capsys):
    train(Config(**TINY))
    model, tokenizer = load_model(checkpoint_path(folder))
    assert tokenizer.decode(list(range(tokenizer.vocab_size))) == "".join(sorted(set(TEXT)))
    validation = torch.tensor(tokenizer.encode(TEXT[int(0.9 * len(TEXT)) :]))
    printed = float(re.search(r"^validation loss (\d+\.\d+)", capsys.readouterr().out, re.MULTILINE)[1])
    assert evaluate(model, validation, 12, 4) == pytest.approx(printed, abs=0.01)  # bfloat16 on some machines


def sample_in(out):
    """Return the sample in the output of a run, between the last evaluation and the summary."""
    return re.search(r"step +\d+  validation loss [\d.]+\n(?!step)(.*)\n\nvalidation loss", out, re.DOTALL)[1]


def outcome(folder, capsys, **settings):
    """Train; return the losses, the sample, and the whole output."""
    train(Config(**TINY | settings))
    shutil.rmtree(folder / "checkpoints")
    out = capsys.readouterr().out
    return re.findall(r"step +\d+ +validation loss (\d+\.\d+)", out), sample_in(out), out


def test_a_fixed_seed_gives_reproducible_losses_and_samples(folder, capsys):
    assert outcome(folder, capsys, seed=1, dropout=0.1)[:2] == outcome(folder, capsys, seed=1, dropout=0.1)[:2]
    assert outcome(folder, capsys, seed=1, dropout=0.1)[:2] != outcome(folder, capsys, seed=2, dropout=0.1)[:2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_run_on_a_gpu_is_reproducible_and_matches_a_run_on_a_cpu(folder, capsys):
    settings = {"max_iters": 60, "eval_interval": 20}  # with evaluations between replays of the graph
    first, second, cpu = ([float(loss) for loss in outcome(folder, capsys, **settings, device=device)[0]]
                          for device in ("cuda", "cuda", "cpu"))
    assert first == pytest.approx(second, abs=1e-3)  # the order of atomic additions varies
    assert first == pytest.approx(cpu, abs=0.1)


def test_the_time_budget_chooses_max_iters_and_prints_how_to_repeat_the_run(folder, capsys, monkeypatch):
    monkeypatch.setattr(transformer_4d.timeit, "timeit", lambda run, number: [run() for _ in range(number)] and 100.0)
    losses, sample, out = outcome(folder, capsys, max_iters=0, minutes=2.0, dropout=0.1)
    steps = int(re.search(r"--max_iters (\d+)", out)[1])
    assert steps == 12  # 2 minutes at 10 s per step; evaluations take about 5%
    assert outcome(folder, capsys, max_iters=steps, dropout=0.1)[:2] == (losses, sample)


def test_the_time_budget_has_an_upper_limit_and_an_explicit_max_iters_wins(folder, capsys, monkeypatch):
    monkeypatch.setattr(transformer_4d, "MAX_ITERS", 7)
    assert "--max_iters 7" in outcome(folder, capsys, max_iters=0, minutes=60.0)[2]
    assert "--max_iters 8" in outcome(folder, capsys, max_iters=8, minutes=1e-9)[2]


@pytest.mark.parametrize("losses, verdict", [([4.0, 2.0, 3.0], "rose after step 3: overfitting"),
                                             ([4.0, 3.0, 2.0], "still falling")])
def test_the_summary_says_whether_the_model_overfits(folder, monkeypatch, capsys, losses, verdict):
    remaining = iter(losses)
    monkeypatch.setattr(transformer_4d, "evaluate", lambda *_: next(remaining))
    train(Config(**TINY))
    out = capsys.readouterr().out
    assert f"validation loss 2.0000, {verdict}" in out and "python estimate.py" in out
    assert f"{math.log(len(set(TEXT))):.4f}" in out  # the uniform baseline


def test_the_best_weights_are_kept(folder, monkeypatch):
    losses, weights = iter([4.0, 2.0, 3.0]), []

    def fake_evaluate(model, tokens, T, batch_size):
        weights.append(model.token_embedding.weight.detach().clone())
        return next(losses)

    monkeypatch.setattr(transformer_4d, "evaluate", fake_evaluate)
    train(Config(**TINY))
    assert len(weights) == 3
    assert torch.equal(load_checkpoint(folder)["weights"]["token_embedding.weight"], weights[1])


def test_a_windows_text_file_loses_its_byte_order_mark_and_carriage_returns(folder):
    (folder / "data" / "input.txt").write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo \xe4\xb8\xad\r\n" * 20)
    vocab, train_tokens, val_tokens = transformer_4d.load_data(Config(**TINY))
    assert "".join(vocab[i] for i in (*train_tokens, *val_tokens)) == "one\ntwo 中\n" * 20
    assert len(train_tokens) == 180 and vocab == "\n enotw中"


# ---- The command -----------------------------------------------------------------------------------------------------


def command(folder, *arguments, **options):
    shutil.copy(SCRIPT, folder)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8", **options}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, **options)


def arguments(**settings):
    return [word for name, value in (TINY | settings).items() for word in (f"--{name}", str(value))]


def test_a_copy_of_the_file_trains_saves_and_prints_a_sample(folder):
    process = command(folder, "transformer_4d.py", *arguments(max_new_chars=50))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert f"{int(0.9 * len(TEXT)):,} training characters" in out and "steps: 6;" in out
    assert len(sample_in(out)) == 50 and set(sample_in(out)) <= set(TEXT)
    assert load_checkpoint(folder)["config"]["n_embd"] == 16
    assert "tokens/s" in err and "loss=" in err  # the progress bar


def test_importing_does_nothing(folder):
    process = command(folder, "-c", "import transformer_4d")
    assert process.communicate() == ("", "") and process.returncode == 0
    assert not (folder / "checkpoints").exists()


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_ends_training_early_and_still_saves_and_prints_a_sample(folder):
    process = command(folder, "-u", "transformer_4d.py", *arguments(max_iters=10**6, eval_interval=10**6))
    for line in process.stdout:
        if line.startswith("step     0"):
            break
    process.stderr.read(200)  # the progress bar moves: training has started
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    [step] = re.findall(r"step +(\d+)  validation", out)  # the evaluation after step 0
    assert 0 < int(step) < 10**6 and len(sample_in(out)) == 20
    assert load_checkpoint(folder)


def test_ctrl_c_during_the_first_save_ends_with_a_checkpoint(folder, monkeypatch):
    save, interrupted = torch.save, []

    def interrupt_the_first(checkpoint, file):
        if not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", interrupt_the_first)
    train(Config(**TINY))
    load_model(checkpoint_path(folder))


def test_a_second_ctrl_c_exits_at_once(folder, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["transformer_4d.py", *arguments()])
    monkeypatch.setattr(transformer_4d, "evaluate", interrupt)
    with pytest.raises(SystemExit) as end:
        transformer_4d.main()
    assert end.value.code == 130 and "Traceback" not in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows raises another error")
def test_a_closed_pipe_ends_it_with_one_line(folder):
    process = command(folder, "transformer_4d.py", *arguments())
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 2
    assert re.search(rf"^error: .*{os.strerror(errno.EPIPE)}\n\Z", err, re.MULTILINE)
    assert "Traceback" not in err and "Exception ignored" not in err


@pytest.mark.skipif(os.name == "nt", reason="redirects with a POSIX shell")
def test_it_trains_with_closed_standard_streams(folder):
    line = " ".join([sys.executable, str(shutil.copy(SCRIPT, folder)), *arguments(), "<&- >&- 2>&-"])
    assert subprocess.run(["bash", "-c", line]).returncode == 0
    load_model(checkpoint_path(folder))


def test_bad_input_on_the_command_line_is_one_line_and_exit_code_2(folder):
    process = command(folder, "transformer_4d.py", "--n_embd", "10", "--num_heads", "4")
    out, err = process.communicate()
    assert process.returncode == 2
    assert re.fullmatch(r"error: num_heads 4 .*n_embd 10\n", err)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux, which lists a CPU's instructions")
@pytest.mark.parametrize("hidden, dtype", [(False, "bfloat16"), (True, "float32")])
def test_a_cpu_computes_in_bfloat16_if_it_has_instructions_for_it(folder, monkeypatch, capsys, hidden, dtype):
    if hidden:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    elif "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        dtype = "float32"
    train(Config(**TINY))
    assert f"cpu, torch.{dtype}" in capsys.readouterr().out
    assert all(weight.dtype == torch.float32 for weight in load_checkpoint(folder)["weights"].values())


# ---- Bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def error_line(folder, capsys, monkeypatch):
    """Return a function that runs the command, which must fail with exit code 2, and returns its one-line message."""

    def run(**settings):
        monkeypatch.setattr(sys, "argv", ["transformer_4d.py", *arguments(**settings)])
        with pytest.raises(SystemExit) as end:
            transformer_4d.main()
        err = capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" not in err
        return re.search(r"^error: (.*)\n\Z", err, re.MULTILINE)[1]

    return run


def test_a_nan_loss_ends_training_and_leaves_the_last_checkpoint(folder, error_line):
    assert "the loss is nan: " in error_line(muon_lr=1e18)
    assert load_checkpoint(folder)


def test_out_of_memory_is_one_line_that_says_what_to_do(error_line):
    assert "out of memory: reduce batch_size, block_size or n_embd" in error_line(n_embd=2**40)


@pytest.mark.parametrize("text", ["", "a", "x" * 120])
def test_a_text_that_is_too_short_is_an_error_with_the_length_needed(folder, error_line, text):
    (folder / "data" / "input.txt").write_text(text)
    line = error_line()
    assert "over 120 characters" in line
    assert not (folder / "checkpoints").exists()


def test_a_folder_instead_of_a_text_is_an_error(folder, error_line):
    (folder / "data" / "input.txt").unlink()
    (folder / "data" / "input.txt").mkdir()
    assert "input.txt" in error_line()


def test_the_shortest_possible_text_trains(folder):
    (folder / "data" / "input.txt").write_text("xy" * 61)  # 13 characters for validation: one sequence of 12
    train(Config(**TINY))
    assert load_checkpoint(folder)["config"]["vocab_size"] == 2


def test_invalid_utf8_is_an_error_with_the_byte_and_its_position(folder, error_line):
    (folder / "data" / "input.txt").write_bytes(b"\xef\xbb\xbf" + "中".encode() + b"abc\xd6\xd0")
    line = error_line()
    assert "0xd6" in line and "position 9" in line and "input.txt" in line


@pytest.mark.parametrize("change, quoted", [
    ({"num_heads": 3}, "n_embd 16"), ({"num_heads": 0}, "num_heads cannot be 0"), ({"batch_size": -1}, "batch_size"),
    ({"eval_interval": 0}, "eval_interval"), ({"temperature": 0}, "temperature"), ({"dropout": 1}, "dropout"),
    ({"dropout": -0.1}, "dropout cannot be -0.1"), ({"muon_lr": "nan"}, "muon_lr cannot be nan"),
    ({"device": "toaster"}, "toaster"), ({"seed": 2**63}, "seed"), ({"temperature": 1e-40}, "temperature"),
])  # fmt: skip
def test_invalid_settings_are_errors_that_quote_them(folder, error_line, change, quoted):
    assert quoted in error_line(**change)
    assert not (folder / "checkpoints").exists()


def test_an_unwritable_checkpoints_folder_is_an_error_before_the_first_update(folder, error_line, monkeypatch):
    (folder / "checkpoints").write_text("a file, where a folder should be")
    monkeypatch.setattr(Muon, "step", lambda muon: muon.lr.item() == 0 or pytest.fail("it trained"))
    assert "checkpoints" in error_line()
    assert (folder / "checkpoints").read_text() == "a file, where a folder should be"


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as POSIX does")
def test_a_full_disk_is_one_line_and_leaves_the_previous_checkpoint_unchanged(folder, error_line, monkeypatch):
    import resource

    replace, limits = Path.replace, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_then_fill_the_disk(path, target):
        replace(path, target)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes: the next save does not fit

    monkeypatch.setattr(Path, "replace", save_then_fill_the_disk)
    try:
        assert os.strerror(errno.EFBIG) in error_line()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    [path] = (folder / "checkpoints").iterdir()  # no partial file
    model, _ = load_model(path)
    assert not model.head.weight.any()  # the checkpoint of step 0


@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access was encountered", "a bug"])
def test_other_runtime_errors_keep_their_traceback(folder, monkeypatch, message):
    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(sys, "argv", ["transformer_4d.py", *arguments()])
    monkeypatch.setattr(transformer_4d, "evaluate", fail)
    with pytest.raises(RuntimeError, match=message):
        transformer_4d.main()


# ---- Downloads -------------------------------------------------------------------------------------------------------


def test_a_missing_text_is_downloaded_by_the_project(folder, monkeypatch):
    (folder / "data" / "input.txt").unlink()
    monkeypatch.setattr("data.known_texts.fetch_tiny_shakespeare", lambda path: path.write_text(TEXT, encoding="utf-8"))
    train(Config(**TINY))
    assert load_checkpoint(folder)["tokenizer"]["vocab"] == "".join(sorted(set(TEXT)))


@pytest.fixture
def download_page(folder, monkeypatch):
    """Remove data/, with its modules and the text; return the page from which the text is downloaded."""
    monkeypatch.setitem(sys.modules, "data.known_texts", None)
    shutil.rmtree(folder / "data")
    page = folder / "page"
    monkeypatch.setattr(transformer_4d, "TINY_SHAKESPEARE", page.as_uri())
    return page


def test_a_copy_of_the_file_downloads_the_text_itself(folder, download_page, monkeypatch):
    download_page.write_text(TEXT, encoding="utf-8")
    download, prefix = torch.hub.download_url_to_file, hashlib.sha256(TEXT.encode()).hexdigest()[:8]
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, hash_prefix: download(url, path, prefix))
    train(Config(**TINY))
    assert (folder / "data" / "input.txt").read_bytes() == TEXT.encode()


def test_a_download_with_another_checksum_is_refused_and_leaves_nothing(folder, download_page, error_line):
    download_page.write_text("<html>Please log in</html>", encoding="utf-8")
    assert str(folder / "data" / "input.txt") in error_line()
    assert list((folder / "data").iterdir()) == []


def test_a_copy_of_the_file_says_offline_where_to_put_a_text(folder, download_page, error_line):
    assert str(folder / "data" / "input.txt") in error_line()
