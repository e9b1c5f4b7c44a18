"""The zip archives that torch.save writes."""

import os
import zipfile

HEADER = 30  # bytes of a member's header, not counting its name


def check_archive(path):
    """Raise zipfile.BadZipFile unless the file `path` is a zip archive as torch.save writes it, with intact contents.

    torch.load checks no CRC-32. It also believes the directory at the end of the archive: it reads nothing for a member
    marked as a folder, which leaves a weight of uninitialized memory, and allocates whatever size is given there.
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
