"""Renders one chat template in a process of its own, which reads JSON from standard input.

A template is a program of whoever published the model. Jinja's sandbox keeps it from files and from other processes,
but neither from endless loops nor from endless texts: those end with this process.
"""

import json
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # Windows
    resource = None

MAX_SECONDS = 10
MAX_MEMORY = 1 << 29  # bytes of address space
MAX_CHARACTERS = 1_000_000  # of the result


class Generation(Extension):
    """The tag {% generation %}, which marks what the assistant says. Here it has no effect."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def main() -> None:
    limit_resources()
    request = json.load(sys.stdin.buffer)
    try:
        text = render(request["template"], request["variables"])
        if len(text) > MAX_CHARACTERS:
            raise TemplateError(f"it wrote {len(text):,} characters")
        answer = {"text": text}
    except Exception as error:  # the template's own, of any kind
        answer = {"error": str(error)[:1000] or type(error).__name__}
    sys.stdout.buffer.write(json.dumps(answer).encode())


def limit_resources() -> None:
    """Limit the time and the memory of this process, where the system can."""
    if resource is None:
        return
    for name, limit in (("RLIMIT_CPU", MAX_SECONDS), ("RLIMIT_AS", MAX_MEMORY)):
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (ValueError, OSError):  # macOS has no limit of memory, and the limit can be lower already
            pass


def render(template: str, variables: dict[str, Any]) -> str:
    """Return what a chat template writes, with the functions that `transformers` offers to it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(template).render(variables)


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Return JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


if __name__ == "__main__":
    main()
