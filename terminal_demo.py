"""Talk to a trained model: it continues a text, chats, writes a poem for a title, or classifies.

    python terminal_demo.py                                        the checkpoint that ships: type a prompt
    python terminal_demo.py checkpoints/my_run                     a checkpoint, or a folder with a best.pt
    python terminal_demo.py gpt2                                   a model of the Hugging Face hub, or a folder with one
    python terminal_demo.py --prompt "ROMEO:" --max_tokens 200     one completion, for a pipe

Generated text goes to standard output, everything else to standard error. With --prompt the output is the completion
without the prompt, and a newline. If standard input is not a terminal, each line of it is a prompt or a command.

In a script: `from terminal_demo import chat; chat("你好")`.
"""

import argparse
import contextlib
import dataclasses
import os
import shlex
import sys
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from models.config import ReplyConfig
from models.quantize import int8_summary, quantize_int8
from tasks.kinds import answers_class
from tokenization.characters import quote_all
from training.checkpoint import CHECKPOINT_HELP, SHIPPED, Loaded, checkpoint_file, load_checkpoint
from training.precision import avoid_attention_plans, inference_dtype, pick_device
from utils.errors import Parser, UserError, command
from utils.files import PROJECT, stamp
from utils.forecast.parameters import count_parameters
from utils.printable import escape_controls, one_line
from utils.quantities import quantity

CAN_BE_OFF = ("top_k", "top_p", "seed")
SETTINGS = {  # the fields of ReplyConfig: type and description
    "temperature": (float, "below 1 makes likely tokens likelier, 0 always takes the most likely one"),
    "top_k": (int, "sample only from this many of the most likely tokens"),
    "top_p": (float, "sample only from the smallest set of tokens with this total probability"),
    "repetition_penalty": (float, "above 1 makes tokens in the context less likely"),
    "seed": (int, "fixed seed: reproducible output, with the same number of threads"),
    "max_tokens": (int, "maximum number of tokens to generate for a prompt"),
    "candidates": (int, "for dialogue: sample this many replies, and print the one that depends most on the messages"),
}
CHAT_MODEL = PROJECT / "checkpoints" / "chat_small"


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", default=SHIPPED, help=CHECKPOINT_HELP)
    parser.add_argument("--prompt", help="complete this prompt and exit")
    for name, (_, description) in SETTINGS.items():
        parser.add_argument(f"--{name}", type=partial(parse_value, name), default=argparse.SUPPRESS,
                            help=f"{description} (default: as in the checkpoint)")
    parser.add_argument("--quantize", choices=("int8",), help="quantize the weights: a quarter of the size in float32")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    changes = {name: value for name, value in vars(args).items() if name in SETTINGS}
    demo = Demo(args.checkpoint, pick_device(args.device), changes, args.quantize)
    if args.prompt is None:
        demo.run_repl()
    else:
        demo.print_answer(demo.remove_unknown_characters(args.prompt), demo.config)


