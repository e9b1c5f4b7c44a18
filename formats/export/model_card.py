"""The model card of an export, its README.md."""

from models.config import ModelConfig
from utils.forecast.parameters import count_parameters
from utils.quantities import quantity

TASKS = {"language": "It continues a text.", "dialogue": "It replies to messages.",
         "poem": "It writes a poem for a title.", "instruction": "It follows instructions in the Alpaca format."}


def model_card(title: str, class_name: str, config: ModelConfig, task: str, val_loss: float | None) -> str:
    """Return the text of a model card, in Markdown, for a class of transformers and the kind of the task."""
    remote = ", trust_remote_code=True" if class_name == "YourGPTForCausalLM" else ""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {title}",
        "",
        f"A GPT with {count_parameters(config):,} parameters, {quantity(config.n_blocks, 'blocks')}, an embedding "
        f"width of {config.n_embd}, a vocabulary of {config.vocab_size:,} tokens and a context of "
        f"{config.block_size:,} tokens, exported by YourGPT. {TASKS[task]}",
        "",
    ]
    if val_loss is not None:
        lines += [f"Validation loss: **{val_loss:.4f}** nats per token.", ""]
    if remote:
        lines += ["Its architecture is in `modeling_your_gpt.py`, which transformers runs only with "
                  "`trust_remote_code=True`.", ""]
    lines += [
        "```python",
        "from transformers import pipeline",
        "",
        f'generate = pipeline("text-generation", "PATH OF THIS FOLDER"{remote})',
        example_line(task),
        "```",
        "",
    ]
    return "\n".join(lines)


def example_line(task: str) -> str:
    """Return the line of the example that generates a text."""
    if task in ("dialogue", "poem"):
        return 'print(generate([{"role": "user", "content": "..."}])[0]["generated_text"][-1]["content"])'
    return 'print(generate("...")[0]["generated_text"])'
