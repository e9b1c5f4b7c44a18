"""Atomic writes of files and folders, and the lock of a run."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import lock_run, replacing, replacing_folder

ROOT = Path(__file__).resolve().parents[1]
DAY = 24 * 3600


def start_python(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# ---- Replacing a file ------------------------------------------------------------------------------------------------


def test_a_file_gets_its_name_once_it_is_complete(tmp_path):
    path = tmp_path / "new" / "file"
    with replacing(path) as file:
        file.write(b"first")
        assert not path.exists()
    with replacing(path) as file:
        file.write(b"second")
        file.flush()
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"second" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", [".", "..", "/", "folder"])
def test_a_folder_is_not_replaced_by_a_file(tmp_path, monkeypatch, name):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot write .*: Is a directory"), replacing(Path(name)):
        raise AssertionError("the content must not be computed")
    assert list(tmp_path.rglob("*")) == [tmp_path / "folder"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), ValueError("another")])
def test_other_exceptions_pass_through_and_keep_the_previous_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"previous")
    with pytest.raises(type(error)) as raised, replacing(path) as file:
        file.write(b"half")
        raise error
    assert raised.value is error
    assert path.read_bytes() == b"previous" and list(tmp_path.iterdir()) == [path]


FILL_THE_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from utils.errors import UserError
from utils.files import replacing

weights = {"large": torch.zeros(100_000), "small": torch.zeros(10)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in map(int, sys.argv[2:]):  # bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with replacing(Path(sys.argv[1])) as file:
            torch.save(weights, file)
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files as POSIX does")
def test_a_full_disk_during_torch_save_is_reported_in_one_line_and_keeps_the_previous_file(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"previous")
    limits = [0, 10, 700, 1000, 100_000, 399_000, 401_000]  # in the header, the weights and the directory
    out, err = start_python(FILL_THE_DISK, path, *limits).communicate()
    assert err == ""
    assert out.splitlines() == [
        f"cannot write {path}: {os.strerror(errno.EFBIG)}. Free some space, or choose another folder"
    ] * len(limits)
    assert path.read_bytes() == b"previous" and list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder"):
        with pytest.raises(UserError, match=f"cannot write {path}: "), replacing(path):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_two_writers_of_the_same_path_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"second, longer")
        assert path.read_bytes() == b"second, longer"
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


def test_incomplete_files_of_killed_writers_are_removed_after_a_day(tmp_path):
    path = tmp_path / "a[1].pt"  # special characters of a glob pattern
    others = [tmp_path / f"{name}.partial" for name in ("a[1].pt", "b.a[1].pt.01234567", "a1.pt.01234567")]
    for other in others:  # an interrupted download, for example
        other.touch()
        os.utime(other, (0, 0))
    for age, remains in ((DAY - 3600, True), (DAY + 3600, False)):
        process = start_python("import sys; from pathlib import Path; from utils.files import replacing\n"
                               "with replacing(Path(sys.argv[1])): print(flush=True); sys.stdin.read()", path)
        process.stdout.readline()
        process.kill()
        process.communicate()
        [leftover] = set(tmp_path.iterdir()) - {path, *others}
        os.utime(leftover, (time.time() - age,) * 2)
        with replacing(path) as file:
            file.write(b"complete")
        assert leftover.exists() == remains
        leftover.unlink(missing_ok=True)
        assert set(tmp_path.iterdir()) == {path, *others}


# ---- Replacing a folder ----------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_as_a_whole_and_abandoned_folders_are_removed(tmp_path):
    folder = tmp_path / "new" / "folder"
    for name in ("first", "second"):
        with replacing_folder(folder) as partial:
            (partial / name).touch()
            assert [path.name for path in folder.glob("*")] == ([] if name == "first" else ["first"])
        abandoned = folder.with_name(f"folder.{'0' * 8}.partial")
        abandoned.mkdir()
        os.utime(abandoned, (time.time() - 2 * DAY,) * 2)
    assert [path.name for path in folder.iterdir()] == ["second"]
    abandoned.rmdir()
    assert list(folder.parent.iterdir()) == [folder]


def test_the_previous_folder_is_restored_if_the_new_one_cannot_be_renamed(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "previous").touch()

    def fail_for_the_new_one(source, target):
        if source.suffix == ".partial":
            raise OSError(errno.EIO, "broken")
        os.replace(source, target)

    monkeypatch.setattr("utils.files.rename", fail_for_the_new_one)
    with pytest.raises(UserError, match="cannot write .*folder: broken"), replacing_folder(folder):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "previous"]


def test_the_previous_folder_of_a_killed_process_is_restored_or_removed_if_replaced(tmp_path):
    folder, old = tmp_path / "folder", tmp_path / f"folder.{'0' * 8}.old"
    old.mkdir()
    (old / "previous").touch()
    with pytest.raises(ZeroDivisionError), replacing_folder(folder):
        _ = 1 / 0
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "previous"]
    old.mkdir()
    (tmp_path / "folder.old").mkdir()  # of the user
    with replacing_folder(folder) as partial:
        (partial / "new").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "folder.old", "new"]


# ---- The lock of a run -----------------------------------------------------------------------------------------------

HOLD_THE_LOCK = """
import sys
from pathlib import Path
from utils.files import lock_run

with lock_run(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Return a process that holds the lock of tmp_path / "run"."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path / "run")], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_run_in_use_is_refused_immediately_and_other_runs_are_not(tmp_path, holder):
    started = time.monotonic()
    with pytest.raises(UserError, match=r"another process is using the run .*--run NAME"), lock_run(tmp_path / "run"):
        pytest.fail("both processes have the lock")
    assert time.monotonic() - started < 1
    with lock_run(tmp_path / "another"):
        pass


def test_a_killed_process_blocks_nothing(tmp_path, holder):
    holder.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    holder.wait()
    with lock_run(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_leaves_only_the_files_of_a_run(tmp_path):
    folder = tmp_path / "checkpoints" / "run"
    for error in (None, UserError("no such text")):
        with pytest.raises(UserError) if error else lock_run(folder):
            with lock_run(folder.with_name("other")):
                if error:
                    raise error
                (folder / "last.pt").write_bytes(b"weights")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "checkpoints", "checkpoints/run", "checkpoints/run/last.pt"]


def test_errors_inside_the_lock_pass_through(tmp_path):
    for error in (UserError("x"), OSError(errno.ENOLCK, "No locks available"), TimeoutError(), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, lock_run(tmp_path / "run"):
            raise error
        assert raised.value is error


def test_a_run_folder_that_cannot_be_written_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*run: "), lock_run(tmp_path / "file" / "run"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="patches the lock of POSIX")
def test_a_drive_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, capsys):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with lock_run(tmp_path / "run"):
        pass
    [line] = capsys.readouterr().out.splitlines()
    assert "cannot be locked" in line and os.strerror(errno.ENOLCK) in line
