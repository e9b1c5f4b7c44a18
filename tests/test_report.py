"""records/report.py: counts with reasons and places, sizes, and previews."""

import json
import sys

import pytest

from reading.options import ReadOptions
from records.dialogues import dialogue_examples, read_dialogues
from records.examples import IGNORED, Example, Examples
from records.report import DataReport, highlight, print_examples
from tasks.kinds import TASKS
from tokenization.characters import CharTokenizer
from training.settings import DataSettings, Settings

LETTERS = CharTokenizer("ABCDEFGH\x1b", special=True)


def test_the_report_of_a_hand_written_file(tmp_path, capsys):
    def record(*texts):
        roles = ("user", "assistant") * len(texts)
        return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}

    records = [record("AB", "CD"), record("A"), record("A", "B", "C", "D"), {"text": "A"}, record("A", "B", "C"),
               record("ABCDEFGH", "A"), record("A"), record("B", "ABCDEFGH")]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    report = DataReport(path, "dialogues")
    dialogues = read_dialogues(path, ReadOptions(), report)
    examples = dialogue_examples(dialogues, LETTERS, 8, report)
    report.print()
    print_examples("train", examples)
    print_examples("val", Examples([]))
    # Examples: <AB><CD, <A><B and <C><D, <A><B, <B><ABCD: 7, 5, 5, 5 and 8 tokens, 3, 2, 2, 2 and 5 targets.
    assert capsys.readouterr().out == f"""\
data: {path}: 4 dialogues kept, 4 skipped
    skipped 2: a single message (first: line 2)
    skipped 1: no messages or conversations (first: line 4)
    skipped 1: a user message fills the context of 8 tokens (first: 'ABCDEFGH')
    changed 1: dropped messages after the last assistant message (first: line 5)
    changed 1: split at whole turns to fit 8 tokens (first: 'A')
    changed 1: cut a reply at 8 tokens, without an end marker (first: 'B')
    train: 5 examples, 30 tokens, 14 of them supervised (47%); length 5 (10%), 5 (median), 8 (90%), 8 (longest)
    val: no example
"""


GOOD_AND_BAD = {  # a file of records, of which the second is skipped, and the place of that one
    "dialogue": ("a.jsonl", ['{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
                             '{"messages": []}'], "line 2"),
    "poem": ("a.json", ['[{"title": "a", "author": "b", "para": ["c"]},', "5]"], "item 2"),
    "instruction": ("a.json", ['[{"instruction": "a", "output": "b"},', "5]"], "item 2"),
    "classification": ("a.csv", ["label,text", "1,good", "2,bad", ",ugly"], "line 4"),
}


@pytest.mark.parametrize("task", GOOD_AND_BAD)
def test_a_place_names_its_file_unless_there_is_only_one(tmp_path, task):
    name, lines, place = GOOD_AND_BAD[task]
    first, second = tmp_path / "1" / name, tmp_path / "2" / name
    for path in (first, second):
        path.parent.mkdir()
        path.write_text("\n".join(lines), encoding="utf-8")

    def places(path):
        opened = TASKS[task](Settings(data=DataSettings(path=path)), ReadOptions(), LETTERS)
        return [first for _, first in opened.report.skipped.values()], opened.records

    assert places(str(second))[0] == [place]
    for several in ([str(second), str(first)], [str(second), str(tmp_path / "1")]):
        assert places(several)[0] == [f"{second}, {place}"]
    found, records = places(str(tmp_path))
    assert found == [f"{first}, {place}"]
    if task in ("instruction", "classification"):  # their errors quote the place, too
        assert {record.place.rpartition(", ")[0] for record in records} == {str(first), str(second)}


def test_a_place_in_a_separate_validation_file_names_it(tmp_path):
    (tmp_path / "a.txt").write_text("hello\nhi\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("alone\n\nhello\nhi\n", encoding="utf-8")
    data = DataSettings(path=str(tmp_path / "a.txt"), val_path=str(tmp_path / "b.txt"))
    task = TASKS["dialogue"](Settings(data=data), ReadOptions(), "char")
    assert len(task.splits["val"]) == 1
    assert task.report.skipped == {"a single message": (1, f"{tmp_path / 'b.txt'}, line 1")}


def test_reports_are_one_line_per_reason_without_control_characters(capsys):
    report = DataReport("a\nb", "records", n_records=2)
    assert report.first_skipped() == ""
    report.skip("red \x1b[31m", "line\n1")
    report.skip("other", "line 2")
    assert report.first_skipped() == "line\n1: red \x1b[31m"
    report.print()
    assert capsys.readouterr().out.splitlines() == [
        r"data: a\nb: 0 records kept, 2 skipped", r"    skipped 1: red \x1b[31m (first: line\n1)",
        "    skipped 1: other (first: line 2)"]


@pytest.mark.parametrize("example, text", [
    (Example([10, 0, 1, 11, 10, 2, 3], [IGNORED] * 4 + [2, 3, 11]),
     "<|im_start|>AB<|im_end|><|im_start|>⟦CD<|im_end|>⟧"),
    (Example([0, 1, 2, 3], [1, IGNORED, 3, IGNORED]), "A⟦B⟧C⟦D⟧"),
    (Example([8, 1], [1, 2]), r"\x1b⟦BC⟧"),
    (Example([0], [1]), "A⟦B⟧"),
])  # fmt: skip
def test_supervised_tokens_are_highlighted(monkeypatch, example, text):
    example = Examples([example])[0]
    assert highlight(example, LETTERS) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert highlight(example, LETTERS) == text.replace("⟦", "\033[32m").replace("⟧", "\033[0m")
