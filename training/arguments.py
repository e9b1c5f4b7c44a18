"""Settings from a YAML file and the command line.

All values are read as text and converted to the types of the dataclasses in training/settings.py, so that a YAML file
and the command line accept the same values, and `run: 2024-05-01` is a name, not a date.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import os
import re
import stat
import textwrap
from pathlib import Path
from types import NoneType
from typing import Literal, get_args, get_origin

import yaml

from training.settings import Settings
from utils.errors import UserError
from utils.fields import describe, parts_of
from utils.printable import one_line

EXAMPLE = "config/dev_model.yaml is an example"
LARGEST_YAML = 1 << 20  # bytes
PATHS = ("init", "data.path", "data.val_path", "data.tokenizer", "output.folder")  # settings in which ~ is expanded
UNUSABLE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # the surrogates between stand for bytes of a file name
ALIASES = {"run_name": "run"}  # torchrun takes --run for an abbreviation of an option of its own
YES, NO = ("yes", "true", "on"), ("no", "false", "off")


# ---- Settings --------------------------------------------------------------------------------------------------------


def all_settings():
    """The dataclass fields of all settings, by name: `run`, `training.seed`."""
    found = {}
    for field in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(field.type):
            found |= {f"{field.name}.{inner.name}": inner for inner in dataclasses.fields(field.type)}
        else:
            found[field.name] = field
    return found


def parse_settings(arguments):
    """The Settings that a list of command-line arguments describes: first a YAML file, if there is one, then options
    that override it. Raises UserError."""
    given, path = {}, None
    if arguments and not arguments[0].startswith("-"):
        path, *arguments = arguments
        given = read_settings(path)
    options = parse_options(arguments)
    top, sections = {"run": Path(path).stem if path else "run"}, {}
    if convert("resume", options.get("resume", "false")):
        before = settings_of_run(top | given | options)
        check_init(options, before)
        if path is None:
            given = before
        elif "init" in before:
            given["init"] = before["init"]
    for name, value in (given | options).items():
        section, _, short = name.rpartition(".")
        fields = sections.setdefault(section, {}) if section else top
        in_yaml = path is not None and name not in options
        fields[short or section] = convert(name, value, f"{path}: " if in_yaml else "--")
    for section, fields in sections.items():
        try:
            top[section] = Settings.__dataclass_fields__[section].type(**fields)
        except UserError as error:  # its message starts with the name of a field
            raise UserError(f"{section}.{error}") from None
    return Settings(**top)


def settings_of_run(given):
    """The settings.yaml of the run that is resumed with the settings `given`, flat; empty if there is none."""
    folder = convert("output.folder", given.get("output.folder", all_settings()["output.folder"].default))
    path = Path(folder) / given["run"] / "settings.yaml"
    return read_settings(path) if path.is_file() else {}


def check_init(options, before):
    """Raise UserError if the options name another checkpoint to start from than the settings of the run that is
    resumed."""
    if "init" not in options or "init" not in before:
        return
    new, old = (convert("init", settings["init"]) for settings in (options, before))
    if start_folder(new) != start_folder(old):
        new, old = ("new weights" if init is None else init for init in (new, old))
        raise UserError(f"the run started from {old}, not {new}: leave out --init, or start a new run with --run NAME")


def start_folder(init):
    """The path of a checkpoint to start from, without the best.pt that a folder stands for; None for none."""
    return None if init is None else os.path.realpath(init).removesuffix(f"{os.sep}best.pt")


# ---- Command line ----------------------------------------------------------------------------------------------------


def parse_options(arguments):
    """{"training.seed": "1"} for ["--training.seed", "1"] or ["--training.seed=1"]. Raises UserError."""
    found, names, rest = {}, all_settings(), list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        name = ALIASES.get(name, name)
        if not argument.startswith("--"):
            raise UserError(f"unexpected argument {argument}: the YAML file comes first, options are --name value, and "
                            'several texts are --data.path "[a.txt, b.txt]"')
        if name not in names:
            raise unknown_setting(f"--{name}", name)
        if name == "resume" and not equals:
            value = "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{name} needs a value: --{name} {describe(names[name].type)}")
            value = rest.pop(0)
        found[name] = value
    return found


def parse_list(text):
    """The strings in "[a, b]"; other text, such as a file name with a bracket, is returned as it is."""
    try:
        found = load_yaml(text) if text.startswith("[") else text
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # all of them from PyYAML
        return text
    return found if isinstance(found, list) else text


def unknown_setting(shown, name):
    """The UserError for an unknown setting; suggests the one with the closest full or short name."""
    names = all_settings()
    short = {known.rpartition(".")[2]: known for known in names}
    sections = {known.partition(".")[0] for known in names}
    last = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, 1, cutoff=0.8)
    close = close or [short[match] for match in difflib.get_close_matches(last, short, 1, cutoff=0.8)]
    close = close or difflib.get_close_matches(name, sections, 1, cutoff=0.8)
    suggestion = f"did you mean {close[0]}? " if close else ""
    return UserError(f"there is no setting {shown}: {suggestion}python train.py --help lists all")


# ---- YAML ------------------------------------------------------------------------------------------------------------


class StrictLoader(yaml.BaseLoader):
    """A YAML loader that reads every value as text, and refuses aliases and duplicate keys."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=True)


