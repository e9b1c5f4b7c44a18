"""How the scripts end."""

import errno
import os

import pytest

from utils.errors import Parser, UserError, command


@pytest.mark.parametrize("error, code, shown", [
    (UserError("give more"), 2, "error: give more\n"),
    (OSError(errno.EACCES, "Permission denied", "a/b"), 2, "error: a/b: Permission denied. Give another path\n"),
    (KeyboardInterrupt(), 130, ""),
])
def test_a_mistake_ends_in_one_line(capsys, error, code, shown):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        command(main)()
    assert (end.value.code, capsys.readouterr().err) == (code, shown)


@pytest.mark.skipif(os.name == "nt", reason="on Windows this is a closed pipe")
def test_what_is_no_mistake_of_the_user_is_not_hidden():
    def main():
        raise OSError(errno.EINVAL, "Invalid argument")

    with pytest.raises(OSError, match="Invalid argument"):
        command(main)()


def test_a_command_line_that_cannot_be_understood_is_one_line():
    parser = Parser("What it does.")
    parser.add_argument("--n", type=int)
    parser.add_subparsers().add_parser("go")
    for line, quoted in (("--n x", "invalid int"), ("--m", "--m"), ("come", "come"), ("go -x", "-x")):
        with pytest.raises(UserError, match=quoted) as error:
            parser.parse_args(line.split())
        assert "\n" not in str(error.value)
