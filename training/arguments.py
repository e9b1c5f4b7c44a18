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
from typing import Any, Literal, get_args, get_origin

import yaml

from training.settings import Settings
from utils.errors import UserError
from utils.fields import describe, parts_of
from utils.printable import one_line

EXAMPLE = "config/dev_model.yaml is an example"
MAX_YAML_BYTES = 1 << 20
PATHS = ("init", "data.path", "data.val_path", "data.tokenizer", "output.folder")  # settings in which ~ is expanded
UNUSABLE = re.compile("[\0\ud800-\udc7f\udd00-\udfff]")  # other surrogates stand for bytes of a file name
ALIASES = {"run_name": "run"}  # for torchrun, --run abbreviates an option of torchrun itself
YES, NO = ("yes", "true", "on"), ("no", "false", "off")


# ---- Settings --------------------------------------------------------------------------------------------------------


def all_settings() -> dict[str, dataclasses.Field]:
    """Return the dataclass fields of all settings, by names such as `run` and `training.seed`."""
    found = {}
    for field in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(field.type):
            found |= {f"{field.name}.{inner.name}": inner for inner in dataclasses.fields(field.type)}
        else:
            found[field.name] = field
    return found


def parse_settings(arguments: list[str]) -> Settings:
    """Return the Settings of a command line: a YAML file, which may be left out, then options that override it.

    Raises UserError for an unknown setting or an invalid value.
    """
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
        where = "--" if path is None or name in options else f"{path}: "
        section, _, field = name.rpartition(".")
        fields = sections.setdefault(section, {}) if section else top
        fields[field] = convert(name, value, where)
    for section, fields in sections.items():
        try:
            top[section] = Settings.__dataclass_fields__[section].type(**fields)
        except UserError as error:  # its message starts with the name of a field
            raise UserError(f"{section}.{error}") from None
    return Settings(**top)