def load_yaml(text):
    return yaml.load(text, StrictLoader)


def read_settings(path):
    """The settings in a YAML file, flat: {"training.seed": "1"}. Blank values are left out. Raises UserError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a file: give a YAML file: {EXAMPLE}")
        if status.st_size > LARGEST_YAML:
            raise UserError(f"{path} has {status.st_size:,} bytes, too many for settings: {EXAMPLE}")
        found = load_yaml(Path(path).read_text(encoding="utf-8-sig"))  # some editors on Windows write a mark
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Give a YAML file: {EXAMPLE}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise UserError(f"{path}, line {line}, is not valid YAML: {error.problem}. {EXAMPLE}") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise UserError(f"{path} is not YAML in UTF-8: {EXAMPLE}") from None
    except (RecursionError, ValueError, OverflowError):
        raise UserError(f"{path} is nested too deeply, or not YAML: {EXAMPLE}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} contains no settings: {EXAMPLE}")
    return flatten(path, found)


def flatten(path, found):
    """The dictionary in the YAML file `path` without its sections. Raises UserError for unknown settings."""
    names, flat = all_settings(), {}
    sections = {name.partition(".")[0] for name in names if "." in name}
    for name, value in found.items():
        if name not in sections:
            values = {name: value}
        elif isinstance(value, dict):
            values = {f"{name}.{key}": inner for key, inner in value.items()}
        elif value == "":  # all its lines are commented out
            continue
        else:
            raise UserError(f"{path}: {name} is a section, with settings indented below it: {EXAMPLE}")
        for setting, inner in values.items():
            if setting not in names:
                raise unknown_setting(f"{setting} in {path}", setting)
            if inner != "":
                flat[setting] = inner
    return flat


# ---- Values ----------------------------------------------------------------------------------------------------------


def convert(name, value, where="--"):
    """Convert text, or a list of texts, to the type of a setting. Raises UserError, which puts `where` before its
    name."""
    kind = all_settings()[name].type
    for part in sorted(parts_of(kind), key=lambda part: part is str):  # last, as none and lists are text, too
        try:
            converted = convert_to(part, value)
        except (ValueError, OverflowError):
            continue
        if name in PATHS and isinstance(converted, str):
            return os.path.expanduser(converted)
        if name in PATHS and isinstance(converted, list):
            return [os.path.expanduser(path) for path in converted]
        return converted
    shown = one_line(value if isinstance(value, str) else str(value), 80)
    raise UserError(f"{where}{name} cannot be {shown}: use {describe(kind)}")


def convert_to(kind, value):
    """Convert text, or a list of texts, to one type. Raises ValueError."""
    if get_origin(kind) in (list, tuple):
        value = parse_list(value) if isinstance(value, str) else value
        if not isinstance(value, list):
            raise ValueError
        kinds = get_args(kind)
        if get_origin(kind) is list or Ellipsis in kinds:
            kinds = [kinds[0]] * len(value)
        return get_origin(kind)(convert_to(part, text) for part, text in zip(kinds, value, strict=True))
    if not isinstance(value, str):
        raise ValueError
    word = value.strip().lower()
    if kind is NoneType and word in ("none", "null", "~"):
        return None
    if kind is bool and word in YES + NO:
        return word in YES
    if get_origin(kind) is Literal:
        return as_choice(get_args(kind), value.strip(), word)
    if kind is int:
        return as_integer(value)
    if kind is float and math.isfinite(float(value)):
        return float(value)
    if kind is str and not UNUSABLE.search(value):
        return value
    raise ValueError


def as_choice(choices, value, word):
    """One of `choices`; yes and no may be written as true and false. Raises ValueError."""
    if value in choices:
        return value
    for choice, words in (("yes", YES), ("no", NO)):
        if choice in choices and word in words:
            return choice
    raise ValueError


def as_integer(value):
    """An integer, which may be written as 1e3. Raises ValueError."""
    try:
        return int(value)
    except ValueError:
        number = float(value)
        if not number.is_integer():
            raise
        return int(number)


# ---- Help ------------------------------------------------------------------------------------------------------------


def help_text():
    """A line for each setting, by section: its name, what it is, and its default."""
    lines = []
    for field in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(field.type):
            lines += ["", f"{field.name}: {inspect.getdoc(field.type)}"]
            for inner in dataclasses.fields(field.type):
                lines += describe_setting(f"{field.name}.{inner.name}", inner, docstrings(field.type))
        else:
            lines += describe_setting(field.name, field, docstrings(Settings))
    return "\n".join(lines)


def describe_setting(name, field, texts):
    text = " ".join(texts.get(field.name, "").split())
    default = "" if field.name in ("run", "resume") else f" ({field.default})"
    return textwrap.wrap(f"--{name}  {text}{default}", 110, initial_indent="  ", subsequent_indent="        ")


def docstrings(section):
    """The string below each field of a dataclass and its bases."""
    found = {}
    for base in reversed(section.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[field.target.id] = text.value.value
    return found
