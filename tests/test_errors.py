"""Error messages and exit codes of the scripts."""

import argparse
import errno
import os
import re

import pytest

from utils.errors import Parser, UserError, check_numbers, command


@pytest.fixture
def end(capsys):
    """Return a function that runs a script that raises an exception, and returns its exit code and standard error."""

    def run(error):
        def main():
            raise error

        with pytest.raises(SystemExit) as end:
            command(main)()
        return end.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize("error, code, printed", [
    (UserError("give more"), 2, "error: give more\n"),
    (OSError(errno.EACCES, "Permission denied", "a/b"), 2, "error: a/b: Permission denied. Give another path\n"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "error: cannot write the output: No space left on device. "
                                                          "Free some space\n"),
    (KeyboardInterrupt(), 130, ""), (SystemExit(3), 3, ""),
])
def test_user_errors_are_one_line_with_exit_code_2(end, monkeypatch, error, code, printed):
    monkeypatch.setattr("utils.errors.discard", lambda stream: None)  # pytest's stream has no file descriptor
    assert end(error) == (code, printed)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred\r", "\u202etxt.exe", "\udcff", "n" * 100_000])
def test_every_message_is_one_short_line_without_control_characters(end, name):
    parser = Parser("What it does.")
    parser.add_argument("n", type=int)
    errors = [UserError(f"there is no {name}: try another"), OSError(errno.ENOENT, "No such file or directory", name)]
    with pytest.raises(UserError) as refused:
        parser.parse_args([name])
    for error in (*errors, refused.value):
        code, line = end(error)
        assert code == 2
        assert re.fullmatch(r"error: [^\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]{,1000}\n", line)


@pytest.mark.skipif(os.name == "nt", reason="on Windows this is a closed pipe")
def test_a_bug_keeps_its_traceback():
    def main():
        raise OSError(errno.EINVAL, "Invalid argument")

    with pytest.raises(OSError, match="Invalid argument"):
        command(main)()


def test_an_invalid_command_line_is_quoted_in_one_line():
    parser = Parser("What it does.")
    parser.add_argument("--n", type=int)
    parser.add_subparsers().add_parser("go")
    for line, quoted in (("--n x", "invalid int"), ("--m", "--m"), ("come", "come"), ("go -x", "-x")):
        with pytest.raises(UserError, match=quoted) as error:
            parser.parse_args(line.split())
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value, positive, not_negative", [
    (1, True, True), (0.5, True, True), (None, True, True), (0, False, True), (-1, False, False),
    (float("nan"), False, False),
])
def test_numbers_are_compared_with_zero(value, positive, not_negative):
    settings = argparse.Namespace(rate=value)
    for valid, limits, rule in ((positive, {"positive": ["rate"]}, "> 0"),
                                (not_negative, {"not_negative": ["rate"]}, ">= 0")):
        if valid:
            check_numbers(settings, **limits)
        else:
            with pytest.raises(UserError, match=f"^rate cannot be {value}: it must be {rule}$"):
                check_numbers(settings, **limits)
