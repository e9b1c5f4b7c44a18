"""Replies while training: what cannot be answered is left out, and never ends a run."""

import json

import pytest
from small_models import small_model

from data.readers import DEFAULTS
from data.tokenizer import CharTokenizer
from models.config import ReplyConfig
from tasks.kinds import TASKS
from training.settings import DataSettings, Settings

LONG = "a" * 300
CHATS = ["hello", "hi", LONG, "bye中"]  # first messages; the vocabulary lacks 中


def open_task(folder, kind):
    """A task whose whole data is for validation, too, and a model for it."""
    if kind == "dialogue":
        text = "\n\n".join(f"{message}\nfine" for message in CHATS)
    else:
        text = json.dumps([{"instruction": message, "output": "fine"} for message in CHATS])
    path = folder / ("chat.txt" if kind == "dialogue" else "chat.json")
    path.write_text(text, encoding="utf-8")
    tokenizer = CharTokenizer("".join(map(chr, range(32, 127))) + "\n").with_special_tokens()
    task = TASKS[kind](Settings(data=DataSettings(path=str(path), val_path=str(path))), DEFAULTS, tokenizer)
    return task, small_model("GPT2", vocab_size=tokenizer.vocab_size, block_size=250)


@pytest.mark.parametrize("kind", ["dialogue", "instruction"])
def test_samples_leave_out_what_fills_the_context_and_what_the_tokenizer_lacks(tmp_path, kind):
    task, model = open_task(tmp_path, kind)
    samples = list(task.samples(model, ReplyConfig(max_tokens=500 if kind == "dialogue" else 5)))
    shown = ["hello", "hi", "bye"] if kind == "dialogue" else ["hello", "hi", "bye中"]
    assert [sample.split()[0] for sample in samples] == shown
