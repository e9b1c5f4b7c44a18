"""Settings from YAML files and the command line: what is accepted, and what is refused in one line."""

import ast
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from small_runs import ROOT

from training.arguments import all_settings, help_text, parse_settings
from training.settings import ModelSettings, Settings, TrainingSettings
from utils.errors import UserError


def error_of(*arguments):
    with pytest.raises(UserError) as error:
        parse_settings(list(map(str, arguments)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def from_yaml(tmp_path):
    """Return a function that parses a YAML file with this content, and options."""
    def parse(content, *options):
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return parse_settings([str(path), *options])

    return parse


@pytest.fixture
def error_in(from_yaml):
    def error(content):
        with pytest.raises(UserError) as caught:
            from_yaml(content)
        assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    return error


# ---- Values ----------------------------------------------------------------------------------------------------------


def test_options_override_the_yaml_file(from_yaml):
    settings = from_yaml("model:\n  name: GPT2\n  n_blocks: 3\ntraining:\n  batch_size: 7\n", "--model.n_blocks", "4",
                         "--sampling.top_k=5")
    assert settings.model == ModelSettings(name="GPT2", n_blocks=4) and settings.sampling.top_k == 5
    assert settings.training == TrainingSettings(batch_size=7)
    assert settings == Settings(run="mine", model=settings.model, training=settings.training,
                                sampling=settings.sampling)


@pytest.mark.parametrize("name, text, expected", [
    ("training.max_iters", "1e3", 1000), ("training.max_iters", "1_000", 1000), ("training.patience", "None", None),
    ("training.patience", "null", None), ("training.patience", "3", 3), ("training.compile", "no", "no"),
    ("training.compile", "false", "no"), ("training.compile", "True", "yes"), ("training.compile", "auto", "auto"),
    ("training.batch_size", "auto", "auto"), ("training.batch_size", "8", 8), ("output.half", "on", True),
    ("output.half", "No", False), ("optim.muon_lr", "1e-3", 0.001), ("optim.muon_lr", "1", 1.0),
    ("optim.betas", "[0.8, 0.9]", (0.8, 0.9)), ("data.path", "a [1].txt", "a [1].txt"), ("data.path", "12", "12"),
    ("data.path", "[a.txt, 'b c.txt']", ["a.txt", "b c.txt"]), ("data.path", "[draft] a.txt", "[draft] a.txt"),
    ("data.column", "null", None), ("run", "2024-05-01", "2024-05-01"), ("run", "007", "007"), ("run", "诗", "诗"),
    ("data.column", "[x]", "[x]"), ("data.document_separator", "[SEP]", "[SEP]"),
    ("optim.ema", "none", None), ("model.dropout", "0", 0.0),
])  # fmt: skip
def test_the_same_text_means_the_same_on_the_command_line_and_in_yaml(from_yaml, name, text, expected):
    section, _, field = name.rpartition(".")
    content = f"{section}:\n  {field}: {text}\n" if section else f"{name}: {text}\n"
    parsed = [parse_settings([f"--{name}={text}"]), parse_settings([f"--{name}", text])]
    if text not in ("[draft] a.txt", "[x]", "[SEP]"):  # in YAML, they have to be quoted
        parsed.append(from_yaml(content))
    for settings in parsed:
        value = getattr(getattr(settings, section) if section else settings, field)
        assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize("content", [
    "training:\n  # max_iters: 3\n", "training:\n", "training:\n  max_iters:\n", "training:\n  max_iters: ''\n",
    "training: {}\n", "data:\n  path:\nmodel:\n  name:\noptim:\n  betas:\nrun:\n"])
def test_blank_values_and_sections_are_the_defaults(from_yaml, content):
    assert from_yaml(content) == Settings(run="mine")


def test_every_blank_field_is_its_default(from_yaml):
    for name in all_settings():
        section, _, field = name.rpartition(".")
        assert from_yaml(f"{section}:\n  {field}:\n" if section else f"{field}:\n") == Settings(run="mine")


def test_a_home_folder_is_expanded_in_paths(monkeypatch, from_yaml):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    settings = from_yaml("data:\n  path: [~/a.txt, b.txt]\noutput:\n  folder: ~/runs\n", "--init=~/best.pt",
                         "--data.tokenizer=~/t.json", "--data.val_path=~/v.txt", "--data.column=~x")
    assert settings.data.path == ["/home/me/a.txt", "b.txt"] and settings.output.folder == "/home/me/runs"
    assert settings.init == "/home/me/best.pt" and settings.data.tokenizer == "/home/me/t.json"
    assert settings.data.val_path == "/home/me/v.txt" and settings.data.column == "~x"


def test_defaults_do_not_depend_on_the_working_directory_and_typed_paths_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse_settings([])
    assert settings.data.path == str(ROOT / "data" / "input.txt")
    assert settings.output.folder == str(ROOT / "checkpoints")
    assert parse_settings(["--data.path=data/input.txt"]).data.path == "data/input.txt"


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_yaml_files_of_the_project_are_read_as_by_a_standard_loader(path):
    settings = parse_settings([str(path)])
    for section, values in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if not isinstance(values, dict):
            assert getattr(settings, section) == values
            continue
        for name, value in values.items():
            assert getattr(getattr(settings, section), name) == value


# ---- Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_resumes_with_its_own_settings_and_options_on_top(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    content = {"run": "old", "model": {"n_embd": 96, "n_blocks": None}, "optim": {"betas": [0.8, 0.9]},
               "training": {"max_iters": 70, "compile": "no"}, "output": {"half": True}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(content))
    settings = parse_settings(["--run=old", f"--output.folder={tmp_path}", "--resume", "--training.max_iters=90"])
    assert settings.resume and settings.run == "old" and settings.training.max_iters == 90
    assert settings.model == ModelSettings(n_embd=96) and settings.optim.betas == (0.8, 0.9) and settings.output.half
    assert settings.training.compile == "no"
    assert not parse_settings(["--run=old", f"--output.folder={tmp_path}"]).output.half  # a new run


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/tmp/a", "a\\b", "", " ", "a:b", "CON", "nul.txt", "a.", "a\nb",
                                  "x" * 201])
