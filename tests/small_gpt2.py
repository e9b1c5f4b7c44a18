"""Small GPT-2 models of transformers, as the reference for models of other projects, for tests."""

import torch
import transformers

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def small_gpt2(**changes):
    """A random GPT2LMHeadModel without the zeros and ones of its start, behind which mistakes could hide."""
    torch.manual_seed(0)
    fields = {"vocab_size": 65, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "bos_token_id": None,
              "eos_token_id": None}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields | changes)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.6)
    return model


def logits_of(model, ids):
    """The logits of a model of transformers."""
    with torch.no_grad():
        return model(ids).logits


def assert_same_logits(ours, theirs, vocab_size=65):
    """Assert that the models, ours and one of transformers, compute the same, at all positions."""
    ids = torch.randint(vocab_size, (3, ours.config.block_size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = ours(ids)[0]
    expected = logits_of(theirs, ids)
    assert expected.abs().max() > 1
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
