"""The training state in last.pt: a malformed one is a one-line error before anything is trained or written."""

import math
import shutil

import pytest
import torch
from small_runs import tiny_settings
from small_text import TEXT

from training.run import train as run
from utils.errors import UserError

OPTIMIZERS = ["muon", "adamw"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with the text and a run of each optimizer."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data").mkdir()
    (folder / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in OPTIMIZERS:
            run(tiny_settings(f"--run={name}", f"--optim.name={name}", "--training.max_iters=2"))
    return folder


@pytest.fixture
def resume(runs, tmp_path, monkeypatch):
    """Return a function that changes the checkpoint of a run, resumes the run and returns the error message."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def resume(change, name="muon"):
        path = tmp_path / "checkpoints" / name / "last.pt"
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)
        before = {file: file.read_bytes() for file in path.parent.iterdir()}
        with pytest.raises(UserError) as error:
            run(tiny_settings("--resume", f"--run={name}", f"--optim.name={name}"))
        assert before == {file: file.read_bytes() for file in path.parent.iterdir()}
        assert "last.pt" in str(error.value) and "\n" not in str(error.value)
        return str(error.value)

    return resume


ENTRIES = ["progress", "optimizer_states", "scaler", "metrics", "run_config", "weights", "config", "tokenizer"]


@pytest.mark.parametrize("value", [None, 3, "text", torch.ones(2)], ids=repr)
@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_of_the_wrong_type_is_an_error(resume, entry, value):
    assert resume(lambda checkpoint: checkpoint.update({entry: value}))


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_missing_entry_is_an_error(resume, entry):
    assert resume(lambda checkpoint: checkpoint.pop(entry))


NUMBER = [None, "1", [1], True, -1, math.nan, math.inf, torch.ones(2)]
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 0}


@pytest.mark.parametrize("value", NUMBER, ids=repr)
@pytest.mark.parametrize("entry, name", [
    ("progress", "step"), ("progress", "seconds"), ("progress", "best_loss"), ("progress", "evaluations_since_best"),
    ("run_config", "batch_size"), ("run_config", "dtype"), ("scaler", "scale"), ("scaler", "_growth_tracker"),
])  # fmt: skip
def test_an_invalid_number_is_named(resume, entry, name, value):
    def change(checkpoint):
        checkpoint["scaler"] = dict(SCALER)
        checkpoint[entry][name] = value

    assert f"{entry} has an invalid {name}" in resume(change)


@pytest.mark.parametrize("change", [
    lambda checkpoint: checkpoint["progress"].update(speed=3.0),
    lambda checkpoint: checkpoint["progress"].pop("step"),
    lambda checkpoint: checkpoint["run_config"].pop("text"),
    lambda checkpoint: checkpoint["scaler"].update(scale=65536.0),
    lambda checkpoint: checkpoint["metrics"].append(None),
    lambda checkpoint: checkpoint["metrics"].append([0.1]),
    lambda checkpoint: checkpoint["metrics"][0].pop("val_loss"),
    lambda checkpoint: checkpoint["metrics"][0].update(val_loss=None),
    lambda checkpoint: checkpoint["metrics"][0].update(note=torch.ones(2)),
    lambda checkpoint: checkpoint["weights"].update({"head.weight": torch.ones(2)}),
    lambda checkpoint: checkpoint["weights"].pop("head.weight"),
    lambda checkpoint: checkpoint["config"].update(n_blocks=10**9),
    lambda checkpoint: checkpoint["config"].update(num_heads=[4]),
    lambda checkpoint: checkpoint["tokenizer"].update(kind=["char"]),
    lambda checkpoint: checkpoint["tokenizer"].update(vocab=""),
], ids=range(15))  # fmt: skip
def test_malformed_contents_are_an_error(resume, change):
    assert resume(change)


MISSHAPEN = [lambda t: t[..., :-1], lambda t: t.new_zeros(0), lambda t: t.new_zeros(1), lambda t: t[None],
             lambda t: t.new_zeros(1).expand(t.shape)]
INVALID = [lambda t: None, lambda t: 1.0, torch.Tensor.tolist, torch.Tensor.double, torch.Tensor.half,
           torch.Tensor.long, lambda t: t.to("meta"), torch.Tensor.to_sparse, lambda t: t * math.nan,
           lambda t: t.fill_(-math.inf)]


@pytest.mark.parametrize("name, optimizer, parameter, moment", [
    ("muon", 0, 1, "momentum"), ("muon", 1, 0, "exp_avg"), ("adamw", 0, 3, "exp_avg"), ("adamw", 0, 3, "exp_avg_sq"),
])  # fmt: skip
@pytest.mark.parametrize("change_moment", MISSHAPEN + INVALID, ids=range(15))
def test_an_invalid_moment_is_named(resume, name, optimizer, parameter, moment, change_moment):
    def change(checkpoint):
        values = checkpoint["optimizer_states"][optimizer][parameter]
        values[moment] = change_moment(values[moment])

    assert f"{moment} in the optimizer state of parameter {parameter}" in resume(change, name)


@pytest.mark.parametrize("step", [None, 2, torch.ones(1), torch.tensor(2), torch.tensor(-1.0), torch.tensor(math.nan)])
def test_an_invalid_step_of_adamw_is_named(resume, step):
    message = resume(lambda checkpoint: checkpoint["optimizer_states"][0][0].update(step=step), "adamw")
    assert "step in the optimizer state of parameter 0" in message


@pytest.mark.parametrize("change", [
    lambda states: states.pop(),
    lambda states: states.append({}),
    lambda states: states.__setitem__(0, []),
    lambda states: states[0].pop(0),
    lambda states: states[0].update({99: states[0][0]}),
    lambda states: states[0].update(a=states[0].pop(0)),
    lambda states: states[0].update({0: None}),
    lambda states: states[0][0].pop("momentum"),
    lambda states: states[0][0].update(velocity=torch.ones(2)),
    lambda states: states.reverse(),
    lambda states: states[1][0]["exp_avg_sq"].neg_(),
], ids=range(11))  # fmt: skip
def test_a_malformed_optimizer_state_is_an_error(resume, change):
    assert "optimizer state" in resume(lambda checkpoint: change(checkpoint["optimizer_states"]))


def test_optimizers_without_state_are_valid(runs, tmp_path, monkeypatch):  # as before the first step
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoints" / "muon" / "last.pt"
    torch.save(torch.load(path, weights_only=True) | {"optimizer_states": [{}, {}]}, path)
    run(tiny_settings("--resume", "--run=muon"))
