"""Downloads: mirrors in order, resume, checksum."""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError

TIMEOUT = 10  # seconds without a byte
ATTEMPTS = 5  # per mirror, as long as each makes progress
NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)


def hub_endpoints() -> list[str]:
    """Return the addresses of the Hugging Face hub: HF_ENDPOINT if it is set, else the hub and a mirror."""
    chosen = os.environ.get("HF_ENDPOINT")
    return [chosen.rstrip("/")] if chosen else ["https://huggingface.co", "https://hf-mirror.com"]


def answering_endpoint(path: str) -> str | None:
    """Return the first of `hub_endpoints` that answers a request for `path`, even with an error; None if none does."""
    for endpoint in hub_endpoints():
        try:
            urllib.request.urlopen(f"{endpoint}/{path}", timeout=TIMEOUT).close()
        except urllib.error.HTTPError:
            pass
        except NETWORK_ERRORS:
            continue
        return endpoint
    return None


def download(urls: list[str], path: Path, sha256: str) -> Path:
    """Download a file from the first of `urls` that works, unless it exists. Return its path.

    An interrupted download is kept in PATH.partial and resumed, from the same mirror or another one. The file gets its
    name once its checksum is right. Raises UserError if no mirror works or the file cannot be written.
    """
    if path.exists():
        return path
    partial, problems = path.with_name(f"{path.name}.partial"), []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in urls:
            print(f"downloading {url}")
            problem = download_from(url, partial, sha256)
            if problem is None:
                os.replace(partial, path)
                return path
            print(f"  failed: {problem}")
            problems.append(f"{url}: {problem}")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Free some space or use another folder") from None
    raise UserError(f"{path.name} could not be downloaded ({'; '.join(problems)}): check the network and try again to "
                    f"resume, or put the file there yourself: {path}")


def download_from(url: str, partial: Path, sha256: str) -> str | None:
    """Complete the file `partial` from one mirror. Return what failed, or None. Raises OSError if it cannot write."""
    problem = None
    for _ in range(ATTEMPTS):
        start = size_of(partial)
        problem = receive(url, partial, start)
        if problem is not None and size_of(partial) <= start:
            return problem
        if problem is None:
            if sha256_of(partial) == sha256:
                return None
            partial.unlink()
            problem = "wrong checksum"
            if start == 0:  # otherwise the first bytes, from another mirror, may have been wrong
                return problem
    return problem


def receive(url: str, partial: Path, start: int) -> str | None:
    """Append what follows the first `start` bytes to `partial`. Return what failed, or None."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return None  # `partial` is complete or wrong, as its checksum will tell
        return f"{error.code} {error.reason}"
    except NETWORK_ERRORS as error:
        return describe(error)
    with response:
        sent_range = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != HTTPStatus.PARTIAL_CONTENT or not sent_range or int(sent_range[1]) != start:
            start = 0  # the server sends the whole file
        length = response.headers.get("Content-Length", "")
        expected = start + int(length) if length.isdigit() else None
        with open(partial, "ab" if start else "wb") as file, tqdm(
                total=expected, initial=start, unit="B", unit_scale=True, desc="download", delay=1) as bar:
            while True:
                try:
                    block = response.read1(1 << 20)
                except NETWORK_ERRORS as error:
                    return describe(error)
                if not block:
                    break
                file.write(block)
                bar.update(len(block))
    if expected and size_of(partial) < expected:
        return f"the connection closed after {size_of(partial):,} of {expected:,} bytes"
    return None


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def describe(error: Exception) -> str:
    """Return the message of a network error, or its type if it has none."""
    return str(getattr(error, "reason", "") or error) or type(error).__name__
