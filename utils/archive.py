"""Checkpoint archives: the zip files that torch.save writes."""

import errno
import os
import pickle
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

HEADER = 30  # bytes of a member's header, without its name


def read_archive(path: Path | str, mmap: bool = False) -> Any:
    """Return the object that torch.save wrote to a file, with its tensors on the CPU. No code in the file is run.

    `mmap`: map the tensors into memory, to be read when they are used. Raises UserError if the file cannot be read, is
    damaged, or contains code.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading from a device or a pipe might never end
            raise OSError(errno.EINVAL, "not a regular file")
        check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual tensor types, which are errors here
            return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: give the path of a checkpoint, or train a model first with "
                        "python train.py config/bard_gpt_cpu.yaml or python transformer_4d.py") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give the path of a readable checkpoint") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} is damaged, or contains code, which is not run: use a file from train.py or "
                        "transformer_4d.py") from None
    except Exception:  # zipfile and torch.load raise many exception types for invalid files
        raise UserError(f"{path} is damaged or not a checkpoint: download it again, or train again") from None


def check_archive(path: Path | str) -> None:
    """Raise zipfile.BadZipFile unless the file is a zip archive as torch.save writes it, with intact contents.

    torch.load checks no CRC-32, and it trusts the directory at the end of the archive: it allocates whatever size is
    given there, and for a member marked as a folder it reads nothing, which leaves a weight uninitialized.
    """
    with zipfile.ZipFile(path) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        end = 0
        for member in members:
            stored = member.compress_type == zipfile.ZIP_STORED and member.compress_size == member.file_size
            if not stored or member.external_attr or member.header_offset < end:
                raise zipfile.BadZipFile(f"torch.save does not write members such as {member.filename}")
            end = member.header_offset + HEADER + member.file_size
        names = {member.filename.casefold() for member in members}  # torch.load ignores case
        if len(names) < len(members) or end > os.path.getsize(path) or archive.comment:
            raise zipfile.BadZipFile("torch.save writes distinct names, no comment, and all that the directory lists")
        if archive.testzip() is not None:
            raise zipfile.BadZipFile("a CRC-32 does not match")