def settings_of_run(given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings.yaml of the run that is resumed with the settings `given`, flat; {} if there is none."""
    folder = convert("output.folder", given.get("output.folder", all_settings()["output.folder"].default))
    path = Path(folder) / given["run"] / "settings.yaml"
    return read_settings(path) if path.is_file() else {}


def check_init(options: dict[str, str], before: dict[str, Any]) -> None:
    """Raise UserError if the options name another --init than `before`, the settings of the run to resume."""
    if "init" not in options or "init" not in before:
        return
    new, old = (convert("init", settings["init"]) for settings in (options, before))
    if start_folder(new) != start_folder(old):
        raise UserError(f"the run started from {old or 'new weights'}, not {new or 'new weights'}: leave out --init, "
                        "or start a new run with --run NAME")


def start_folder(init: str | None) -> str | None:
    """Return the absolute path of a checkpoint to start from, without the best.pt that a folder stands for."""
    return None if init is None else os.path.realpath(init).removesuffix(f"{os.sep}best.pt")


# ---- Command line ----------------------------------------------------------------------------------------------------


def parse_options(arguments: list[str]) -> dict[str, str]:
    """Return {"training.seed": "1"} for ["--training.seed", "1"] or ["--training.seed=1"].

    Raises UserError for an unknown setting or a missing value.
    """
    found, names, rest = {}, all_settings(), list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        name = ALIASES.get(name, name)
        if not argument.startswith("--"):
            raise UserError(f"unexpected argument {argument}: the YAML file comes first, options are --name value, and "
                            'several texts are --data.path "[a.txt, b.txt]"')
        if name not in names:
            raise unknown_setting_error(f"--{name}", name)
        if name == "resume" and not equals:
            value = "true"
        elif not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"--{name} needs a value: --{name} {describe(names[name].type)}")
            value = rest.pop(0)
        found[name] = value
    return found


def parse_list(text: str) -> str | list:
    """Return the strings in "[a, b]", or the text itself if it is not a list, such as a file name with a bracket."""
    try:
        found = load_yaml(text) if text.startswith("[") else text
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):  # PyYAML raises all of them
        return text
    return found if isinstance(found, list) else text


def unknown_setting_error(option: str, name: str) -> UserError:
    """Return the UserError for an unknown setting, with the closest full or short name as a suggestion."""
    names = all_settings()
    by_short_name = {full.rpartition(".")[2]: full for full in names}
    sections = {full.partition(".")[0] for full in names}
    short = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, 1, cutoff=0.8)
    close = close or [by_short_name[match] for match in difflib.get_close_matches(short, by_short_name, 1, cutoff=0.8)]
    close = close or difflib.get_close_matches(name, sections, 1, cutoff=0.8)
    suggestion = f"did you mean {close[0]}? " if close else ""
    return UserError(f"there is no setting {option}: {suggestion}python train.py --help lists all")


# ---- YAML ------------------------------------------------------------------------------------------------------------


class StrictLoader(yaml.BaseLoader):
    """A YAML loader that reads every value as text, and refuses aliases and duplicate keys."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=True)


def load_yaml(text: str) -> Any:
    """Return the content of a YAML text, where every value is text."""
    return yaml.load(text, StrictLoader)


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the settings in a YAML file, flat: {"training.seed": "1"}. Blank values are left out.

    Raises UserError if the file cannot be read or is not valid.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a file: give a YAML file: {EXAMPLE}")
        if status.st_size > MAX_YAML_BYTES:
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


def flatten(path: str | Path, found: dict) -> dict[str, Any]:
    """Return the settings found in the YAML file `path` without sections. Raises UserError for unknown settings."""
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
                raise unknown_setting_error(f"{setting} in {path}", setting)
            if inner != "":
                flat[setting] = inner
    return flat


# ---- Values ----------------------------------------------------------------------------------------------------------


def convert(name: str, value: str | list, where: str = "--") -> Any:
    """Convert text, or a list of texts, to the type of a setting.

    Raises UserError, with `where` in front of the name of the setting.
    """
    kind = all_settings()[name].type
    for part in sorted(parts_of(kind), key=lambda part: part is str):  # str is last: every value is text
        try:
            converted = convert_to(part, value)
        except (ValueError, OverflowError):
            continue
        if name in PATHS and isinstance(converted, str):
            return os.path.expanduser(converted)
        if name in PATHS and isinstance(converted, list):
            return [os.path.expanduser(path) for path in converted]
        return converted
    raise UserError(f"{where}{name} cannot be {one_line(str(value), 80)}: use {describe(kind)}")


def convert_to(kind: Any, value: str | list) -> Any:
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
        return to_choice(get_args(kind), value.strip(), word)
    if kind is int:
        return to_integer(value)
    if kind is float and math.isfinite(float(value)):
        return float(value)
    if kind is str and not UNUSABLE.search(value):
        return value
    raise ValueError


def to_choice(choices: tuple[str, ...], value: str, word: str) -> str:
    """Return the one of `choices` that a value is; yes and no may be written as true and false. Raises ValueError."""
    if value in choices:
        return value
    for choice, words in (("yes", YES), ("no", NO)):
        if choice in choices and word in words:
            return choice
    raise ValueError


def to_integer(value: str) -> int:
    """Convert text such as 1000 or 1e3 to an integer. Raises ValueError."""
    try:
        return int(value)
    except ValueError:
        number = float(value)
        if not number.is_integer():
            raise
        return int(number)


# ---- Help ------------------------------------------------------------------------------------------------------------


def help_text() -> str:
    """Return the names, descriptions and defaults of all settings, by section."""
    lines = []
    for field in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(field.type):
            lines += ["", f"{field.name}: {inspect.getdoc(field.type)}"]
            for inner in dataclasses.fields(field.type):
                lines += describe_setting(f"{field.name}.{inner.name}", inner, field_docstrings(field.type))
        else:
            lines += describe_setting(field.name, field, field_docstrings(Settings))
    return "\n".join(lines)


def describe_setting(name: str, field: dataclasses.Field, descriptions: dict[str, str]) -> list[str]:
    """Return the lines of a setting in the help text."""
    text = " ".join(descriptions.get(field.name, "").split())
    default = "" if field.name in ("run", "resume") else f" ({field.default})"
    return textwrap.wrap(f"--{name}  {text}{default}", 110, initial_indent="  ", subsequent_indent="        ")


def field_docstrings(section: type) -> dict[str, str]:
    """Return the string below each field of a dataclass and its bases, by field name."""
    found = {}
    for base in reversed(section.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[field.target.id] = text.value.value
    return found
