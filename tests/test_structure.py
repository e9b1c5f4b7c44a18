"""The layers of imports, and that importing a module has no effect."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {"utils": set(), "data": {"utils"}, "models": {"utils"}, "tasks": {"data", "models", "utils"},
         "formats": {"data", "models", "utils"}, "training": {"formats", "tasks", "data", "models", "utils"}}
FOLDERS = (".", *BELOW, "formats/export", "utils/forecast")
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))}
SCRIPTS = [*(name for name, path in FILES.items() if path.parent == ROOT), "utils.num_params_calculate"]


def parsed(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(tree):
    """Return the modules of this project that are imported anywhere in a syntax tree."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & FILES.keys()


def package(module):
    return module.split(".")[0]


def test_all_the_rooms_are_there():
    assert BELOW.keys() <= {package(module) for module in FILES} and "train" in SCRIPTS
    assert imported(parsed("training.checks")) >= {"data.tokenizer", "models.zoo", "tasks.kinds", "utils.errors"}


@pytest.mark.parametrize("module", [module for module in FILES if package(module) in BELOW and module not in SCRIPTS])
def test_a_module_imports_from_its_own_room_and_those_below(module):
    assert {package(name) for name in imported(parsed(module))} <= BELOW[package(module)] | {package(module)}


@pytest.mark.parametrize("module", SCRIPTS)
def test_a_script_imports_no_other_script(module):
    assert {package(name) for name in imported(parsed(module))} <= BELOW.keys()


@pytest.mark.parametrize("module", ["training.loop", "training.evaluate"])
def test_the_loop_and_the_evaluation_import_no_model_and_no_text_even_indirectly(module):
    reached, new = set(), {module}
    while new:
        reached |= new
        new = {name for known in new for name in imported(parsed(known))} - reached
    assert {package(name) for name in reached} <= {"training", "utils"}


def test_transformer_4d_stands_alone_but_for_one_import_inside_a_function():
    tree = parsed("transformer_4d")
    assert imported(tree) == {"data.corpora"}
    tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert imported(tree) == set()


def run(code, *arguments, folder):
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-B", "-c", code, *arguments], cwd=folder, env=environment, text=True,
                          encoding="utf-8", capture_output=True)


def test_importing_prints_nothing_and_creates_no_file(tmp_path):
    for path in FILES.values():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    code = "import importlib, logging, sys; logging.disable(); [importlib.import_module(name) for name in sys.argv[1:]]"
    done = run(code, *FILES, folder=tmp_path)  # without logging: matplotlib's, when it first looks for fonts
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_are_read_without_torch_so_that_help_is_quick():
    code = "import models.config, training.settings, train, sys; print(sorted({'torch', 'numpy'} & sys.modules.keys()))"
    done = run(code, folder=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")
