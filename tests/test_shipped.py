"""The shipped checkpoint matches its README and its YAML."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

import estimate
from models.zoo import ZOO
from training.checkpoint import SHIPPED, load_model

ROOT = Path(__file__).parents[1]
TINY_SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
README = (ROOT / "checkpoints" / "shakespeare" / "README.md").read_text(encoding="utf-8")


def test_the_shipped_model_matches_its_yaml_and_its_readme():
    model, tokenizer = load_model(SHIPPED)
    settings = yaml.safe_load((ROOT / "config" / "bard_gpt_cpu.yaml").read_text(encoding="utf-8"))
    zoo = ZOO[settings["model"]["name"]]
    assert type(model) is zoo
    assert model.config == dataclasses.replace(zoo.config, dropout=settings["model"]["dropout"])
    assert f"{sum(weight.numel() for weight in model.parameters()):,} parameters" in README
    assert tokenizer.decode(tokenizer.encode("ROMEO:\nO, she")) == "ROMEO:\nO, she"
    *_, last = (SHIPPED.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(last)["step"] == settings["training"]["max_iters"]


@pytest.mark.skipif(not TINY_SHAKESPEARE.is_file(), reason=f"there is no {TINY_SHAKESPEARE}")
def test_the_shipped_model_reaches_the_published_loss(folder, run_main):
    shutil.copy(TINY_SHAKESPEARE, "data/input.txt")
    out = run_main(estimate.main, "--data", "data/input.txt", "--device", "cpu")
    loss = float(re.search(r"loss +([\d.]+)", out)[1])
    assert loss <= 1.4697
    published = [float(re.search(r"\*\*([\d.]+)\*\*", README)[1]),
                 *(reference for reference, what in estimate.REFERENCES["tiny Shakespeare"] if "ships" in what)]
    assert published == pytest.approx([loss, loss], abs=0.001)  # in bfloat16 if the CPU supports it
    assert float(re.search(r"([\d.]+)  5-gram baseline", out)[1]) == 1.6688
    assert out.splitlines()[-1].endswith("normal for a trained GPT.")