def test_a_run_name_that_is_no_folder_name_is_refused(name):
    assert "--run" in error_of(f"--run={name}")


@pytest.mark.parametrize("name", ["a b", "v1.2", "诗歌", "$5", "console", "2024-05-01"])
def test_other_run_names_are_accepted(name):
    assert parse_settings([f"--run={name}"]).run == name


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument, parts", [
    ("--training.max_iters=many", ["training.max_iters cannot be many", "an integer"]),
    ("--training.max_iters=2.5", ["training.max_iters cannot be 2.5"]),
    ("--training.batch_size=big", ["training.batch_size cannot be big", "an integer below 2^63 or auto"]),
    ("--training.compile=maybe", ["training.compile cannot be maybe", "auto or yes or no"]),
    ("--optim.name=sgd", ["optim.name cannot be sgd", "muon or adamw"]),
    ("--optim.muon_lr=nan", ["optim.muon_lr cannot be nan"]), ("--optim.betas=[0.9]", ["optim.betas cannot be"]),
    ("--optim.betas=[0.9, 1.0]", ["betas cannot be"]), ("--optim.ema=1", ["ema cannot be 1"]),
    ("--training.max_iters=[1, 2]", ["training.max_iters cannot be"]), ("--data.dtype=int8", ["uint16 or uint32"]),
    ("--training.max_iters=99999999999999999999", ["max_iters cannot be"]),
    ("--training.max_iters=" + "9" * 5000, ["training.max_iters cannot be 999"]),
    ("--training.batch_sise=3", ["no setting --training.batch_sise", "did you mean training.batch_size"]),
    ("--batch_size=3", ["no setting --batch_size", "did you mean training.batch_size"]),
    ("--zzz=3", ["no setting --zzz: python train.py --help"]), ("--training.seed", ["--training.seed needs a value"]),
    ("--data.path=", ["data.path is empty"]), ("-x", ["unexpected argument -x"]),
])  # fmt: skip
def test_an_invalid_argument_is_named_with_what_is_accepted(argument, parts):
    message = error_of("--run=a", argument)
    assert all(part in message for part in parts) and len(message) < 300


def test_arguments_in_the_wrong_place_are_explained():
    message = error_of("--run=a", "config/dev_model.yaml")
    assert "unexpected argument config/dev_model.yaml: the YAML file comes first" in message
    assert '--data.path "[a.txt, b.txt]"' in error_of("config/dev_model.yaml", "--data.path", "a.txt", "b.txt")


