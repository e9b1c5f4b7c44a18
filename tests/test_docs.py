"""The READMEs and docs/: both languages say the same, links lead somewhere, and numbers of the code are right."""

import re
from pathlib import Path

import pytest

from models.zoo import ZOO
from utils.forecast.parameters import count_parameters

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if not path.stem.endswith("_zh"))]


def read(path):
    return path.read_text(encoding="utf-8")


def chinese(path):
    return path.with_name(f"{path.stem}_zh.md")


def commands(text):
    """The command lines in fenced blocks, with Chinese words and words in capitals, which are placeholders, as X."""
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()
             if re.match(r"(python|pip|torchrun|ruff|uv) ", line)]
    return [re.sub(r'"[^"]*"|[A-Z/]*[A-Z]{3,}|[\u4e00-\u9fff]+', "X", line) for line in lines]


def figures(text):
    """The numbers with a decimal point, a thousands separator, or a word for millions or for 10,000."""
    numbers = set()
    for number, unit in re.findall(r"(\d+(?:[.,]\d+)*) ?(million|万)?", text):
        if unit:
            numbers.add(round(float(number) * {"million": 1e6, "万": 1e4}[unit]))
        elif not number.isdigit():
            numbers.add(number)
    return numbers


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_both_languages_have_the_same_commands_and_figures(path):
    english, other = read(path), read(chinese(path))
    assert commands(english) == commands(other)
    assert figures(english) == figures(other)


@pytest.mark.parametrize("path", [*PAGES, *map(chinese, PAGES)], ids=lambda path: path.name)
def test_no_placeholder_is_left(path):
    assert not re.search(r"^[A-Z]+[-_][A-Z]+$|TODO|TBD", read(path), re.MULTILINE)


@pytest.mark.parametrize("path", [*PAGES, *map(chinese, PAGES)], ids=lambda path: path.name)
def test_links_lead_to_files_in_the_same_language(path):
    for target in re.findall(r"\]\(([^)#]+)", read(path)):
        linked = path.parent / target
        assert linked.exists(), target
        if linked.suffix == ".md" and linked not in (path.with_name(path.name.replace("_zh", "")), chinese(path)):
            assert linked.stem.endswith("_zh") == path.stem.endswith("_zh"), target


def test_the_front_pages_have_at_most_150_lines():
    for path in (PAGES[0], chinese(PAGES[0])):
        assert len(read(path).splitlines()) <= 150


def test_the_zoo_in_the_front_page_has_every_class_and_its_parameters():
    rows = [line for line in read(PAGES[0]).splitlines() if line.startswith("| `")]
    for name, model in ZOO.items():
        config = model.config
        named = [row for row in rows if f"`{name}`" in row or f"`{name.removeprefix('GPT2')}`" in row]
        assert named, name
        if name not in ("GPT2Medium", "GPT2Large"):  # between the two numbers of their row
            assert f"{count_parameters(config):,}" in named[0], name
