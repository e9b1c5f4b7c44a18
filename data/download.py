"""Files from the web: mirrors in order, resume, checksum."""

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

TIMEOUT = 10  # seconds of silence, not of the whole download
ATTEMPTS = 5  # at one mirror, as long as each brings more than the one before


def hub_endpoints():
    """Where the Hugging Face hub may be reached: HF_ENDPOINT alone where it is set."""
    chosen = os.environ.get("HF_ENDPOINT")
    return [chosen.rstrip("/")] if chosen else ["https://huggingface.co", "https://hf-mirror.com"]


def answering_endpoint(path):
    """The first of `hub_endpoints` that answers a question about `path` at all; None if none does."""
    for endpoint in hub_endpoints():
        try:
            urllib.request.urlopen(f"{endpoint}/{path}", timeout=TIMEOUT).close()
        except urllib.error.HTTPError:
            pass  # an answer, even if it is no
        except (OSError, http.client.HTTPException, ValueError):
            continue
        return endpoint
    return None


def download(urls, path, sha256):
    """Fetch a file from the first of `urls` that has it, and return its path. A file that is there is not fetched.

    What has come is kept in PATH.partial: a download that broke off, or was killed, goes on where it stopped, at the
    same mirror or the next. The file takes its name when its checksum is right. Raises UserError if no mirror has it,
    or if it cannot be written.
    """
    path = Path(path)
    if path.exists():
        return path
    partial = path.with_name(path.name + ".partial")
    reasons = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for url in urls:
            print(f"downloading {url}")
            reason = fetch(url, partial, sha256)
            if reason is None:
                os.replace(partial, path)
                return path
            print(f"  no: {reason}")
            reasons.append(f"{url}: {reason}")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Make room, or use a folder of your own") from None
    raise UserError(f"{path.name} could not be downloaded ({'; '.join(reasons)}): check the network and try again, it "
                    f"goes on where it stopped, or put the file there yourself: {path}")


def fetch(url, partial, sha256):
    """Bring `partial` to its full length from one mirror. Returns why not, or None. Raises OSError if it can't write.

    Only writing raises OSError here: what goes wrong on the network is a reason.
    """
    for _ in range(ATTEMPTS):
        begun = partial.stat().st_size if partial.exists() else 0
        reason = receive(url, partial, begun)
        size = partial.stat().st_size if partial.exists() else 0
        if reason is None:
            if sha256_of(partial) == sha256:
                return None
            partial.unlink()  # what another mirror began may be to blame: then it is worth a second attempt
            reason = "other bytes came"
            if begun == 0:
                return reason
        elif size <= begun:
            return reason
    return reason


def receive(url, partial, begun):
    """Append what is missing after the first `begun` bytes. Returns what went wrong on the way, or None."""
    headers = {"Range": f"bytes={begun}-"} if begun else {}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and begun:
            return None  # nothing is missing, or the file is not ours: the checksum tells
        return f"{error.code} {error.reason}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return reason_of(error)
    with reply:
        place = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
        if begun and not (reply.status == HTTPStatus.PARTIAL_CONTENT and place and int(place[1]) == begun):
            begun = 0  # it ignores the range, and sends all
        length = reply.headers.get("Content-Length", "")
        expected = begun + int(length) if length.isdigit() else None
        with open(partial, "ab" if begun else "wb") as file, tqdm(
                total=expected, initial=begun, unit="B", unit_scale=True, desc="download", delay=1) as bar:
            while True:
                try:
                    block = reply.read1(1 << 20)
                except (OSError, http.client.HTTPException) as error:
                    return reason_of(error)
                if not block:
                    break
                file.write(block)
                bar.update(len(block))
    size = partial.stat().st_size
    return f"it broke off after {size:,} of {expected:,} bytes" if expected and size < expected else None


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def reason_of(error):
    """What a network error says, or its type where it says nothing."""
    return str(getattr(error, "reason", "") or error) or type(error).__name__
