"""The only code that evaluates a loss."""

import numpy as np
import torch
from tqdm import tqdm


@torch.no_grad()
def estimate_loss(model, tokens, batch_size):
    """Mean loss, in nats per token, over all of `tokens`, an array of ids (N), split into consecutive windows.

    The windows do not overlap, so the same weights always give the same loss. Each token but the first is a target
    once, predicted from the tokens before it in its window.
    """
    T = model.block_size
    device = next(model.parameters()).device
    whole = (len(tokens) - 1) // T * T
    x, y = (tokens[i : i + whole].reshape(-1, T) for i in (0, 1))  # (N, T) each, y one token later
    batches = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, len(x), batch_size)]
    if whole < len(tokens) - 1:  # the last window is shorter
        batches.append((tokens[None, whole:-1], tokens[None, whole + 1 :]))
    was_training = model.training
    model.eval()
    total = 0.0
    for x, y in tqdm(batches, "evaluation", leave=False, delay=5):
        x, y = (torch.from_numpy(ids.astype(np.int64)).to(device) for ids in (x, y))
        total += model(x, y)[1].item() * y.numel()
    model.train(was_training)
    return total / (len(tokens) - 1)
