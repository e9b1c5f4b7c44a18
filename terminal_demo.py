"""Generate text with a trained model.

    python terminal_demo.py                                        the checkpoint that ships: type a prompt
    python terminal_demo.py checkpoints/my_run                     a checkpoint, or a folder with a best.pt
    python terminal_demo.py --prompt "ROMEO:" --max_tokens 200     one completion, for a pipe

Generated text goes to standard output, everything else to standard error. With --prompt the output is the completion
without the prompt, and a newline. If standard input is not a terminal, each line of it is a prompt or a command.
"""

import contextlib
import dataclasses
import os
import shlex
import sys
import time
from functools import partial

from data.tokenizer import quote_all
from models.config import SamplingConfig
from models.generate import generate_text
from training.checkpoint import SHIPPED, load_model
from training.precision import inference_dtype, pick_device
from utils.errors import Parser, UserError, command
from utils.parameters import count_parameters
from utils.printable import escape_controls, one_line

SETTINGS = {  # the fields of ReplyConfig: type and description
    "temperature": (float, "below 1 makes likely tokens likelier, 0 always takes the most likely one"),
    "top_k": (int, "sample only from this many of the most likely tokens"),
    "top_p": (float, "sample only from the smallest set of tokens with this total probability"),
    "repetition_penalty": (float, "above 1 makes tokens that are in the context less likely"),
    "seed": (int, "fixed seed: reproducible output, with the same number of threads"),
    "max_tokens": (int, "maximum number of tokens to generate for a prompt"),
}


@dataclasses.dataclass(frozen=True)
class ReplyConfig(SamplingConfig):
    """How a reply is sampled, and its length. Raises UserError for values outside their range."""

    max_tokens: int = 500

    def __post_init__(self):
        super().__post_init__()
        if self.max_tokens < 1:
            raise UserError(f"max_tokens cannot be {self.max_tokens}: give a number >= 1")


def print_message(text):
    print(one_line(text), file=sys.stderr)


def print_text(text):
    """Print a prompt or generated text: unchanged to a pipe, without control sequences to a terminal."""
    print(escape_controls(text) if sys.stdout.isatty() else text, end="", flush=True)


def parse_value(name, text):
    """The value of a setting, from its text. Raises UserError."""
    kind, optional = SETTINGS[name][0], getattr(ReplyConfig, name) is None
    if text == "off" and optional:
        return None
    try:
        return kind(text)
    except ValueError:
        expected = "an integer" if kind is int else "a number"
        if optional:
            expected += ", or off"
        raise UserError(f"{name} cannot be {text!r}: give {expected}") from None


def format_value(value):
    return "off" if value is None else value


def parse_path(text):
    """The path in the text of a command, which may be quoted or escaped like one dropped onto a terminal."""
    path = os.path.expanduser(text)
    if not os.path.exists(path):
        with contextlib.suppress(ValueError):  # an unmatched quote
            words = shlex.split(text, posix=os.name != "nt")  # the backslashes of Windows are no escapes
            if len(words) == 1:
                path = os.path.expanduser(words[0].strip("\"'"))
    return path


class Demo:
    """A model and its sampling settings, which commands can change."""

    def __init__(self, path, device, config):
        self.device, self.config = device, config
        self.load(path)

    def load(self, path):
        """Load another checkpoint. Raises UserError and then keeps the current model."""
        model, tokenizer = load_model(path, self.device)
        self.model, self.tokenizer, self.path = model.to(inference_dtype(self.device)), tokenizer, path

    def print_model(self):
        n_params = count_parameters(self.model.config)
        print_message(f"{self.path}: {type(self.model).__name__}, {n_params:,} parameters, on {self.device}")

    def remove_unknown_characters(self, text):
        """Return the text without the characters that are not in the vocabulary, and report those."""
        unknown = self.tokenizer.unknown(text)
        if not unknown:
            return text
        print_message(f"skipped, not in the vocabulary: {quote_all(unknown)}")
        return text.translate(dict.fromkeys(map(ord, unknown)))

    def print_reply(self, prompt, max_tokens):
        """Stream a completion of the prompt, then print the speed, also after Ctrl-C."""
        n_tokens, start = 0, time.perf_counter()
        try:
            for piece in generate_text(self.model, self.tokenizer, prompt, max_tokens, self.config):
                print_text(piece)
                n_tokens = min(n_tokens + 1, max_tokens)  # the last piece may be an incomplete character, not a token
        finally:
            seconds = time.perf_counter() - start
            print(flush=True)
            speed = f"{n_tokens:,} tokens in {seconds:.1f} s, {n_tokens / seconds:,.0f} tokens/s"
            if sys.stderr.isatty() and os.name != "nt":  # older Windows consoles print the codes
                speed = f"\033[2m{speed}\033[0m"  # dim
            print(speed, file=sys.stderr)

    def run_command(self, line):
        """Run a command such as `/top_k 5`. Without a value it prints the current one. Raises UserError."""
        name, _, argument = line.removeprefix("/").partition(" ")
        argument = argument.strip()
        if name == "help":
            for setting, (_, description) in SETTINGS.items():
                print_message(f"/{setting:<19} {description}: {format_value(getattr(self.config, setting))}")
            print_message(f"/{'load':<19} load another checkpoint: {self.path}")
            print_message(f"{'exit':<20} quit; quit and Ctrl-D do the same")
        elif name == "load":
            if argument:
                self.load(parse_path(argument))
            self.print_model()
        elif name in SETTINGS:
            if argument:
                self.config = dataclasses.replace(self.config, **{name: parse_value(name, argument)})
            print_message(f"{name} {format_value(getattr(self.config, name))}")
        else:
            raise UserError(f"unknown command /{name}: /help lists the commands")

    def run_repl(self):
        """Complete the prompts on standard input until `exit` or its end. Errors and Ctrl-C end a reply only."""
        interactive = sys.stdin.isatty()
        if interactive:
            sys.stdin.reconfigure(errors="replace")
            with contextlib.suppress(ImportError):  # not on Windows, where the console itself has a history
                import readline  # noqa: F401  gives input() arrow keys and history
            self.print_model()
            print_message(f"Type a prompt: the model continues it for up to {self.config.max_tokens:,} tokens. "
                          "An empty line generates text without a prompt until Ctrl-C.")
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
                if line.startswith("/"):
                    self.run_command(line)
                else:
                    prompt = self.remove_unknown_characters(line)
                    print_text(prompt)  # the prompt again, so that the output is a complete text
                    endless = interactive and not line
                    self.print_reply(prompt, sys.maxsize if endless else self.config.max_tokens)
            except UserError as error:
                print_message(f"error: {error}")
            except KeyboardInterrupt:
                if not replying:
                    print("\nexit or Ctrl-D quits", file=sys.stderr)
            except EOFError:
                if interactive:
                    print(file=sys.stderr)
                return


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", default=SHIPPED,
                        help="a checkpoint of train.py or transformer_4d.py (%(default)s)")
    parser.add_argument("--prompt", help="complete this prompt and exit")
    for name, (_, description) in SETTINGS.items():
        parser.add_argument(f"--{name}", type=partial(parse_value, name), default=getattr(ReplyConfig, name),
                            help=f"{description} ({format_value(getattr(ReplyConfig, name))})")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    config = ReplyConfig(**{name: getattr(args, name) for name in SETTINGS})
    demo = Demo(args.checkpoint, pick_device(args.device), config)
    if args.prompt is None:
        demo.run_repl()
    else:
        demo.print_reply(demo.remove_unknown_characters(args.prompt), config.max_tokens)


if __name__ == "__main__":
    main()
