"""Models: layers, the named architectures, sampling, and what fine-tuning adds."""
