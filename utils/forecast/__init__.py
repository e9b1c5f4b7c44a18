"""The memory forecast: parameters, activations, a training step, inference, communication."""
