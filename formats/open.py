"""Which format a model has."""

from pathlib import Path

from formats.hub import download_model, hub_name
from formats.huggingface import open_huggingface


def open_foreign(path):
    """The model of another project at `path`, or of this name on the Hugging Face hub, as `Foreign`; None if there is
    none, but maybe a checkpoint of this project. A local path wins over a name. Raises UserError."""
    name = hub_name(path)
    folder = Path(path) if name is None else download_model(name)
    if (folder / "config.json").is_file() and not (folder / "best.pt").is_file():
        return open_huggingface(folder)
    return None
