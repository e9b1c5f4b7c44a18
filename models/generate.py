"""Sampling: text or token ids, generated one token at a time with a key-value cache.

Shapes: T time, V vocabulary. The batch is 1.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.config import SamplingConfig
from models.kv_cache import KVCache, StaticKVCache
from utils.cuda_graph import cuda_graph, lease_stream
from utils.errors import UserError

if TYPE_CHECKING:
    from models.gpt import GPT

NO_TOKEN = -1  # sampled if the logits are NaN


class Tokenizer(Protocol):
    """What `generate_text` needs of a tokenizer: models do not import data."""

    vocab_size: int
    special_ids: frozenset[int]

    def stream(self, before: list[int]) -> Callable[..., str]:
        """Return a function that returns the text completed by the next token id or, without an id, the rest."""


def generate_text(model: GPT, tokenizer: Tokenizer, ids: list[int], max_new_tokens: int, sampling: SamplingConfig,
                  *, stop_tokens: Collection[int] = ()) -> Iterator[str]:
    """Yield the text that continues the non-empty list `ids`, one piece per token.

    A piece is "" while a character is incomplete; what is left at the end is yielded last. Ends before the first of
    `stop_tokens`. The repetition penalty does not apply to special tokens.
    """
    complete = tokenizer.stream(ids)
    for token in generate(model, ids, max_new_tokens, sampling, stop_tokens, vocab_size=tokenizer.vocab_size,
                          exempt_ids=tokenizer.special_ids):
        yield complete(token)
    rest = complete()
    if rest:
        yield rest


@torch.inference_mode()
def generate(model: GPT, ids: list[int], max_new_tokens: int, sampling: SamplingConfig,
             stop_tokens: Collection[int] = (), *, vocab_size: int | None = None,
             exempt_ids: Collection[int] = ()) -> Iterator[int]:
    """Yield token ids, one by one, that continue the non-empty list `ids`.

    Ends after `max_new_tokens`, or before the first of `stop_tokens`. The context window moves as in `window_start`.
    The model should be in evaluation mode. `vocab_size` is that of the tokenizer, if the model has more logits. The
    repetition penalty does not apply to the tokens `exempt_ids`. Raises UserError if a logit is NaN.
    """
    sampler_class = GraphSampler if model.device.type == "cuda" else Sampler
    sampler = sampler_class(model, sampling, vocab_size, exempt_ids)
    ids, start = list(ids), None
    for _ in range(max_new_tokens):
        new_start = window_start(len(ids), model.block_size)
        if new_start == start:
            next_id = sampler.next_after(ids[-1])
        else:
            start = new_start
            next_id = sampler.restart(ids[start:])
        if next_id == NO_TOKEN:
            raise UserError("the predictions of the model are NaN: its weights are damaged, use another one")
        if next_id in stop_tokens:
            return
        ids.append(next_id)
        yield next_id


def window_start(n: int, block_size: int) -> int:
    """Return the start of the context window from which the token after n tokens is predicted.

    The model sees all tokens until there are more than block_size. Then half a window is dropped, and the rest is read
    again: cached keys contain their positions, so the cache is invalid as soon as the window moves, and this way it
    moves only every block_size / 2 tokens.

    >>> [window_start(n, 4) for n in range(1, 10)]
    [0, 0, 0, 0, 2, 2, 4, 4, 6]
    """
    step = max(1, block_size // 2)
    n_steps = math.ceil((n - block_size) / step)
    return max(0, n_steps * step)


# ---- One token -------------------------------------------------------------------------------------------------------


class Sampler:
    """Samples one token after another, with a cache of the keys and values so far."""

    def __init__(self, model: GPT, sampling: SamplingConfig, vocab_size: int | None = None,
                 exempt_ids: Collection[int] = ()):
        self.model, self.sampling = model, sampling
        self.vocab_size = vocab_size or model.head.out_features
        self.device = model.device
        self.cache = self.make_cache()
        self.in_context = torch.zeros(self.vocab_size, dtype=torch.bool, device=self.device)
        self.exempt_ids = torch.tensor(sorted(exempt_ids), dtype=torch.long, device=self.device)
        self.noise = torch.ones(self.vocab_size, device=self.device)
        self.generator = torch.Generator(self.device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    def make_cache(self) -> KVCache:
        return KVCache(self.model)

    def restart(self, ids: list[int]) -> int:
        """Empty the cache; return the token that follows `ids`, at most block_size of them."""
        self.cache.clear()
        self.in_context.zero_()
        self.noise.exponential_(generator=self.generator)
        with use_onednn(len(ids) > 1):
            return self.sample(torch.tensor([ids], device=self.device)).item()

    def next_after(self, token: int) -> int:
        """Return the token that follows `token`, which itself follows the tokens in the cache."""
        self.noise.exponential_(generator=self.generator)
        with use_onednn(False):
            return self.sample(torch.tensor([[token]], device=self.device)).item()

    def sample(self, x: Tensor) -> Tensor:
        """Return the token that follows x (1, T), or NO_TOKEN: a 0-dim tensor, without waiting for the device."""
        h = self.model.features(x, self.cache)  # (1, T, C)
        logits = self.model.head(h[0, -1]).float()[: self.vocab_size]  # (C) -> (V)
        self.in_context.index_fill_(0, x[0], True).index_fill_(0, self.exempt_ids, False)
        next_token = draw(logits, self.in_context, self.sampling, self.noise)
        return torch.where(logits.isnan().any(), NO_TOKEN, next_token)


@contextlib.contextmanager
def use_onednn(enabled: bool) -> Iterator[None]:
    """Enable or disable oneDNN, which for one token in bfloat16 takes three times as long as PyTorch's own kernels."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = enabled
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def draw(logits: Tensor, in_context: Tensor, sampling: SamplingConfig, noise: Tensor) -> Tensor:
    """Draw the next token, a 0-dim tensor, from its logits (V).

    `in_context` (V) marks the tokens that the repetition penalty applies to. `noise` (V) is exponentially distributed:
    the largest quotient of probability and noise is a sample from the probabilities. (torch.multinomial computes the
    same, but waits for the device to check its input.)
    """
    if sampling.repetition_penalty != 1:  # Keskar et al., 2019, section 4.1
        penalized = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(in_context, penalized, logits)
    if sampling.temperature == 0:
        return logits.argmax()
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    probabilities = F.softmax(logits, dim=-1)  # (V)
    if sampling.top_p is not None and sampling.top_p < 1:  # nucleus sampling: Holtzman et al., 2020, section 3.1
        descending, order = probabilities.sort(descending=True)
        in_nucleus = descending.cumsum(0) - descending < sampling.top_p  # those before it sum to less than top_p
        probabilities = torch.zeros_like(probabilities).scatter(0, order, descending * in_nucleus)
    return (probabilities / noise).argmax()


