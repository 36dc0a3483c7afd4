"""What stands in the documents: commands with their output, blocks of Python, code in the prose."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(p.relative_to(CHECKOUT).as_posix() for p in (CHECKOUT / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str
    text: str
    line: int
    """Of the document, where the text begins."""


@dataclass(frozen=True)
class Command:
    """A command as it would be typed."""

    text: str
    line: int
    output: list[str] = field(default_factory=list)
    """Lines shown below it; empty lines and those left out (``...``) are not among them."""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def read(document: str) -> str:
    return (CHECKOUT / document).read_text("utf-8")


def blocks_of(markdown: str) -> list[Block]:
    """Return every fenced block."""
    return [
        Block(found[1], found[2], markdown.count("\n", 0, found.start(2)) + 1)
        for found in _FENCE.finditer(markdown)
    ]


def prose_of(markdown: str) -> str:
    """Return a document without its fenced blocks."""
    return _FENCE.sub("", markdown)


def commands_of(block: Block) -> Iterator[Command]:
    """Yield the commands of an ``sh`` block (each line one) or of a ``console`` block (behind ``$``)."""
    lines = list(enumerate(block.text.splitlines(), block.line))
    if block.language == "sh":
        typed = [(number, line) for number, line in lines if line.strip()]
        yield from (
            Command(line, number) for number, line in typed if shlex.split(line, comments=True)
        )
        return
    command: Command | None = None
    for number, line in lines:
        if line.startswith("$ "):
            if command is not None:
                yield command
            command = Command(line[2:], number)
        elif command is not None and line.strip() not in ("", "..."):
            command.output.append(line)
    if command is not None:
        yield command
