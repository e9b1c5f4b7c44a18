"""The tasks on data of a few lines: training, resuming, checkpoints, and how the trained models answer."""

import dataclasses
import json

import pytest
import torch
from small_models import small_model
from small_runs import assert_same_run, interrupt, tiny_settings

import terminal_demo
from models.config import ReplyConfig
from models.generate import generate
from records.dialogues import prompt_ids
from tasks.dialogue import Conversation
from tasks.kinds import answers_class
from terminal_demo import chat
from tokenization.characters import CharTokenizer
from training.checkpoint import load_checkpoint, load_model, save_checkpoint
from training.run import train as run
from utils.errors import UserError

GREEDY = ReplyConfig(temperature=0, max_tokens=8)
DIALOGUES = "\n\n".join(f"hello {name}\nhi, {name}!\nhow are you, {name}?\nfine" for name in "abcdefghijkl")
POEMS = [{"title": f"{title}歌", "author": "李白", "para": [f"{title}前明月光，", "疑是地上霜。"]}
         for title in "春夏秋冬天地日月"]
SHORT = ["--training.max_iters=4", "--training.eval_interval=2", "--model.block_size=40", "--sampling.max_tokens=8"]


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    """Return a folder with data, and with models of random weights: their answers depend on everything before."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "chat.txt").write_text(DIALOGUES, encoding="utf-8")
    (folder / "poems.json").write_text(json.dumps(POEMS), encoding="utf-8")
    for kind, text in (("dialogue", DIALOGUES), ("poem", "《》" + "".join(map(str, POEMS)))):
        tokenizer = CharTokenizer.of_text(text).with_special_tokens()
        model = small_model("GPT2", vocab_size=tokenizer.vocab_size, block_size=40)
        with torch.no_grad():
            model.head.weight[list(tokenizer.special_ids)] = 0.0  # replies rarely end early
        save_checkpoint(folder / f"{kind}.pt", model, tokenizer, task={"kind": kind}, sampling={"max_tokens": 8})
    return folder


def task_settings(folder, name, task, path, *more):
    return tiny_settings(*SHORT, f"--run={name}", f"--task={task}", f"--data.path={folder / path}",
                         f"--output.folder={folder}", *more)


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


DEFAULTS = {"language": 500, "dialogue": 100, "poem": 500, "instruction": 500}


@pytest.mark.parametrize("recorded", [{}, {"max_tokens": None}, {"max_tokens": 7}])
@pytest.mark.parametrize("task", DEFAULTS)
def test_the_default_length_of_an_answer_depends_on_the_task(tmp_path, run_main, task, recorded):
    tokenizer = CharTokenizer("abc").with_special_tokens()
    model = small_model("DevModel", vocab_size=tokenizer.vocab_size, block_size=700)
    with torch.no_grad():
        model.head.bias[list(tokenizer.special_ids)] = -1e4  # answers do not end by themselves
    save_checkpoint(tmp_path / "model.pt", model, tokenizer, task={"kind": task}, sampling=recorded)
    length = recorded.get("max_tokens") or DEFAULTS[task]
    assert load_checkpoint(tmp_path / "model.pt").reply == ReplyConfig(max_tokens=length)
    arguments = tmp_path / "model.pt", "--device=cpu", "--prompt=ab", "--temperature=0"
    assert len(run_main(terminal_demo.main, *arguments).removesuffix("\n")) == length
    if task == "dialogue":
        assert len(chat("ab", checkpoint=tmp_path / "model.pt", max_tokens=None, temperature=0)) == 100


def test_chat_loads_a_checkpoint_once_unless_its_file_changes(tmp_path, monkeypatch):
    loaded, load = [], terminal_demo.load
    monkeypatch.setattr(terminal_demo, "load", lambda *arguments: loaded.append(arguments) or load(*arguments))
    tokenizer, path = CharTokenizer("abc").with_special_tokens(), tmp_path / "run" / "best.pt"
    for i, character in enumerate("ab", 1):
        model = small_model("DevModel", vocab_size=tokenizer.vocab_size)
        with torch.no_grad():
            model.head.bias[tokenizer.encode(character)] = 1e4
        save_checkpoint(path, model, tokenizer, task={"kind": "dialogue"})
        for checkpoint in (path, path.parent, str(path)):
            assert chat("c", checkpoint=checkpoint, max_tokens=3) == 3 * character
        assert len(loaded) == i


def test_a_run_records_the_default_length_of_its_task(chat_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("training.record.plot_losses", lambda *_: None)
    for task, path, length in (("dialogue", "chat.txt", 100), ("poem", "poems.json", 500)):
        settings = task_settings(chat_folder, task, task, path, f"--output.folder={tmp_path}",
                                 "--sampling.max_tokens=none", "--training.max_iters=1")
        run(settings)
        saved = torch.load(tmp_path / task / "best.pt", weights_only=True)
        assert saved["sampling"]["max_tokens"] == length
        assert f"max_tokens: {length}\n" in (tmp_path / task / "settings.yaml").read_text(encoding="utf-8")


# ---- Dialogue --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task, path", [("dialogue", "chat.txt"), ("poem", "poems.json")])
def test_a_checkpoint_records_its_task_and_sampling_settings(chat_folder, tmp_path, task, path):
    run(task_settings(chat_folder, "run", task, path, f"--output.folder={tmp_path}"))
    for name in ("best.pt", "last.pt"):
        loaded = load_checkpoint(tmp_path / "run" / name)
        assert loaded.task == {"kind": task} and loaded.reply == ReplyConfig(max_tokens=8)
        assert loaded.tokenizer.message_end in loaded.tokenizer.special_ids


@pytest.mark.parametrize("task, path", [("dialogue", "chat.txt"), ("poem", "poems.json")])
def test_an_interrupted_run_resumes_exactly(chat_folder, tmp_path, monkeypatch, task, path):
    monkeypatch.chdir(tmp_path)
    more = ["--output.folder=checkpoints", "--training.accumulation=2", "--model.dropout=0.1"]
    run(task_settings(chat_folder, "whole", task, path, *more))
    interrupt(task_settings(chat_folder, "parts", task, path, *more), monkeypatch, after=2)
    run(task_settings(chat_folder, "parts", task, path, *more, "--resume"))
    assert_same_run(tmp_path, "whole", "parts")


def test_a_conversation_is_the_greedy_continuation_of_its_history(chat_folder):
    model, tokenizer = load_model(chat_folder / "dialogue.pt")
    conversation, history = Conversation(model, tokenizer, {}, print), []
    for message in ("hello a", "hi"):
        reply = "".join(conversation.answer(message, GREEDY))
        ids = prompt_ids([*history, message], tokenizer)
        assert reply == tokenizer.decode(generate(model, ids, 8, GREEDY, tokenizer.special_ids))
        history += [message, reply]
        if not reply:
            break
    assert conversation.history == history


def test_a_reply_ends_at_any_special_token(chat_folder):
    tokenizer = load_model(chat_folder / "dialogue.pt")[1]
    for token in sorted(tokenizer.special_ids):
        model = small_model("TransformerModel", vocab_size=tokenizer.vocab_size, block_size=40)
        model.head.bias.data[token] = 1e4
        assert list(Conversation(model, tokenizer, {}, print).answer("hello a", GREEDY)) == []


def test_the_history_and_the_longest_reply_fit_the_context_and_no_turn_is_cut(chat_folder):
    model, tokenizer = load_model(chat_folder / "dialogue.pt")
    told = []
    conversation = Conversation(model, tokenizer, {}, told.append)
    conversation.history = ["hello a", "hi, a!", "how are", "fine"]
    for message in ("hello b", "hi", "how are you"):
        before = conversation.history[:]
        list(conversation.answer(message, GREEDY))
        kept = conversation.history[:-1]
        assert len(prompt_ids(kept, tokenizer)) + 8 <= model.block_size
        assert kept == [*before, message][-len(kept):] and len(kept) % 2 == 1
    assert told and "forgot the oldest 2 messages" in told[0]
    with pytest.raises(UserError, match="the message takes"):
        list(conversation.answer("hello " * 20, GREEDY))
    assert conversation.history[:-1] == kept  # unchanged


def test_a_reply_that_is_interrupted_leaves_the_history_unchanged(chat_folder, monkeypatch):
    conversation = Conversation(*load_model(chat_folder / "dialogue.pt"), {}, print)
    conversation.history = ["hello a", "hi, a!"]
    monkeypatch.setattr("tasks.dialogue.generate_text", lambda *_, **__: iter("fine"))
    assert next(conversation.answer("how are you", GREEDY)) == "f"
    assert conversation.history == ["hello a", "hi, a!"]


def test_after_flush_replies_are_those_of_a_fresh_process(chat_folder):
    def talk(*lines):
        conversation = Conversation(*load_model(chat_folder / "dialogue.pt"), {}, print)
        replies = []
        for line in lines:
            if line == "/flush":
                conversation.flush()
            else:
                replies.append("".join(conversation.answer(line, dataclasses.replace(GREEDY, temperature=0.1, seed=1))))
        return replies

    assert talk("hello", "/flush", "hi")[1] == talk("hi")[0] != talk("hello", "hi")[1]


def test_chat_replies_without_hidden_state_unless_it_is_given_a_history(chat_folder):
    options = {"checkpoint": chat_folder / "dialogue.pt", "device": "cpu", "temperature": 0.1, "seed": 1}
    first, second = chat("hello a", **options), chat("hello a", **options)
    history = []
    chat("hello b", history, **options)
    third = chat("hello a", history, **options)
    assert chat("hello 中a", **options) == first  # characters that the vocabulary lacks are skipped
    assert first == second != third and history[0::2] == ["hello b", "hello a"] and history[3] == third
    with pytest.raises(UserError, match="for the task poem: train a dialogue model with python train.py config/chat"):
        chat("hello", checkpoint=chat_folder / "poem.pt")
    with pytest.raises(UserError, match="there is no"):
        chat("hello", checkpoint=chat_folder / "none")


def test_a_poem_depends_on_its_title_only(chat_folder):
    model, tokenizer = load_model(chat_folder / "poem.pt")
    answers = load_checkpoint(chat_folder / "poem.pt")
    session = answers_class(answers.task)(model, tokenizer, {}, print)
    sampling = dataclasses.replace(GREEDY, temperature=0.1, seed=1)
    poems = ["".join(session.answer(title, sampling)) for title in ("春歌", "李白《月歌》", "春歌")]
    ids = generate(model, prompt_ids(["春歌"], tokenizer), 8, sampling, tokenizer.special_ids)
    assert poems[0] == poems[2] == tokenizer.decode(ids) != poems[1]


# ---- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry, message", [
    ({"task": {"kind": "painting"}}, "a task that this version does not know"), ({"task": 3}, "a task that"),
    ({"task": {"kind": ["dialogue"]}}, "a task that"), ({"task": {"kind": "dialogue", "more": 1}}, "a task that"),
    ({"sampling": {"temperature": -1}}, "invalid sampling settings"), ({"sampling": {"heat": 1}}, "invalid sampling"),
    ({"sampling": 3}, "invalid sampling"),
])  # fmt: skip
def test_an_invalid_task_or_sampling_setting_in_a_checkpoint_is_one_line(chat_folder, tmp_path, entry, message):
    saved = torch.load(chat_folder / "dialogue.pt", weights_only=True)
    torch.save(saved | entry, tmp_path / "best.pt")
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path)


def test_a_language_model_becomes_a_dialogue_model_with_new_tokens(chat_folder, tmp_path):
    run(task_settings(chat_folder, "text", "language", "chat.txt", f"--output.folder={tmp_path}"))
    before, tokenizer_before = load_model(tmp_path / "text")
    settings = task_settings(chat_folder, "chat", "dialogue", "chat.txt", f"--init={tmp_path / 'text'}",
                             f"--output.folder={tmp_path}", "--training.max_iters=1", "--optim.muon_lr=1e-30",
                             "--optim.adamw_lr=1e-30")
    run(settings)
    after, tokenizer = load_model(tmp_path / "chat")
    n = tokenizer_before.vocab_size
    assert tokenizer.vocab_size == n + 4 and tokenizer.message_start == n + 1
    torch.testing.assert_close(after.token_embedding.weight[:n], before.token_embedding.weight)
    torch.testing.assert_close(after.head.weight[n:], before.head.weight.mean(0).expand(4, -1))
    x = torch.tensor([tokenizer.encode("hello a")])
    torch.testing.assert_close(after(x)[0][..., :n], before(x)[0])


def test_epochs_set_the_steps_and_the_evaluations(chat_folder, tmp_path, capsys):
    run(task_settings(chat_folder, "epochs", "dialogue", "chat.txt", "--training.epochs=2",
                      f"--output.folder={tmp_path}"))
    n_examples = int(capsys.readouterr().out.split("training: ")[1].split()[0])
    per_epoch = -(-n_examples // 4)
    assert [line["step"] for line in metrics(tmp_path / "epochs")] == [0, per_epoch, 2 * per_epoch]
