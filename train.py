"""Train a model of the zoo.

    python train.py config/bard_gpt.yaml
    python train.py config/bard_gpt.yaml --training.max_iters 100 --model.n_blocks 4 --run small
    python train.py config/bard_gpt.yaml --resume
"""

import argparse
import sys
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from training.settings import Settings
from utils.errors import UserError, command
from utils.streams import optional_output


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help with the lines of the description as they are, and with the defaults."""


def read_yaml(path):
    """The dictionary in a YAML file. Raises UserError."""
    example = "config/dev_model.yaml shows how one looks"
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))  # some editors on Windows write a signature
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Give a YAML file: {example}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise UserError(f"{path} is not YAML in UTF-8{where}: {example}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no settings: {example}")
    return found


def parse(arguments):
    """Settings from the command line: a YAML file, if one comes first, and what is changed of it. Raises UserError."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(description=__doc__, formatter_class=HelpFormatter, exit_on_error=False)
    parser.add_argument("--resume", action="store_true", help="go on where the run stopped")
    parser.add_class_arguments(Settings, skip={"resume"})
    path = arguments[0] if arguments and not arguments[0].startswith("-") else None
    try:
        begun = parser.parse_object(read_yaml(path), defaults=False) if path else None
        found = parser.parse_args(arguments[1:] if path else arguments, begun)
    except ArgumentError as error:
        raise UserError(f"{' '.join(str(error).split())}. python train.py --help explains every setting") from None
    settings = Settings(**vars(parser.instantiate(found)))
    settings.run = settings.run or (Path(path).stem if path else "run")
    return settings


@command
def main():
    settings = parse(sys.argv[1:])
    from training.run import train  # here, so that --help need not wait for torch

    with optional_output():
        train(settings)


if __name__ == "__main__":
    main()
