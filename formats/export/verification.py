"""Whether an exported model computes what the checkpoint does."""

import contextlib

import torch

from data.dialogues import prompt_ids
from formats.export.tokenizer import END_MARKERS
from formats.open_model import open_foreign
from models.weights import SkipInitialization, load_file_weights
from models.zoo import ZOO
from utils.errors import UserError
from utils.printable import one_line

TOLERANCE = 1e-4  # of the largest logit
SHAPE = (2, 64)  # sequences and their length, at most


def verify_folder(folder, loaded):
    """Compare the logits and token ids of a Hugging Face folder with those of `Loaded`, and print the largest
    differences. Raises UserError if they differ."""
    ids = sample_ids(loaded)
    logits = first_logits(loaded.model, loaded.tokenizer, ids)
    compare_import(folder, loaded.tokenizer, ids, logits)
    try:
        import transformers  # slow to import, and not required
    except ImportError:
        print("transformers is not installed, and was not compared: pip install transformers")
        return
    name = f"transformers {transformers.__version__}"
    with quiet(transformers), torch.inference_mode():
        theirs = model_class(transformers, folder).from_pretrained(folder).eval()
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=theirs.config)
        compare(f"{name}, {type(theirs).__name__}", theirs(ids).logits, logits)
        compare_tokens(name, lambda text: their_tokenizer(text)["input_ids"], loaded.tokenizer, ids)
        if loaded.task["kind"] in END_MARKERS:
            compare_chat(name, their_tokenizer, loaded.tokenizer, ids)


def sample_ids(loaded):
    """Random token ids (B, T) without special tokens, the same for every call."""
    tokenizer, (B, T) = loaded.tokenizer, SHAPE
    ordinary = torch.tensor([i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids])
    generator = torch.Generator().manual_seed(0)
    return ordinary[torch.randint(len(ordinary), (B, min(T, loaded.model.block_size)), generator=generator)]


@torch.inference_mode()
def first_logits(model, tokenizer, ids):
    """Logits (B, T, number of tokens in the tokenizer) of token ids (B, T)."""
    return model(ids.to(model.device))[0][..., : tokenizer.vocab_size].cpu()


def model_class(transformers, folder):
    """The class that opens a folder. The code in it is not run from there: transformers would ask the user whether it
    may, and keep a copy of it in its cache."""
    if not (folder / "modeling_your_gpt.py").exists():
        return transformers.AutoModelForCausalLM
    from formats.export.remote.modeling_your_gpt import YourGPTForCausalLM  # the same code

    return YourGPTForCausalLM


def compare_import(folder, tokenizer, ids, logits):
    """Compare the model and the tokenizer in a folder, as they are imported, with the logits of token ids (B, T) and
    with our tokenizer. Raises UserError if they differ."""
    foreign = open_foreign(folder)
    with SkipInitialization():
        model = ZOO[foreign.model_class](**vars(foreign.config)).eval()
    load_file_weights(model, foreign.weights)
    compare("this project", first_logits(model, foreign.tokenizer, ids), logits)
    compare_tokens("this project", foreign.tokenizer.encode, tokenizer, ids)


def compare(name, found, expected):
    """Print the largest difference of logits. Raises UserError if it exceeds the tolerance."""
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    print(f"{name}: logits differ by at most {difference:.1e}; the largest is {largest:.1f}")
    if not difference <= TOLERANCE * largest:  # or if it is NaN
        raise failed(f"{name} has logits that differ by up to {difference:.1e}, and the largest is {largest:.1f}")


def compare_tokens(name, encode, tokenizer, ids):
    """Raise UserError unless `encode` returns the token ids of our tokenizer for the texts of token ids (B, T)."""
    for row in ids.tolist():
        text = tokenizer.decode(row)
        if encode(text) != tokenizer.encode(text):
            raise failed(f"{name} has other token ids for {one_line(repr(text), 80)}")
    print(f"{name}: {ids.numel()} token ids are equal")


def compare_chat(name, their_tokenizer, tokenizer, ids):
    """Raise UserError unless the chat template gives the token ids of a dialogue in training."""
    first, second = (tokenizer.decode(row) for row in ids.tolist())
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": second},
                {"role": "user", "content": second}]
    found = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    if found != prompt_ids([first, second, second], tokenizer):
        raise failed(f"the chat template has other token ids in {name}")


def failed(problem):
    return UserError(f"verification failed, and nothing was written: {problem}. Please report this as a bug")


@contextlib.contextmanager
def quiet(transformers):
    """Context in which transformers prints neither progress nor warnings."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
