"""The README.md of an exported model."""

from utils.forecast.parameters import count_parameters

TASKS = {"language": "It continues a text.", "dialogue": "It replies to messages.",
         "poem": "It answers a title with a poem.", "instruction": "It follows instructions in the Alpaca format."}


def write_card(title, class_name, c, task, val_loss):
    """The content of a model card for a ModelConfig, the kind of the task, and the validation loss or None."""
    remote = ", trust_remote_code=True" if class_name == "YourGPTForCausalLM" else ""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {title}",
        "",
        f"A GPT with {count_parameters(c):,} parameters, {c.n_blocks} blocks, an embedding width of {c.n_embd}, a "
        f"vocabulary of {c.vocab_size:,} tokens and a context of {c.block_size:,} tokens, exported by YourGPT. "
        f"{TASKS[task]}",
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
        prompt_line(task),
        "```",
        "",
    ]
    return "\n".join(lines)


def prompt_line(task):
    """The line of the example that generates a text."""
    if task in ("dialogue", "poem"):
        return 'print(generate([{"role": "user", "content": "..."}])[0]["generated_text"][-1]["content"])'
    return 'print(generate("...")[0]["generated_text"])'
