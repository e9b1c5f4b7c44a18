"""The only sampling loop."""

import contextlib

import torch
import torch.nn.functional as F

from models.gpt import KVCache


def window_start(n, block_size):
    """Where the window starts in which the token after n others is guessed.

    Up to block_size tokens the model sees all of them. When they are too many, half a window is dropped at once and the
    rest is read afresh, so that this happens every block_size / 2 tokens and not at each: a cached key holds its
    position, and the whole cache is wrong as soon as the window moves.

    >>> [window_start(n, 4) for n in range(1, 10)]
    [0, 0, 0, 0, 2, 2, 4, 4, 6]
    """
    step = max(1, block_size // 2)
    return max(0, -(-(n - block_size) // step) * step)


@contextlib.contextmanager
def onednn(enabled):
    """Whether oneDNN may multiply. A single token in bfloat16 takes it three times as long as PyTorch's own loops."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = enabled
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@torch.inference_mode()
def generate(model, ids, max_new_tokens, sampling, stop_tokens=(), vocab_size=None):
    """Yield token ids, one by one, that continue the list `ids`, which is not empty.

    It ends after `max_new_tokens`, or before the first of `stop_tokens`. `sampling` is a SamplingConfig. The window
    moves as `window_start` says. The model should be in evaluation mode; where it has room for more tokens than there
    are, `vocab_size` says how many there are.
    """
    device = model.head.weight.device
    generator = torch.Generator(device)
    generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
    ids, cache, start = list(ids), KVCache(model), 0
    new = ids  # what the cache does not hold yet
    for _ in range(max_new_tokens):
        if start != window_start(len(ids), model.block_size):
            start = window_start(len(ids), model.block_size)
            cache.clear()
            new = ids[start:]
        with onednn(enabled=len(new) > 1):
            logits = model.head(model.features(torch.tensor([new], device=device), cache)[0, -1]).float()  # (V)
        next_id = draw(logits[:vocab_size], ids[start:], sampling, generator)
        if next_id in stop_tokens:
            return
        ids.append(next_id)
        new = [next_id]
        yield next_id


def draw(logits, context, sampling, generator=None):
    """A token id from the logits (V) of the next token, after the ids of `context`."""
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(context)), device=logits.device)
        score, penalty = logits[seen], sampling.repetition_penalty
        logits = logits.index_put((seen,), torch.where(score > 0, score / penalty, score * penalty))
    if sampling.temperature == 0:
        return logits.argmax().item()
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    probabilities = F.softmax(logits, dim=-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        falling, order = probabilities.sort(descending=True)
        enough = falling.cumsum(0) - falling >= sampling.top_p  # those before already have top_p together
        probabilities[order[enough]] = 0.0
    return torch.multinomial(probabilities, 1, generator=generator).item()


def generate_text(model, tokenizer, prompt, max_new_tokens, sampling, stop_tokens=(), stop_strings=()):
    """Yield with each token the text that it completes, continuing `prompt`: none for half a character.

    It ends before the first of `stop_strings`; what may be the start of one is held back until that is clear. What is
    left at the end comes then.
    """
    ids = tokenizer.encode(prompt) or [tokenizer.start_id]
    complete, held = tokenizer.stream(), ""
    for token in generate(model, ids, max_new_tokens, sampling, stop_tokens, tokenizer.vocab_size):
        held += complete(token)
        ends = [held.index(stop) for stop in stop_strings if stop in held]
        if ends:
            yield held[: min(ends)]
            return
        starts = [i for stop in stop_strings for i in range(1, len(stop)) if held.endswith(stop[:i])]
        ready = len(held) - max(starts, default=0)
        yield held[:ready]
        held = held[ready:]
    held += complete()
    if held:
        yield held
