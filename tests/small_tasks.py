"""Small data for each task of fine-tuning, and runs on it, for tests."""

import json

import pytest
from small_runs import TINY

import train
from training.arguments import parse_settings

NAMES = "abcdefghijkl"
DIALOGUES = "\n\n".join(f"hello {name}\nhi, {name}!\nhow are you, {name}?\nfine" for name in NAMES)
POEMS = [{"title": f"{title}歌", "author": "李白", "para": [f"{title}前明月光，", "疑是地上霜。"]}
         for title in "春夏秋冬天地日月"]
RECORDS = [{"instruction": f"Greet {name}.", "input": "Kindly." if name > "f" else "", "output": f"Hi, {name}!"}
           for name in NAMES]
GOOD, BAD = "clean, quiet and friendly", "noisy, dirty and far away"
REVIEWS = "label,review\n" + "".join(f'{label},"Room {100 + i} was {text}."\n'
                                     for i in range(30) for label, text in (("1", GOOD), ("2", BAD)))
FILES = {"language": "text.txt", "dialogue": "chat.txt", "poem": "poems.json", "instruction": "records.json",
         "classification": "reviews.csv"}
CONTEXT = {"language": 12, "dialogue": 40, "poem": 40, "instruction": 320, "classification": 64}  # tokens


def write_data(folder):
    """Write the data of each task to its file in FILES."""
    contents = {"language": DIALOGUES * 30, "dialogue": DIALOGUES, "poem": json.dumps(POEMS),
                "instruction": json.dumps(RECORDS), "classification": REVIEWS}
    for task, content in contents.items():
        (folder / FILES[task]).write_text(content, encoding="utf-8")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Return a working directory with the data of each task; runs do not plot, which would take most of their time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.record.plot_losses", lambda *_: None)
    write_data(tmp_path)
    return tmp_path


def task_settings(task, name, *more):
    """Return settings of a run of four steps in the working directory, of the size of --init if that is given."""
    sizes = TINY | {"block_size": CONTEXT[task]}
    if any(option.startswith("--init") for option in more):
        sizes = {}
    return parse_settings([
        *(f"--model.{size}={value}" for size, value in sizes.items()), f"--run={name}", f"--task={task}",
        f"--data.path={FILES[task]}", "--output.folder=checkpoints", "--output.sample_tokens=4",
        "--training.max_iters=4", "--training.eval_interval=2", "--training.batch_size=4", "--training.device=cpu",
        "--training.dtype=float32", *more])


def error_of(capsys, monkeypatch, *arguments):
    """Return the message of `python train.py` with these arguments, which must be one line, with exit code 2."""
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as exit_code:
        train.main()
    assert exit_code.value.code == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    return message
