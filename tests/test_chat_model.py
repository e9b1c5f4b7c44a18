"""Chat models of other projects: their template, their end marker, and a conversation with them."""

import json

import pytest
import torch
import transformers
from small_folders import small_theirs
from small_text import TEXT

from estimate import main as estimate
from formats.export.huggingface import export_folder
from models.config import ReplyConfig
from models.zoo import BardGPT
from tasks.dialogue import Conversation
from tasks.kinds import answers_class
from terminal_demo import chat
from tokenization.bpe import BPETokenizer
from training.checkpoint import Loaded, load_checkpoint
from utils.errors import UserError

TOKENIZER = BPETokenizer.train([TEXT], 300)
CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
          "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
GREEDY = ReplyConfig(temperature=0, max_tokens=20)
MESSAGES = ["hello", "and <|im_end|> then?", "yes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a random Llama with a chat template and an end marker."""
    path = tmp_path_factory.mktemp("chat_model")
    small_theirs("llama", vocab_size=TOKENIZER.vocab_size, max_position_embeddings=128).save_pretrained(path)
    TOKENIZER.save(path / "tokenizer.json")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": CHATML}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def their_reply(folder, messages, n):
    """Return the greedy reply of transformers, with the ids of its own template, up to the end marker."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    roles = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
    ids = tokenizer.apply_chat_template(roles, add_generation_prompt=True, return_dict=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    new = model.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False)[0, len(ids) :].tolist()
    return TOKENIZER.decode(new[: new.index(TOKENIZER.message_end)] if TOKENIZER.message_end in new else new)


def test_replies_equal_those_of_transformers(folder):
    loaded = load_checkpoint(folder)
    session = answers_class(loaded.task)(loaded.model, loaded.tokenizer, loaded.task, print)
    for message in ("hello", "yes"):
        expected = their_reply(folder, [*session.history, message], 20)
        assert "".join(session.answer(message, GREEDY)) == expected
    assert len(session.history) == 4
    assert chat("hello", checkpoint=folder, temperature=0, max_tokens=2)


def test_a_message_cannot_end_itself(folder):
    loaded = load_checkpoint(folder)
    session = answers_class(loaded.task)(loaded.model, loaded.tokenizer, loaded.task, print)
    ids = session.prompt(MESSAGES)
    start, end = TOKENIZER.message_start, TOKENIZER.message_end
    assert [i for i in ids if i in TOKENIZER.special_ids] == [start, end, start, end, start, end, start]
    roles = ("user", "assistant", "user")
    written = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, MESSAGES, strict=True)]
    assert TOKENIZER.decode(ids) == "".join(written) + "<|im_start|>assistant\n"


def test_the_oldest_turns_are_dropped_and_candidates_are_refused(folder):
    loaded, told = load_checkpoint(folder), []
    session = answers_class(loaded.task)(loaded.model, loaded.tokenizer, loaded.task, told.append)
    session.history = ["A" * 30, "B" * 30, "C" * 10, "D"]
    config = ReplyConfig(temperature=0, max_tokens=10)
    list(session.answer("E", config))
    assert session.history[:3] == ["C" * 10, "D", "E"] and "oldest 2 messages" in told[0]
    with pytest.raises(UserError, match="candidates"):
        list(session.answer("E", ReplyConfig(max_tokens=10, candidates=2)))


def test_estimate_takes_it_as_a_language_model(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.txt").write_text(TEXT * 20, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["estimate.py", str(folder), "--data", str(tmp_path / "text.txt")])
    estimate()
    assert "nats per token" in capsys.readouterr().out


def test_an_exported_dialogue_model_chats_as_before(tmp_path):
    torch.manual_seed(0)
    tokenizer = BPETokenizer.train([TEXT], 280)
    model = BardGPT(n_embd=32, n_blocks=2, num_heads=4, block_size=64, vocab_size=280).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    export_folder(tmp_path / "out", Loaded(model, tokenizer, {"kind": "dialogue"}, GREEDY))
    exported = load_checkpoint(tmp_path / "out")
    own = Conversation(model, tokenizer, {"kind": "dialogue"}, print)
    session = answers_class(exported.task)(exported.model, exported.tokenizer, exported.task, print)
    for text in ("hello", "yes"):
        assert "".join(session.answer(text, GREEDY)) == "".join(own.answer(text, GREEDY))