@pytest.mark.parametrize("content, parts", [
    ("model:\n  n_embd: 1\nmodel:\n  n_embd: 2\n", ["line 3", "model is there twice"]),
    ("model:\n  n_embd: 1\n  n_embd: 2\n", ["line 3", "n_embd is there twice"]),
    ("model: &a\n  n_embd: 1\n", ["line 1", "anchors and aliases"]), ("model: *a\n", ["line 1", "anchors and aliases"]),
    ("model:\n- n_embd\n", ["model is a section"]), ("model: GPT2\n", ["model is a section"]),
    ("model:\n  n_embed: 3\n", ["no setting model.n_embed", "did you mean model.n_embd"]),
    ("modl:\n  n_embd: 3\n", ["no setting modl"]), ("n_embd: 3\n", ["no setting n_embd", "did you mean model.n_embd"]),
    ("? [a, b]\n: 3\n", ["line 1", "a key must be a word"]), ("model:\n  n_embd: [\n", ["line 3"]),
    ("a: " + "[" * 5000, ["mine.yaml"]), ("", ["contains no settings"]), ("just words", ["contains no settings"]),
    (b"PK\x03\x04\xff\xfe", ["not YAML in UTF-8"]),
    ("model:\n  name: 诗词歌赋\n".encode("gb18030"), ["not YAML in UTF-8"]),
    (b"a: \x00", ["not YAML in UTF-8"]), ('a: "\\U99999999"', ["not YAML"]),
    ('data:\n  path: "\\ud800"\n', ["data.path cannot be"]), ('data:\n  path: ["a\\0b"]\n', ["data.path cannot be"]),
    ('output:\n  folder: "a\\0b"\n', ["output.folder cannot be"]), ("#" * (1 << 20) + "\n", ["too many for settings"]),
])  # fmt: skip
def test_an_invalid_yaml_file_is_refused_with_the_place(error_in, content, parts):
    message = error_in(content)
    assert all(part in message for part in parts)


@pytest.mark.parametrize("content, name", [
    ("training:\n  max_iters: 2001-13-45\n", "training.max_iters"), ("training:\n  seed: !!int ''\n", None),
    ("training:\n  max_iters: !!python/object:os.system x\n", "training.max_iters"),
    ("training:\n  max_iters: {a: 1}\n", "training.max_iters"), (f"training:\n  seed: {'9' * 5000}\n", "training.seed"),
])  # fmt: skip
def test_values_of_other_yaml_types_are_text(from_yaml, content, name):
    if name is None:
        assert from_yaml(content) == Settings(run="mine")  # blank
    else:
        with pytest.raises(UserError, match=f"mine.yaml: {name} cannot be"):
            from_yaml(content)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_device_file_is_refused_before_it_is_read():
    assert "is not a file" in error_of("/dev/zero")


def test_a_missing_file_is_named():
    assert "cannot read none.yaml: No such file" in error_of("none.yaml")


def test_a_yaml_file_is_read_as_utf_8_in_any_locale(tmp_path):
    (tmp_path / "mine.yaml").write_text("# 我的设置\ndata:\n  path: 诗.txt\n", encoding="utf-8-sig")
    code = "import sys; from training.arguments import *; print(ascii(parse_settings(sys.argv[1:]).data.path))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "mine.yaml"], capture_output=True, text=True,
                          env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}, cwd=ROOT)
    assert done.stdout == ascii("诗.txt") + "\n", done.stderr


# ---- Help ------------------------------------------------------------------------------------------------------------


def test_the_command_line_is_parsed_without_torch():
    code = "import sys, train; train.parse_settings(['--run', 'x']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_help_has_every_setting_with_its_docstring_and_default():
    text = " ".join(help_text().split())
    for name, field in all_settings().items():
        assert f"--{name} " in text and (field.name in ("run", "resume") or f"({field.default})" in text)
    sections = [Settings, *(field.type for field in fields(Settings) if is_dataclass(field.type))]
    assert {section.__module__ for section in sections} == {"training.settings", "models.config"}
    for module in ("training/settings.py", "models/config.py"):
        for definition in ast.parse((ROOT / module).read_text(encoding="utf-8")).body:
            if isinstance(definition, ast.ClassDef) and definition.name in {section.__name__ for section in sections}:
                documented = [node for node in definition.body[1:] if isinstance(node, ast.Expr)]
                declared = [node for node in definition.body if isinstance(node, ast.AnnAssign)
                            and not is_dataclass(Settings.__dataclass_fields__.get(node.target.id, ast).type
                                                 if definition.name == "Settings" else ast)]
                assert len(documented) == len(declared)
                assert all(" ".join(node.value.value.split()) in text for node in documented)
