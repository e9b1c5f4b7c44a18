"""Sampling: the only loop that generates tokens."""

import contextlib

import torch
import torch.nn.functional as F

from models.cache import KVCache, StaticKVCache
from utils.cuda_graph import cuda_graph
from utils.errors import UserError

NO_TOKEN = -1  # sampled if the logits are not numbers


def window_start(n, block_size):
    """Start of the context window from which the token after n tokens is predicted.

    Up to block_size tokens, the model sees all of them. After that, half a window is dropped at once and the rest is
    read again: cached keys contain their positions, so the whole cache is invalid as soon as the window moves, and this
    way it moves only every block_size / 2 tokens.

    >>> [window_start(n, 4) for n in range(1, 10)]
    [0, 0, 0, 0, 2, 2, 4, 4, 6]
    """
    step = max(1, block_size // 2)
    return max(0, -(-(n - block_size) // step) * step)


@torch.inference_mode()
def generate(model, ids, max_new_tokens, sampling, stop_tokens=(), vocab_size=None, exempt=()):
    """Yield token ids, one by one, that continue the non-empty list `ids`.

    Ends after `max_new_tokens`, or before the first of `stop_tokens`. `sampling` is a SamplingConfig. The context
    window moves as in `window_start`. The model should be in evaluation mode. If it has more logits than there are
    tokens, `vocab_size` is the number of tokens. The repetition penalty does not apply to the tokens in `exempt`.
    Raises UserError if the predictions are not numbers.
    """
    on_cuda = model.head.weight.device.type == "cuda"
    sampler = (GraphSampler if on_cuda else Sampler)(model, sampling, vocab_size, exempt)
    ids, start = list(ids), None
    for _ in range(max_new_tokens):
        if start == window_start(len(ids), model.block_size):
            next_id = sampler.next_after(ids[-1])
        else:
            start = window_start(len(ids), model.block_size)
            next_id = sampler.restart(ids[start:])
        if next_id == NO_TOKEN:
            raise UserError("the predictions of the model are not numbers: its weights are damaged, use another one")
        if next_id in stop_tokens:
            return
        ids.append(next_id)
        yield next_id


class Sampler:
    """Samples one token after another; caches the keys and values of the tokens so far."""

    def __init__(self, model, sampling, vocab_size=None, exempt=()):
        self.model, self.sampling = model, sampling
        self.vocab_size = vocab_size or model.head.out_features
        self.device = model.head.weight.device
        self.cache = self.make_cache()
        self.in_context = torch.zeros(self.vocab_size, dtype=torch.bool, device=self.device)
        self.exempt = torch.tensor(sorted(exempt), dtype=torch.long, device=self.device)
        self.noise = torch.ones(self.vocab_size, device=self.device)
        self.generator = torch.Generator(self.device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    def make_cache(self):
        return KVCache(self.model)

    def restart(self, ids):
        """Empty the cache; return the token that follows `ids`, at most block_size of them."""
        self.cache.clear()
        self.in_context.zero_()
        self.noise.exponential_(generator=self.generator)
        with onednn(enabled=len(ids) > 1):
            return self.sample(torch.tensor([ids], device=self.device)).item()

    def next_after(self, token):
        """Return the token that follows `token`, which itself follows those before."""
        self.noise.exponential_(generator=self.generator)
        with onednn(enabled=False):
            return self.sample(torch.tensor([[token]], device=self.device)).item()

    def sample(self, x):
        """Return the token that follows x (1, T), a 0-dim tensor, without waiting for the device; or NO_TOKEN."""
        logits = self.model.head(self.model.features(x, self.cache)[0, -1]).float()[: self.vocab_size]  # (V)
        self.in_context.index_fill_(0, x[0], True).index_fill_(0, self.exempt, False)
        next_token = draw(logits, self.in_context, self.sampling, self.noise)
        return torch.where(logits.isnan().any(), NO_TOKEN, next_token)


class GraphSampler(Sampler):
    """A Sampler for CUDA, where launching the kernels of one token takes longer than running them: `next_after` is a
    CUDA graph. Everything that changes from token to token is in a tensor."""

    def __init__(self, model, sampling, vocab_size=None, exempt=()):
        super().__init__(model, sampling, vocab_size, exempt)
        self.token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.next_token = torch.zeros((), dtype=torch.long, device=self.device)
        self.length, self.graph = 0, None

    def make_cache(self):
        return StaticKVCache(self.model)

    def restart(self, ids):
        self.length = len(ids)
        return super().restart(ids)

    def next_after(self, token):
        self.noise.exponential_(generator=self.generator)
        self.token.fill_(token)
        self.cache.position.fill_(self.length)
        self.length += 1
        if self.graph is None:
            self.graph = cuda_graph(self.sample_next)
        self.graph()
        return self.next_token.item()

    def sample_next(self):
        self.next_token.copy_(self.sample(self.token))


@contextlib.contextmanager
def onednn(enabled):
    """Enable or disable oneDNN. For one token in bfloat16, it takes three times as long as PyTorch's own kernels."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = enabled
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def draw(logits, in_context, sampling, noise):
    """Draw the next token, a 0-dim tensor, from its logits (V).

    `in_context` (V) marks the tokens that the repetition penalty applies to. `noise` (V) is exponentially distributed:
    the largest quotient of probability and noise is a sample from the probabilities. (torch.multinomial computes the
    same, but waits for the device to check its input.)
    """
    if sampling.repetition_penalty != 1:
        penalized = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(in_context, penalized, logits)
    if sampling.temperature == 0:
        return logits.argmax()
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    probabilities = F.softmax(logits, dim=-1)
    if sampling.top_p is not None and sampling.top_p < 1:
        descending, order = probabilities.sort(descending=True)
        needed = descending.cumsum(0) - descending < sampling.top_p  # those before do not reach top_p yet
        probabilities = torch.zeros_like(probabilities).scatter(0, order, descending * needed)
    return (probabilities / noise).argmax()


def generate_text(model, tokenizer, ids, max_new_tokens, sampling, stop_tokens=()):
    """Yield, with each token, the text that it completes, continuing the non-empty list `ids`; "" while a character is
    incomplete. What is left at the end is yielded last.

    Ends before the first of `stop_tokens`. Special tokens have no repetition penalty.
    """
    complete = tokenizer.stream(ids)
    for token in generate(model, ids, max_new_tokens, sampling, stop_tokens, tokenizer.vocab_size,
                          tokenizer.special_ids):
        yield complete(token)
    rest = complete()
    if rest:
        yield rest
