"""Verification of an export: whether it computes what the checkpoint does."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from formats.export.architectures import Checkpoint
from formats.export.tokenizer import CHAT_TASKS
from formats.open_model import open_foreign
from models.gpt import GPT
from models.weights import SkipInitialization, load_file_weights
from models.zoo import ZOO
from records.dialogues import prompt_ids
from tokenization.base import Tokenizer
from utils.errors import UserError
from utils.printable import one_line

TOLERANCE = 1e-4  # relative to the largest logit
MAX_SHAPE = (2, 64)  # (B, T) of the token ids that are compared


def verify_folder(folder: Path, loaded: Checkpoint) -> None:
    """Compare the logits and token ids of a Hugging Face folder with those of a checkpoint.

    Prints the largest differences. Raises UserError if they are not negligible.
    """
    ids = sample_ids(loaded)
    logits = compute_logits(loaded.model, loaded.tokenizer, ids)
    compare_import(folder, loaded.tokenizer, ids, logits)
    try:
        import transformers  # slow to import, and not required
    except ImportError:
        print("transformers is not installed, and was not compared: pip install transformers")
        return
    name = f"transformers {transformers.__version__}"
    with silence(transformers), torch.inference_mode():
        theirs = transformers_class(transformers, folder).from_pretrained(folder).eval()
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=theirs.config)
        compare_logits(f"{name}, {type(theirs).__name__}", theirs(ids).logits, logits)
        compare_tokens(name, lambda text: their_tokenizer(text)["input_ids"], loaded.tokenizer, ids)
        if loaded.task["kind"] in CHAT_TASKS:
            compare_chat(name, their_tokenizer, loaded.tokenizer, ids)


def sample_ids(loaded: Checkpoint) -> Tensor:
    """Return random token ids (B, T) without special tokens, the same in every call."""
    tokenizer, (B, T) = loaded.tokenizer, MAX_SHAPE
    ordinary = torch.tensor([i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids])
    generator = torch.Generator().manual_seed(0)
    return ordinary[torch.randint(len(ordinary), (B, min(T, loaded.model.block_size)), generator=generator)]


@torch.inference_mode()
def compute_logits(model: GPT, tokenizer: Tokenizer, ids: Tensor) -> Tensor:
    """Return the logits (B, T, number of tokens in the tokenizer) of token ids (B, T)."""
    return model(ids.to(model.device))[0][..., : tokenizer.vocab_size].cpu()


def compare_import(folder: Path, tokenizer: Tokenizer, ids: Tensor, logits: Tensor) -> None:
    """Import a folder, and compare it with our tokenizer and the logits of token ids (B, T).

    Raises UserError if they differ.
    """
    foreign = open_foreign(folder)
    with SkipInitialization():
        model = ZOO[foreign.model_class](**vars(foreign.config)).eval()
    load_file_weights(model, foreign.weights)
    compare_logits("this project", compute_logits(model, foreign.tokenizer, ids), logits)
    compare_tokens("this project", foreign.tokenizer.encode, tokenizer, ids)


def compare_logits(name: str, found: Tensor, expected: Tensor) -> None:
    """Print the largest difference of logits. Raises UserError if it exceeds the tolerance."""
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    print(f"{name}: logits differ by at most {difference:.1e}; the largest is {largest:.1f}")
    if not difference <= TOLERANCE * largest:  # or if it is NaN
        raise verification_error(f"{name} has logits that differ by up to {difference:.1e}, and the largest is "
                                 f"{largest:.1f}")


def compare_tokens(name: str, encode: Callable[[str], list[int]], tokenizer: Tokenizer, ids: Tensor) -> None:
    """Raise UserError unless `encode` returns the token ids of our tokenizer for the texts of token ids (B, T)."""
    for row in ids.tolist():
        text = tokenizer.decode(row)
        if encode(text) != tokenizer.encode(text):
            raise verification_error(f"{name} gives different token ids for {one_line(repr(text), 80)}")
    print(f"{name}: {ids.numel()} token ids are equal")


def compare_chat(name: str, their_tokenizer: Any, tokenizer: Tokenizer, ids: Tensor) -> None:
    """Raise UserError unless the chat template gives the same token ids as a dialogue in training."""
    first, second = (tokenizer.decode(row) for row in ids.tolist())
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": second},
                {"role": "user", "content": second}]
    found = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    if found != prompt_ids([first, second, second], tokenizer):
        raise verification_error(f"the chat template gives different token ids in {name}")


def verification_error(problem: str) -> UserError:
    return UserError(f"verification failed, and nothing was written: {problem}. Please report this as a bug")


def transformers_class(transformers: ModuleType, folder: Path) -> type:
    """Return the class that opens a folder.

    If the folder has code, the same code runs from this project: transformers would ask the user whether it may run,
    and keep a copy in its cache.
    """
    if not (folder / "modeling_your_gpt.py").exists():
        return transformers.AutoModelForCausalLM
    from formats.export.remote.modeling_your_gpt import YourGPTForCausalLM

    return YourGPTForCausalLM


@contextlib.contextmanager
def silence(transformers: ModuleType) -> Iterator[None]:
    """Context in which transformers prints neither progress nor warnings."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
