"""Models of the Hugging Face hub, downloaded and cached by huggingface_hub.

Its environment variables apply: HF_ENDPOINT selects a mirror, HF_HOME the folder of the cache, and with
HF_HUB_OFFLINE=1 only the cache is used.
"""

import contextlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from formats.huggingface import INDEX, WEIGHTS, read_index
from formats.huggingface_config import read_config
from utils.download import answering_endpoint, hub_endpoints
from utils.errors import UserError
from utils.printable import one_line

OPENAI_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # short for openai-community/gpt2, ...
LOCAL_SUFFIXES = (".pt", ".bin", ".json", ".safetensors")  # of paths that are not names
OPTIONAL_FILES = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")


def hub_name(path: str | Path) -> str | None:
    """Return the OWNER/NAME of a model on the hub, or None for a path: one that exists, or whose first folder does."""
    text = str(path)
    if os.path.exists(text):
        return None
    if text in OPENAI_NAMES:
        return f"openai-community/{text}"
    owner = text.partition("/")[0]
    is_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) and not text.endswith(LOCAL_SUFFIXES)
    return text if is_name and not os.path.exists(owner) else None


def download_model(name: str) -> Path:
    """Download the files of a model, unless they are in the cache; return their folder there. Raises UserError."""
    from huggingface_hub import hf_hub_download, is_offline_mode  # slow to import

    endpoint = None if is_offline_mode() else answering_endpoint(f"api/models/{name}")
    try:
        return download_files(partial(hf_hub_download, name, endpoint=endpoint, local_files_only=endpoint is None))
    except UserError:
        raise
    except Exception as error:  # the libraries below huggingface_hub raise errors of their own
        problem = f"{endpoint}: {describe(error)}"
        if endpoint is None:
            problem = f"it is not in the cache, and there is no usable answer from {' or '.join(hub_endpoints())}"
    raise UserError(f"there is no folder {name}, and it could not be downloaded from the hub ({problem}): check the "
                    "name and the network (HF_ENDPOINT selects a mirror), or give the path of a folder")


def download_files(download: Callable[..., str]) -> Path:
    """Download the files of a model with `download`, from a name to a path; return their folder.

    Raises UserError for a model that cannot be read, and what `download` raises.
    """
    config = Path(download("config.json"))
    read_config(config)  # before its weights are downloaded
    folder = config.parent
    download = partial(download, revision=folder.name)  # all files of the same commit
    if download_if_there(download, INDEX):
        for shard in sorted({path.name for path in read_index(folder).values()}):
            download(shard)
    else:
        download(WEIGHTS)
    if not download_if_there(download, "tokenizer.json"):
        download("vocab.json")
        download("merges.txt")
    for file in OPTIONAL_FILES:
        download_if_there(download, file)
    return folder


def download_if_there(download: Callable[..., str], file: str) -> str | None:
    """Return the path of a downloaded file, or None if the model does not have it."""
    from huggingface_hub.errors import EntryNotFoundError

    with contextlib.suppress(EntryNotFoundError):
        return download(file)
    return None


def describe(error: Exception) -> str:
    """Return the first two lines of an error, of which the second may name a file, or its type if it has none."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(" ".join(lines[:2]), 300)
