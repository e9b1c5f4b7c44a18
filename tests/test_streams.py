"""Standard streams that are closed or redirected, closed pipes, and full disks."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import HERE, TINY, losses

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="redirects with a POSIX shell")


def shell(line, *arguments, **options):
    """Run a line of bash, in which $0 is Python and $1, $2, ... are the arguments."""
    words = ["bash", "-c", line, sys.executable, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, **{"cwd": ROOT, "text": True, "encoding": "utf-8"} | options)


def script(body):
    return f"import sys\nfrom utils.errors import command\n@command\ndef main():\n    {body}\nmain()"


# ---- Closed at the start ---------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("command, closed, code", [
    ("train.py --data.path nothing.txt", "<&- >&- 2>&-", 2), ("train.py --data.path nothing.txt", ">&-", 2),
    ("train.py --help", ">&-", 0), ("estimate.py nothing.pt", "<&- >&- 2>&-", 2),
    ("terminal_demo.py --max_tokens 2", "<&-", 0), ("terminal_demo.py --prompt A --max_tokens 2", "<&- >&- 2>&-", 0),
    ("transformer_4d.py --n_embd 0", "<&- >&- 2>&-", 2), ("transformer_4d.py --n_embd 0", ">&-", 2),
    ("transformer_4d.py --help", ">&-", 0),
])
def test_scripts_run_with_closed_streams(command, closed, code):
    done = shell(f"$0 {command} {closed}", stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if code == 2 and "2>" not in closed:
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@POSIX
def test_a_closed_stream_does_not_write_to_files_opened_later(tmp_path):
    body = "file = open(sys.argv[1], 'w'); print('output'); print('errors', file=sys.stderr); file.write('content')"
    done = shell('$0 -c "$1" "$2" <&- >&- 2>&-', script(body), tmp_path / "file")
    assert done.returncode == 0 and (tmp_path / "file").read_text() == "content"


# ---- Encodings -------------------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("environment", [
    {}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "latin-1"},
])
def test_redirected_output_is_utf8_and_every_character_can_be_printed(environment):
    body = "print('\\udcff 中'); print('\\udcff 中', file=sys.stderr)"
    done = shell('$0 -c "$1"', script(body), env=os.environ | environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "? 中\n", "? 中\n")


# ---- Closed pipes and full disks -------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("body", ["print('line\\n' * 10**6)", "print('line')", "print('line'); sys.exit()"])
def test_a_short_script_exits_silently_when_its_reader_has_exited(body):
    done = shell('$0 -c "$1" | true; echo ${PIPESTATUS[0]}', f"import time; time.sleep(0.5)\n{script(body)}")
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("body", ["print('line\\n' * 10**6)", "print('line')"])
def test_output_to_a_full_disk_is_reported_in_one_line(body):
    done = shell('$0 -c "$1" > /dev/full', script(body))
    assert done.returncode == 2
    assert done.stderr == f"error: cannot write the output: {os.strerror(errno.ENOSPC)}. Free some space\n"


TRAIN = " ".join(["$0 $1/train.py --run tiny --training.max_iters 2 --training.eval_interval 1 --training.device cpu",
                  *HERE, *(f"--model.{name} {value}" for name, value in TINY.items())])


@POSIX
@pytest.mark.parametrize("redirected, reason", [
    ("| head -1", errno.EPIPE), ("2>&1 | head -1", None), ("> /dev/full", errno.ENOSPC), ("2> /dev/full", None),
    ("> /dev/full 2>&1", None),
])
def test_training_continues_when_its_output_cannot_be_written(folder, redirected, reason):
    if "/dev/full" in redirected and not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    done = shell(f"{TRAIN} {redirected}; exit ${{PIPESTATUS[0]}}", ROOT, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [step for step, _, _ in losses(folder / "checkpoints" / "tiny")] == [0, 1, 2]
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if reason:
        message = f"standard output cannot be written ({os.strerror(reason)}): continuing without it"
        assert done.stderr.count(message) == 1
