"""estimate.py on a model whose loss is beyond the range of exp, and on names with control characters."""

import math
import re

import pytest
import torch
from small_runs import TINY
from small_text import TEXT

import estimate
from data.tokenizer import CharTokenizer
from models.zoo import DevModel
from training.checkpoint import save_checkpoint


@pytest.mark.parametrize("loss, expected", [(0.0, 1.0), (1.5, math.exp(1.5)), (709.0, math.exp(709)), (710.0, math.inf),
                                            (1e9, math.inf)])
def test_the_perplexity_is_exp_of_the_loss_or_infinite(loss, expected):
    assert estimate.perplexity(loss) == expected


def test_a_loss_that_is_not_a_number_is_not_called_normal():
    assert estimate.verdict(math.nan, uniform=4.0, ngram=1.6).startswith("No better than the uniform baseline")


def test_a_model_that_is_certain_and_wrong_has_infinite_perplexity(folder, run_main):
    model, tokenizer = DevModel(**TINY, vocab_size=len(set(TEXT))), CharTokenizer.of_text(TEXT)
    torch.nn.init.constant_(model.head.bias[0], 1e4)
    save_checkpoint("wrong\x1b[31m.pt", model, tokenizer)
    out = run_main(estimate.main, "wrong\x1b[31m.pt", "--data", "data/input.txt", "--device", "cpu")
    assert float(re.search(r"loss +([\d.]+)", out)[1]) > 5000 and re.search(r"perplexity +inf\n", out)
    assert "No better than the uniform baseline" in out.splitlines()[-1]
    assert r"wrong\x1b[31m.pt: DevModel" in out and "\x1b" not in out
