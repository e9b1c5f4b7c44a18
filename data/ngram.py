"""The n-gram baseline: predict each token from counts of the few tokens before it."""

import numpy as np
from tqdm import tqdm

MAX_TOKENS = 20_000_000  # peak memory is about 100 bytes per token counted


def ngram_loss(train: np.ndarray, val: np.ndarray, vocab_size: int, order: int = 5) -> float:
    """Return the mean loss of an interpolated n-gram model on `val`, in nats per token.

    `train` (N) and `val` (M) are arrays of token ids below `vocab_size`. A model of order n predicts a token w from
    its context h, the n - 1 tokens before it; h' is h without its first token:

        p_n(w|h) = (c(hw) + T(h) p_{n-1}(w|h')) / (c(h) + T(h)),   p_0(w) = 1 / vocab_size

    c(hw) counts hw in `train`, c(h) is the sum of c(hw) over all w, and T(h) is the number of distinct tokens seen
    after h. If h was never seen, p_n(w|h) = p_{n-1}(w|h'). This is Witten-Bell smoothing: Witten and Bell 1991, "The
    Zero-Frequency Problem"; Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling".

    Each token of `val` but the first is a target once. Contexts start within `val`, so its first targets use a lower
    order. If `train` is longer than MAX_TOKENS, only its last MAX_TOKENS tokens are counted, to bound the memory.
    Raises ValueError if `val` has fewer than 2 tokens.
    """
    if len(val) < 2:
        raise ValueError(f"val must have at least 2 tokens, got {len(val)}")
    train = train[-MAX_TOKENS:]
    p = np.full(len(val), 1 / vocab_size)  # (M)
    # The context of each token, as an integer. Packing its tokens into one number would overflow int64 for a large
    # vocabulary, so the distinct n-grams of each order are renumbered 0, 1, 2 ...: they are the next order's contexts.
    train_context, val_context = np.zeros(len(train), np.int64), np.zeros(len(val), np.int64)
    for n in tqdm(range(1, min(order, len(train)) + 1), "n-gram counts", leave=False, delay=5):
        train_keys = train_context * vocab_size + train[n - 1 :]  # (N - n + 1), one integer per n-gram hw
        val_keys = val_context * vocab_size + val[n - 1 :]  # (M - n + 1)
        ngrams, train_ids, c_hw = np.unique(train_keys, return_inverse=True, return_counts=True)
        contexts, n_contexts = ngrams // vocab_size, val_context.max(initial=0) + 1
        c_h = np.bincount(contexts, c_hw, n_contexts)
        T_h = np.bincount(contexts, minlength=n_contexts)
        T_h = np.maximum(T_h, 1)  # for an unseen context, c = 0 and T = 1 make the formula back off
        ids = np.minimum(np.searchsorted(ngrams, val_keys), len(ngrams) - 1)  # (M - n + 1)
        seen = ngrams[ids] == val_keys
        T = T_h[val_context]
        p[n - 1 :] = (seen * c_hw[ids] + T * p[n - 1 :]) / (c_h[val_context] + T)
        train_context = train_ids[:-1]
        val_context = np.where(seen, ids, len(ngrams))[:-1]  # len(ngrams) stands for every unseen context
    return -np.log(p[1:]).mean()
