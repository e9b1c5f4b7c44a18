"""Replies: samples while training, which never end a run, and the choice among several candidates."""

import dataclasses
import json
from statistics import mean

import pytest
import torch
from small_models import small_model

from models.config import ReplyConfig
from models.generate import generate
from reading.options import DEFAULTS
from records.dialogues import prompt_ids
from tasks.dialogue import Conversation
from tasks.kinds import TASKS
from tokenization.characters import CharTokenizer
from training.settings import DataSettings, Settings

LONG = "a" * 300
CHATS = ["hello", "hi", LONG, "bye中"]  # first messages; the vocabulary lacks 中


def open_task(folder, kind):
    """Return a task whose whole data is for validation, too, and a model for it."""
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
def test_samples_skip_prompts_that_fill_the_context_and_unknown_characters(tmp_path, kind):
    task, model = open_task(tmp_path, kind)
    samples = list(task.samples(model, ReplyConfig(max_tokens=500 if kind == "dialogue" else 5)))
    shown = ["hello", "hi", "bye"] if kind == "dialogue" else ["hello", "hi", "bye中"]
    assert [sample.partition(" -> ")[0] for sample in samples] == shown


# ---- Candidates ------------------------------------------------------------------------------------------------------


def log_probabilities(model, prompt, reply):
    """Return the log-probability of each token of a reply, from a sequence that ends before it."""
    for i, token in enumerate(reply):
        logits = model(torch.tensor([[*prompt, *reply[:i]]]))[0][0, -1]
        yield logits.log_softmax(-1)[token].item()


@pytest.mark.parametrize("history", [[], ["ab", "cd"]])
def test_the_reply_is_the_candidate_that_depends_most_on_the_history(history):
    tokenizer = CharTokenizer("abcdefgh").with_special_tokens()
    model = small_model("GPT2", vocab_size=tokenizer.vocab_size, block_size=32)
    config, chosen = ReplyConfig(temperature=1.0, max_tokens=6, candidates=4), []
    empty = [tokenizer.message_start, tokenizer.message_end, tokenizer.message_start]
    for seed, message in enumerate(["a", "bad", "face", "cage", "hedge"]):
        prompt, candidates = prompt_ids([*history, message], tokenizer), {}
        for i in range(4):
            sampling = dataclasses.replace(config, seed=seed + i)
            ids = list(generate(model, prompt, 6, sampling, tokenizer.special_ids, vocab_size=tokenizer.vocab_size))
            reply = ids if len(ids) == 6 else [*ids, tokenizer.message_end]
            score = mean(log_probabilities(model, prompt, reply)) - mean(log_probabilities(model, empty, reply))
            candidates.setdefault(tokenizer.decode(ids), (score, i))
        best = max(candidates, key=candidates.get)
        conversation = Conversation(model, tokenizer, {}, print)
        conversation.history = [*history]
        assert list(conversation.answer(message, dataclasses.replace(config, seed=seed))) == [best]  # one piece
        assert conversation.history == [*history, message, best]
        chosen.append(candidates[best][1])
    assert len(set(chosen)) > 1
