"""What the tests of several commands share."""

import sys

import pytest
from small_text import TEXT


@pytest.fixture
def run_main(monkeypatch, capsys):
    """A function that calls a `main` as the command line with these arguments would; returns its standard output."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a text to train on."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "input.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path
