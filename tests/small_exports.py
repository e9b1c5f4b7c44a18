"""Running export.py, for tests."""

import pytest

import export


def run_export(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["export.py", *map(str, arguments)])
        export.main()


def error_of(capsys, *arguments):
    """Return the message of an export that must fail, with one line and exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_code:
        run_export(*arguments)
    assert exit_code.value.code == 2
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ")
    return message
