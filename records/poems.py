"""Poems: from folders of files to all_poems.json, and from there to requests with poems.

    python -m records.poems clean FOLDER --out all_poems.json

FOLDER contains a folder per author, `作者_拼音`, with the poems, `*.pt`: text files of a line `title:`, a line `date:`,
a blank line and the poem, as in https://github.com/sheepzh/poetry. all_poems.json is a list of objects with `title`,
`para` (the lines; an empty one between stanzas) and `author`.
"""

import json
import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from reading.options import ReadOptions
from reading.tables import lines_of_poem, read_rows
from reading.text_files import read_text
from records.parsing import parse_records
from utils.errors import Parser, UserError, command
from utils.files import replacing
from utils.quantities import quantity

if TYPE_CHECKING:
    from records.report import DataReport

REQUESTS = 6 * ["title"] + 3 * ["title and author"] + ["general"]  # of ten
GENERAL_REQUESTS = ("写一首诗", "请写一首诗", "作一首诗", "来一首诗")


# ---- Cleaning --------------------------------------------------------------------------------------------------------


def clean(folder: str | Path) -> tuple[list[dict], list[tuple[Path, str]]]:
    """Return (poems, skipped) of a folder; skipped files are (path, reason). Raises UserError if there are no files."""
    paths = sorted(path for path in Path(folder).glob("*/*.pt") if not path.is_dir())
    if not paths:
        raise UserError(f"{folder} has no folders that contain .pt files: pass the parent of the authors' folders")
    poems, skipped = [], []
    for path in tqdm(paths, "cleaning", unit="file", delay=2):
        try:
            poems.append(read_poem(path))
        except UserError as error:
            skipped.append((path, str(error).removeprefix(f"{path} is ")))
    return poems, skipped


def read_poem(path: Path) -> dict:
    """Return the poem of a file, as in all_poems.json. Raises UserError."""
    title, lines = parse_poem(read_text(path))
    author = path.parent.name.partition("_")[0]
    try:
        author.encode()
    except UnicodeEncodeError:
        raise UserError("the name of its folder is not UTF-8") from None
    return {"title": title, "para": lines, "author": author}


def parse_poem(text: str) -> tuple[str, list[str]]:
    """Return (title, lines) of a poem's file. Runs of blank lines become one, and lines are stripped.

    Raises UserError if there is no title or no text.

    >>> parse_poem("title:春晓\\ndate:唐\\n\\n春眠不觉晓，\\n处处闻啼鸟。\\n\\n\\n夜来风雨声，\\n花落知多少。\\n")
    ('春晓', ['春眠不觉晓，', '处处闻啼鸟。', '', '夜来风雨声，', '花落知多少。'])
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    if not lines:
        raise UserError("the file is empty")
    header = re.fullmatch(r"title[:：]\s*(.+)", lines[0])
    if not header:
        raise UserError("the first line is not `title:` and a title")
    n_header = 1
    if len(lines) > 1 and re.match("date[:：]", lines[1]):
        n_header = 2
    poem = re.sub(r"\n{3,}", "\n\n", "\n".join(lines[n_header:])).strip()
    if not poem:
        raise UserError("there is no text below the title")
    return header[1], poem.split("\n")


# ---- Training --------------------------------------------------------------------------------------------------------


def read_poems(files: list[Path], options: ReadOptions, report: "DataReport") -> list[dict]:
    """Return the poems in .json files, as `as_poem`. Invalid ones are skipped and counted.

    Raises UserError if no poem is left.
    """
    return parse_records(files, partial(read_rows, options=options), as_poem, report)


def as_poem(record: dict, place: str) -> dict:
    """Return the `title`, `author` and `para` (lines) of a record. Raises UserError, which says what is wrong."""
    poem = {"title": record.get("title"), "author": record.get("author"),
            "para": lines_of_poem(record)}
    missing = [key for key, value in poem.items() if value is None]
    if missing:
        raise UserError(f"no {', '.join(missing)}")
    title, author, lines = poem.values()
    if not isinstance(lines, list) or not all(isinstance(text, str) for text in (title, author, *lines)):
        raise UserError("values that are not text")
    if not title.strip() or not any(line.strip() for line in lines):
        raise UserError("no title or no text")
    return poem


def requests(poems: list[dict], seed: int) -> Iterator[tuple[str, str]]:
    """Yield (request, text) for each of the poems, in an order that depends on the seed.

    Of ten requests six are the title, three the author and the title, as 李白《静夜思》, and one is a general request.
    A poem without an author is always requested by its title alone.
    """
    draw = random.Random(seed)
    shuffled = draw.sample(poems, len(poems))
    for first in range(0, len(poems), len(REQUESTS)):
        kinds = draw.sample(REQUESTS, len(REQUESTS))
        for poem, kind in zip(shuffled[first : first + len(REQUESTS)], kinds, strict=False):  # the last may be fewer
            request = poem["title"]
            if kind == "general":
                request = draw.choice(GENERAL_REQUESTS)
            elif kind == "title and author" and poem["author"]:
                request = f"{poem['author']}《{poem['title']}》"
            yield request, "\n".join(poem["para"])


@command
def main() -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(required=True)
    clean_command = commands.add_parser("clean", help="folders of files to one all_poems.json")
    clean_command.add_argument("folder", help="the folder that contains the authors' folders")
    clean_command.add_argument("--out", default="all_poems.json", help="(%(default)s)")
    args = parser.parse_args()

    poems, skipped = clean(args.folder)
    for path, reason in skipped:
        print(f"skipped: {path}: {reason}")
    n_authors = len({poem["author"] for poem in poems})
    print(f"{quantity(len(poems), 'poems')} of {quantity(n_authors, 'authors')}; skipped "
          f"{quantity(len(skipped), 'files')}")
    if not poems:
        raise UserError(f"{args.folder} contains no valid poem, so {args.out} is not written")
    with replacing(Path(args.out)) as file:
        file.write(json.dumps(poems, ensure_ascii=False, indent=1).encode())
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
