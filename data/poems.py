"""Poems: from folders of files to all_poems.json, and from there to training examples.

    python -m data.poems clean FOLDER --out all_poems.json

FOLDER holds a folder for each author, `作者_拼音`, and it the poems, `*.pt`: text files with a line `title:`, a line
`date:`, a blank line and the poem, as in https://github.com/sheepzh/poetry. all_poems.json is a list of objects with
`title`, `para` (the lines; an empty one between two stanzas) and `author`.
"""

import json
import random
import re
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from data.pieces import message_pieces
from data.readers import read_text, stamp
from utils.errors import Parser, UserError, command
from utils.files import replacing

REQUESTS = 6 * ["title"] + 3 * ["title and author"] + ["general"]  # the shares, in ten
GENERAL_REQUESTS = ("写一首诗", "请写一首诗", "作一首诗", "来一首诗")


class BrokenPoem(Exception):
    """Why a file gives no poem."""


class EmptyPoem(BrokenPoem):
    """It has no text."""


# ---- Cleaning --------------------------------------------------------------------------------------------------------


def parse_poem(text):
    """Title and lines of a poem's file. Blank lines between stanzas become one, white space around lines goes.

    Raises BrokenPoem, and of that EmptyPoem if there is nothing but a title.

    >>> parse_poem("title:春晓\\ndate:唐\\n\\n春眠不觉晓，\\n处处闻啼鸟。\\n\\n\\n夜来风雨声，\\n花落知多少。\\n")
    ('春晓', ['春眠不觉晓，', '处处闻啼鸟。', '', '夜来风雨声，', '花落知多少。'])
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    if not lines:
        raise EmptyPoem("the file is empty")
    header = re.fullmatch(r"title[:：]\s*(.+)", lines[0])
    if not header:
        raise BrokenPoem("its first line is not `title:` and a title")
    without_date = lines[2:] if lines[1:] and re.match("date[:：]", lines[1]) else lines[1:]
    poem = re.sub(r"\n{3,}", "\n\n", "\n".join(without_date)).strip()
    if not poem:
        raise EmptyPoem("there is no text below the title")
    return header[1], poem.split("\n")


def read_poem(path):
    """The poem of a file, as all_poems.json has it. Raises BrokenPoem."""
    try:
        title, lines = parse_poem(read_text(path))
    except UserError as error:
        raise BrokenPoem(str(error).removeprefix(f"{path} is ")) from None
    author = path.parent.name.partition("_")[0]
    try:
        author.encode()
    except UnicodeEncodeError:
        raise BrokenPoem("the name of its folder is not UTF-8") from None
    return {"title": title, "para": lines, "author": author}


def clean(folder):
    """The poems of a folder, and of each file that gave none its path and the BrokenPoem. Raises UserError."""
    paths = sorted(path for path in Path(folder).glob("*/*.pt") if not path.is_dir())
    if not paths:
        raise UserError(f"{folder} has no folders that hold .pt files: name the one that holds those of the authors")
    poems, broken = [], []
    for path in tqdm(paths, "cleaning", unit="file", delay=2):
        try:
            poems.append(read_poem(path))
        except BrokenPoem as reason:
            broken.append((path, reason))
    return poems, broken


# ---- Training --------------------------------------------------------------------------------------------------------


def read_poems(path):
    """The list of poems of an all_poems.json. What is no poem in it is left out and told. Raises UserError."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): make it again by python -m data.poems clean FOLDER") from None
    poems = [poem for poem in found if is_poem(poem)] if isinstance(found, list) else []
    if not poems:
        raise UserError(f"{path} is no list of poems: make it by python -m data.poems clean FOLDER")
    if len(poems) < len(found):
        numbers = [str(number) for number, poem in enumerate(found, 1) if not is_poem(poem)]
        print(f"{path}: {len(numbers):,} of {len(found):,} poems are broken or empty and left out: number "
              f"{', '.join(numbers[:20])}{', ...' * (len(numbers) > 20)}")
    return poems


def is_poem(poem):
    """Whether it has a title, an author, which may be empty, and lines, of which some are not."""
    match poem:
        case {"title": str(title), "author": str(), "para": [*lines]} if all(isinstance(line, str) for line in lines):
            return bool(title.strip()) and any(line.strip() for line in lines)
    return False


def requests(poems, seed):
    """Yield a request and the poem that answers it for each of the poems, in an order that the seed decides.

    Of ten requests six are the title, three the author and the title, as 李白《静夜思》, and one is a general request.
    Where the author is not known the title stands alone.
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


class Poems:
    """The poems of an all_poems.json as a corpus: each is a talk of two messages, a request and the poem."""

    def __init__(self, path):
        self.path, self.folder, self.name = path, path.parent, path.resolve().stem
        self.size = path.stat().st_size

    def identity(self):
        """What changes when the text may have changed."""
        return {"poems": stamp(self.path)}

    def title(self):
        return "poems"

    @cached_property
    def poems(self):
        return read_poems(self.path)

    def pieces(self):
        """Yield each `Piece`, always the same ones. Raises UserError for a file that is no list of poems."""
        talks = enumerate(requests(self.poems, seed=0), 1)
        return message_pieces(((talk, self.size * i // len(self.poems)) for i, talk in talks), self.size)


@command
def main():
    parser = Parser(__doc__)
    commands = parser.add_subparsers(required=True)
    clean_command = commands.add_parser("clean", help="folders of files to one all_poems.json")
    clean_command.add_argument("folder", help="the folder that holds those of the authors")
    clean_command.add_argument("--out", default="all_poems.json", help="(%(default)s)")
    args = parser.parse_args()

    poems, broken = clean(args.folder)
    for path, reason in broken:
        print(f"{'empty' if isinstance(reason, EmptyPoem) else 'broken'}: {path}: {reason}")
    n_empty = sum(isinstance(reason, EmptyPoem) for _, reason in broken)
    n_authors = len({poem["author"] for poem in poems})
    n_broken = len(broken) - n_empty
    print(f"{len(poems):,} poems of {n_authors:,} authors; left out: {n_broken:,} broken, {n_empty:,} empty")
    if not poems:
        raise UserError(f"{args.folder} gave no poem, so {args.out} is not written")
    with replacing(Path(args.out)) as file:
        file.write(json.dumps(poems, ensure_ascii=False, indent=1).encode())
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
