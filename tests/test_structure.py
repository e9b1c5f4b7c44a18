"""Imports point down, importing has no side effects, and examples in docstrings are right."""

import ast
import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {"utils": set(), "reading": {"utils"}, "tokenization": {"utils"}, "models": {"utils"},
         "data": {"reading", "tokenization", "utils"}, "records": {"reading", "tokenization", "utils"},
         "formats": {"records", "tokenization", "models", "utils"},
         "tasks": {"records", "data", "reading", "tokenization", "models", "utils"},
         "training": {"formats", "tasks", "records", "data", "reading", "tokenization", "models", "utils"}}
FOLDERS = (".", *BELOW, "formats/export", "utils/forecast")
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))}
SCRIPTS = [*(name for name, path in FILES.items() if path.parent == ROOT), "utils.num_params_calculate"]


def parse(module):
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports_of(tree):
    """Return the modules of this project that a syntax tree imports, at any level."""
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


def test_all_packages_are_found():
    assert BELOW.keys() <= {package(module) for module in FILES} and "train" in SCRIPTS
    assert imports_of(parse("training.checks")) >= {"tokenization.load", "models.zoo", "tasks.kinds", "utils.errors"}


@pytest.mark.parametrize("module", [module for module in FILES if package(module) in BELOW and module not in SCRIPTS])
def test_a_module_imports_only_from_its_own_package_and_those_below(module):
    assert {package(name) for name in imports_of(parse(module))} <= BELOW[package(module)] | {package(module)}


@pytest.mark.parametrize("module", SCRIPTS)
def test_a_script_imports_no_other_script(module):
    assert {package(name) for name in imports_of(parse(module))} <= BELOW.keys()


@pytest.mark.parametrize("module", ["training.loop", "training.evaluate"])
def test_the_loop_and_the_evaluation_import_neither_models_nor_data_even_indirectly(module):
    reached, new = set(), {module}
    while new:
        reached |= new
        new = {name for known in new for name in imports_of(parse(known))} - reached
    assert {package(name) for name in reached} <= {"training", "utils"}


def test_transformer_4d_imports_one_module_inside_a_function_and_nothing_else():
    tree = parse("transformer_4d")
    assert imports_of(tree) == {"data.known_texts"}
    tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert imports_of(tree) == set()


@pytest.mark.parametrize("module", [module for module, path in FILES.items() if ">>> " in path.read_text("utf-8")])
def test_the_examples_in_docstrings_are_right(module):
    tested = doctest.testmod(importlib.import_module(module))
    assert tested.attempted > 0 and tested.failed == 0


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
    done = run(code, *FILES, folder=tmp_path)  # logging is off, as matplotlib logs its first search for fonts
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_are_read_without_torch_so_that_help_is_fast():
    code = "import models.config, training.settings, train, sys; print(sorted({'torch', 'numpy'} & sys.modules.keys()))"
    done = run(code, folder=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")
