"""Models of the Hugging Face hub, downloaded and cached by huggingface_hub.

Its environment variables apply: HF_ENDPOINT selects a mirror, and with HF_HUB_OFFLINE=1 only the cache is used, which
is in HF_HOME.
"""

import contextlib
import os
import re
from functools import partial
from pathlib import Path

from data.download import answering_endpoint, hub_endpoints
from formats.huggingface import INDEX, WEIGHTS, read_index
from formats.huggingface_config import read_config
from utils.errors import UserError
from utils.printable import one_line

OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
LOCAL_FILES = (".pt", ".bin", ".json", ".safetensors")  # suffixes of paths that are no names
NEEDED_BESIDES = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")  # where there are any


def hub_name(path):
    """The OWNER/NAME of a model on the hub, None for a path: what exists, or would be in a folder that exists."""
    text = str(path)
    if os.path.exists(text):
        return None
    if text in OPENAI:
        return f"openai-community/{text}"
    owner = text.partition("/")[0]
    is_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII) and not text.endswith(LOCAL_FILES)
    return text if is_name and not os.path.exists(owner) else None


def download_model(name):
    """The folder in the cache with the files of a model, which are downloaded unless they are there. Raises UserError.
    """
    from huggingface_hub import hf_hub_download, is_offline_mode  # slow to import

    endpoint = None if is_offline_mode() else answering_endpoint(f"api/models/{name}")
    try:
        return download_files(partial(hf_hub_download, name, endpoint=endpoint, local_files_only=endpoint is None))
    except UserError:
        raise
    except Exception as error:  # also errors of the libraries below huggingface_hub
        problem = f"{endpoint}: {describe(error)}"
        if endpoint is None:
            problem = f"it is not in the cache, and there is no usable answer from {' or '.join(hub_endpoints())}"
    raise UserError(f"there is no folder {name}, and it could not be downloaded from the hub ({problem}): check the "
                    "name and the network (HF_ENDPOINT selects a mirror), or give the path of a folder")


def download_files(get):
    """The folder with the files of a model; `get` downloads one of them. Raises UserError, and what `get` raises."""
    config = Path(get("config.json"))
    read_config(config)  # a model that cannot be read is not downloaded
    folder = config.parent
    get = partial(get, revision=folder.name)  # all files of the same commit
    if get_if_there(get, INDEX):
        for shard in sorted({path.name for path in read_index(folder).values()}):
            get(shard)
    else:
        get(WEIGHTS)
    if not get_if_there(get, "tokenizer.json"):
        get("vocab.json")
        get("merges.txt")
    for file in NEEDED_BESIDES:
        get_if_there(get, file)
    return folder


def get_if_there(get, file):
    """The path of a file, None if there is none."""
    from huggingface_hub.errors import EntryNotFoundError

    with contextlib.suppress(EntryNotFoundError):
        return get(file)
    return None


def describe(error):
    """The first two lines of an error, of which the second may name a file, or its type if it has none."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return one_line(" ".join(lines[:2]), 300)
