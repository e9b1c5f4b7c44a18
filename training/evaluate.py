"""The only code that evaluates a loss."""

import torch
from tqdm import tqdm


@torch.no_grad()
def estimate_loss(model, batches):
    """Mean loss, in nats per target, over a list of batches (x, y), int64, (B, T) each. Targets of -100 are ignored."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, n_targets = 0.0, 0
    for x, y in tqdm(batches, "evaluation", leave=False, delay=5):
        n = int((y != -100).sum())
        total += model(x.to(device), y.to(device))[1].item() * n
        n_targets += n
    model.train(was_training)
    return total / n_targets
