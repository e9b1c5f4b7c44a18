"""How text files and tables are read: the options, also for command lines."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class ReadOptions:
    """How text files and tables are read; None means automatic."""

    column: str | None = None
    """Column with the text; None: `text`, or the only one."""
    encoding: str | None = None
    """Encoding of all files, a name that Python knows; None: detected."""
    delimiter: str | None = None
    """Character between the fields of a .csv or .tsv file; None: detected."""
    document_separator: str | None = None
    """String between the documents of a .txt file, such as <|endoftext|>; None: the file is one text."""

    def identity(self) -> dict[str, str | None]:
        """Return the options that are set, and `column` in any case, as existing prepared folders recorded them."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "column"}


DEFAULTS = ReadOptions()


def add_read_options(parser: ArgumentParser) -> None:
    """Add the options of `ReadOptions` to a command line, also by the names that train.py has for them."""
    for field in fields(ReadOptions):
        parser.add_argument(f"--{field.name}", f"--data.{field.name}", help=f"as --data.{field.name} of train.py")


def read_options(args: Namespace) -> ReadOptions:
    """Return the ReadOptions of a command line that has `add_read_options`."""
    return ReadOptions(**{field.name: getattr(args, field.name) for field in fields(ReadOptions)})