# ---- CUDA graphs -----------------------------------------------------------------------------------------------------

# Not cuDNN, PyTorch's first choice on an H100: for each new length, it plans its kernels for half a second.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class GraphSampler(Sampler):
    """A Sampler for CUDA, where launching the kernels of one token takes longer than running them.

    `next_after` is a CUDA graph: everything that changes from token to token is in a tensor.
    """

    def __init__(self, model: GPT, sampling: SamplingConfig, vocab_size: int | None = None,
                 exempt_ids: Collection[int] = ()):
        super().__init__(model, sampling, vocab_size, exempt_ids)
        self.token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.next_token = torch.zeros((), dtype=torch.long, device=self.device)
        self.length, self.graph = 0, None

    def make_cache(self) -> StaticKVCache:
        return StaticKVCache(self.model)

    def restart(self, ids: list[int]) -> int:
        self.length = len(ids)
        return super().restart(ids)

    def next_after(self, token: int) -> int:
        self.noise.exponential_(generator=self.generator)
        self.token.fill_(token)
        self.cache.position.fill_(self.length)
        self.length += 1
        if self.graph is None:
            self.graph = cuda_graph(self.sample_next, lease_stream(self))
        self.graph()
        return self.next_token.item()

    def sample(self, x: Tensor) -> Tensor:
        with sdpa_kernel(ATTENTION):
            return super().sample(x)

    def sample_next(self) -> None:
        self.next_token.copy_(self.sample(self.token))
