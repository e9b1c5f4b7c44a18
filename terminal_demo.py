"""Let a model write.

    python terminal_demo.py                                        the model that ships: type how a text begins
    python terminal_demo.py checkpoints/my_run/best.pt             a model of yours
    python terminal_demo.py --prompt "ROMEO:" --max_tokens 200     one reply, for a pipe

Text goes to standard output and all else to standard error. With --prompt that text is what the model adds, without the
prompt, and the end of a line. Where standard input is no terminal, each of its lines is a prompt or a command.
"""

import contextlib
import dataclasses
import os
import sys
import time
from functools import partial

from models.config import SamplingConfig
from models.generate import generate_text
from training.checkpoint import SHIPPED, load_model
from training.precision import inference_dtype, pick_device
from utils.errors import Parser, UserError, command
from utils.parameters import count_parameters

SETTINGS = {  # the fields of ReplyConfig: type, and what they do
    "temperature": (float, "below 1 the likely tokens become likelier, 0 always takes the likeliest"),
    "top_k": (int, "draw from this many of the likeliest tokens only"),
    "top_p": (float, "draw from the fewest tokens that have this much probability together"),
    "repetition_penalty": (float, "above 1, tokens that are in the context become less likely"),
    "seed": (int, "the same seed writes the same text"),
    "max_tokens": (int, "tokens in the reply to a prompt"),
}


@dataclasses.dataclass(frozen=True)
class ReplyConfig(SamplingConfig):
    """How a reply is drawn, and how long it is. Values that make no sense raise UserError."""

    max_tokens: int = 500

    def __post_init__(self):
        super().__post_init__()
        if self.max_tokens < 1:
            raise UserError(f"max_tokens cannot be {self.max_tokens}: give 1 or more")


def say(text):
    print(text, file=sys.stderr)


def shown(value):
    return "off" if value is None else value


def value_of(name, word):
    """The value of a setting, from what was typed. Raises UserError."""
    kind, can_be_off = SETTINGS[name][0], getattr(ReplyConfig, name) is None
    if word == "off" and can_be_off:
        return None
    try:
        return kind(word)
    except ValueError:
        number = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} cannot be {word!r}: give {number}{', or off' * can_be_off}") from None


class Demo:
    """A model that writes, and how it is asked to."""

    def __init__(self, path, device, config):
        self.device, self.config = device, config
        self.load(path)

    def load(self, path):
        """Take the model of a checkpoint. Raises UserError, and then the one before stays."""
        model, tokenizer = load_model(path, self.device)
        self.model, self.tokenizer, self.path = model.to(inference_dtype(self.device)), tokenizer, path

    def describe(self):
        n_params = count_parameters(self.model.config)
        say(f"{self.path}: {type(self.model).__name__}, {n_params:,} parameters, on {self.device}")

    def known(self, text):
        """The text without the characters that the vocabulary lacks, which are named."""
        unknown = self.tokenizer.unknown(text)
        if unknown:
            say(f"skipped, as the vocabulary lacks them: {', '.join(map(repr, unknown))}")
        return "".join(character for character in text if character not in unknown)

    def write(self, prompt, max_tokens):
        """Print what the model adds to a prompt, as it is made, and then how fast that was; so too after a Ctrl-C."""
        n_tokens, start = 0, time.perf_counter()
        try:
            for piece in generate_text(self.model, self.tokenizer, prompt, max_tokens, self.config):
                print(piece, end="", flush=True)
                n_tokens = min(n_tokens + 1, max_tokens)  # the last piece may be half a character that was left
        finally:
            seconds = time.perf_counter() - start
            print(flush=True)
            ansi = sys.stderr.isatty() and os.name != "nt"  # an older Windows console would show the codes
            dim, plain = ("\033[2m", "\033[0m") if ansi else ("", "")
            say(f"{dim}{n_tokens:,} tokens in {seconds:.1f} s, {n_tokens / seconds:,.0f} tokens/s{plain}")

    def obey(self, line):
        """Do a command: without a value it shows the present one. Raises UserError."""
        name, _, word = line.removeprefix("/").partition(" ")
        word = word.strip()
        if name == "help":
            for setting, (_, what) in SETTINGS.items():
                say(f"/{setting:<19} {what}: {shown(getattr(self.config, setting))}")
            say(f"/{'load':<19} another model: {self.path}")
            say(f"{'exit':<20} leave; so do quit and Ctrl-D")
        elif name == "load":
            if word:
                self.load(os.path.expanduser(word))
            self.describe()
        elif name in SETTINGS:
            if word:
                self.config = dataclasses.replace(self.config, **{name: value_of(name, word)})
            say(f"{name} {shown(getattr(self.config, name))}")
        else:
            raise UserError(f"there is no command /{name}: /help shows those there are")

    def talk(self):
        """Answer lines until exit or their end. A mistake or a Ctrl-C ends the answer, not the talk."""
        person = sys.stdin.isatty()
        encoding = None if person else "utf-8"  # None: as it is
        sys.stdin.reconfigure(encoding=encoding, errors="replace")  # what is no text becomes a character to be skipped
        if person:
            with contextlib.suppress(ImportError):  # Windows has none, and its console has a history of its own
                import readline  # noqa: F401  from now on input() knows arrow keys and history
            self.describe()
            say(f"Type how a text begins: the model goes on from there, for {self.config.max_tokens:,} tokens. "
                "Enter alone: it writes without end.\nCtrl-C ends a reply, /help shows what can be set, exit leaves.")
        while True:
            answering = False
            try:
                line = input("> " if person and sys.stdout.isatty() else "")
                answering = True
                if line.strip().removeprefix("/") in ("exit", "quit"):
                    return
                if line.startswith("/"):
                    self.obey(line)
                else:
                    prompt = self.known(line)
                    print(prompt, end="", flush=True)  # again, so that the text is read in one piece
                    self.write(prompt, self.config.max_tokens if line or not person else sys.maxsize)
            except UserError as error:
                say(f"error: {error}")
            except KeyboardInterrupt:
                if not answering:
                    say("\nexit or Ctrl-D leaves")
            except EOFError:
                if person:
                    say("")
                return


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", default=SHIPPED,
                        help="a .pt file of train.py or transformer_4d.py (%(default)s)")
    parser.add_argument("--prompt", help="continue this, once")
    for name, (_, what) in SETTINGS.items():
        parser.add_argument(f"--{name}", type=partial(value_of, name), default=getattr(ReplyConfig, name),
                            help=f"{what} ({shown(getattr(ReplyConfig, name))})")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    config = ReplyConfig(**{name: getattr(args, name) for name in SETTINGS})
    demo = Demo(args.checkpoint, pick_device(args.device), config)
    if args.prompt is None:
        demo.talk()
    else:
        demo.write(demo.known(args.prompt), config.max_tokens)


if __name__ == "__main__":
    main()