class Demo:
    """A model and its sampling settings, which commands can change."""

    def __init__(self, path: str | Path, device: str, changes: dict[str, Any], quantize: str | None = None):
        """Load a checkpoint; `changes` are the fields of ReplyConfig that differ from its own."""
        self.device, self.changes, self.quantize = device, changes, quantize
        self.load(path)

    def load(self, path: str | Path) -> None:
        """Load another checkpoint, and forget the conversation. After UserError, the current model is kept."""
        self.model, self.tokenizer, task, reply = load(path, self.device, self.quantize)
        self.config, self.path = dataclasses.replace(reply, **self.changes), path
        self.session = answers_class(task)(self.model, self.tokenizer, task, print_message)
        if self.quantize == "int8":
            print_message(int8_summary(self.model.config))

    def run_repl(self) -> None:
        """Answer the lines on standard input until `exit` or its end. Errors and Ctrl-C only end a reply."""
        interactive = sys.stdin.isatty()
        if interactive:
            sys.stdin.reconfigure(errors="replace")
            with contextlib.suppress(ImportError):  # not on Windows, where the console itself has a history
                import readline  # noqa: F401  gives input() arrow keys and history
            self.print_model()
            print_message(self.session.hint)
            print_message("Ctrl-C stops a reply, /help lists the settings, exit quits.")
        else:  # a file from Windows may begin with a byte order mark and end its lines with \r\n
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="replace", newline=None)
        while True:
            replying = False
            try:
                line = input("> " if interactive and sys.stdout.isatty() else "")
                replying = True
                if line.strip().removeprefix("/") in ("exit", "quit"):
                    return
                is_flush = line.strip() == "flush" and self.session.has_history
                if is_flush or line.startswith("/"):
                    self.run_command(line)
                else:
                    self.answer_line(line, interactive)
            except UserError as error:
                print_message(f"error: {error}")
            except KeyboardInterrupt:
                if not replying:
                    print("\nexit or Ctrl-D quits", file=sys.stderr)
            except EOFError:
                if interactive:
                    print(file=sys.stderr)
                return

    def print_model(self) -> None:
        """Print the name, the size and the device of the model."""
        n_params = count_parameters(self.model.config)
        print_message(f"{self.path}: {type(self.model).__name__}, {n_params:,} parameters, on {self.device}")

    def answer_line(self, line: str, interactive: bool) -> None:
        """Answer one line of standard input."""
        prompt, config = self.remove_unknown_characters(line), self.config
        if self.session.continues_text:
            print_text(prompt)  # so that the output is a complete text
            if interactive and not line:  # until Ctrl-C
                config = dataclasses.replace(config, max_tokens=sys.maxsize)
        elif not prompt.strip():
            raise UserError("there is nothing to answer: type some text")
        self.print_answer(prompt, config)

    def remove_unknown_characters(self, text: str) -> str:
        """Return a text without the characters that are not in the vocabulary, and print which these are."""
        text, unknown = self.tokenizer.without_unknown(text)
        if unknown:
            print_message(f"skipped, not in the vocabulary: {quote_all(unknown)}")
        return text

    def print_answer(self, prompt: str, config: ReplyConfig) -> None:
        """Stream the answer to a prompt, then print the speed, also after Ctrl-C."""
        n_pieces, start = 0, time.perf_counter()
        try:
            for piece in self.session.answer(prompt, config):
                print_text(piece)
                n_pieces += 1
        finally:
            seconds = time.perf_counter() - start
            print(flush=True)
            if self.session.streams and config.candidates == 1:
                print_speed(min(n_pieces, config.max_tokens), seconds)  # one more if the last character is incomplete

    def run_command(self, line: str) -> None:
        """Run a command such as `/top_k 5`, or print the current value for `/top_k`.

        Raises UserError for an unknown command or an invalid value.
        """
        name, _, argument = line.removeprefix("/").partition(" ")
        argument = argument.strip()
        if name == "help":
            print_message(self.session.hint)
            for setting, (_, description) in SETTINGS.items():
                print_message(f"/{setting:<19} {description}: {format_value(getattr(self.config, setting))}")
            print_message(f"/{'load':<19} load another checkpoint: {self.path}")
            if self.session.has_history:
                print_message(f"/{'flush':<19} forget the conversation so far")
            print_message(f"{'Ctrl-C':<20} stop a reply")
            print_message(f"{'exit':<20} quit; quit and Ctrl-D do the same")
        elif name == "load":
            if argument:
                self.load(parse_path(argument))
            self.print_model()
        elif name == "flush" and self.session.has_history:
            self.session.flush()
            print_message("forgot the conversation so far")
        elif name in SETTINGS:
            if argument:
                value = parse_value(name, argument)
                self.config = dataclasses.replace(self.config, **{name: value})
                self.changes[name] = value
            print_message(f"{name} {format_value(getattr(self.config, name))}")
        else:
            raise UserError(f"unknown command /{name}: /help lists the commands")


