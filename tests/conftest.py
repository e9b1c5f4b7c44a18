"""What the tests of several commands share."""

import sys

import pytest


@pytest.fixture
def run_main(monkeypatch, capsys):
    """A function that calls a `main` as the command line with these arguments would; returns its standard output."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run