def load(path: str | Path, device: str, quantize: str | None = None) -> Loaded:
    """Load a checkpoint, with weights in the dtype for inference; `quantize` is None or "int8"."""
    avoid_attention_plans()
    loaded = load_checkpoint(path, device)
    if quantize == "int8":
        quantize_int8(loaded.model)
    return loaded._replace(model=loaded.model.to(inference_dtype(device)))


def print_message(text: str) -> None:
    """Print a line that is not generated text, to standard error."""
    print(one_line(text), file=sys.stderr)


def print_text(text: str) -> None:
    """Print a prompt or generated text: unchanged to a pipe, with control characters escaped to a terminal."""
    print(escape_controls(text) if sys.stdout.isatty() else text, end="", flush=True)


def print_speed(n_tokens: int, seconds: float) -> None:
    """Print the speed of generation, dimmed in a terminal."""
    speed = f"{quantity(n_tokens, 'tokens')} in {seconds:.1f} s, {n_tokens / seconds:,.0f} tokens/s"
    if sys.stderr.isatty() and os.name != "nt":  # older Windows consoles print the codes
        speed = f"\033[2m{speed}\033[0m"  # dim
    print(speed, file=sys.stderr)


def parse_value(name: str, text: str) -> Any:
    """Return the value of a setting, from its text. Raises UserError if it is not valid."""
    kind, optional = SETTINGS[name][0], name in CAN_BE_OFF
    if text == "off" and optional:
        return None
    try:
        return kind(text)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        if optional:
            expected += ", or off"
        raise UserError(f"{name} cannot be {text!r}: give {expected}") from None


def format_value(value: Any) -> Any:
    """Return how a setting is printed."""
    return "off" if value is None else value


def parse_path(text: str) -> str:
    """Return the path in the text of a command, which may be quoted or escaped like one dropped onto a terminal."""
    path = os.path.expanduser(text)
    if not os.path.exists(path):
        with contextlib.suppress(ValueError):  # an unmatched quote
            words = shlex.split(text, posix=os.name != "nt")  # on Windows, a backslash is no escape
            if len(words) == 1:
                path = os.path.expanduser(words[0].strip("\"'"))
    return path


# ---- In a script -----------------------------------------------------------------------------------------------------


def chat(message: str, history: list[str] | None = None, checkpoint: str | Path = CHAT_MODEL, device: str = "auto",
         **sampling: Any) -> str:
    """Return the reply of a dialogue model to a message.

    Calls are independent, unless `history` is given: a list of the messages so far, to which message and reply are
    appended. `sampling` changes fields of ReplyConfig, such as `temperature=0`. Raises UserError if the checkpoint is
    not a dialogue model.
    """
    model, tokenizer, task, reply = load_once(checkpoint, pick_device(device))
    conversation = answers_class(task)(model, tokenizer, task, print_message)
    if not conversation.has_history:
        raise UserError(f"{checkpoint} is for the task {task['kind']}: train a dialogue model with "
                        "python train.py config/chat_small.yaml")
    if history is not None:
        conversation.history = history
    message, _ = tokenizer.without_unknown(message)
    config = conversation.with_max_tokens(dataclasses.replace(reply, **sampling))
    return "".join(conversation.answer(message, config))


def load_once(path: str | Path, device: str) -> Loaded:
    """Load a checkpoint, unless the last call was for the same file and it has not changed since."""
    file = checkpoint_file(path)
    if not os.path.isfile(file):  # a model of another project
        file = Path(path)
    return load_version(str(file), stamp(file) if os.path.exists(file) else None, device)


@lru_cache(maxsize=1)
def load_version(path: str | Path, version: Any, device: str) -> Loaded:
    """Load the version of a checkpoint that has this stamp."""
    return load(path, device)


if __name__ == "__main__":
    main()
