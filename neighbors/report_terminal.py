"""A report in the terminal: one table for each query."""

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ..formatting import one_line, short_line
from .report import Group, Item, Report

_PIPED_WIDTH = 120
"""Width of output that is not a terminal."""

_NAME_WIDTH = 40
"""Largest width of a key; --json has it whole."""


def print_report(report: Report, console: Console | None = None) -> None:
    """Print a report; captions are cut to one line."""
    console = console or make_console()
    for line in report.summary:
        console.print(Text(short_line(line)), soft_wrap=True)
    for group in report.groups:
        console.print()
        _print_group(group, console)


def make_console() -> Console:
    """Return a console as wide as the terminal, or of a fixed width without one."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def _print_group(group: Group, console: Console) -> None:
    if group.heading:
        console.print(Text(short_line(group.heading), style="bold"), soft_wrap=True)
    if group.query is not None:
        line = Text.assemble(("query  ", "bold"), _name(group.query), "  ", _words(group.query))
        _print_line(line, console)
    width = min(_NAME_WIDTH, max((cell_len(_name(item)) for item in group.items), default=0))
    for number, item in enumerate(group.items, 1):
        cosine = "" if item.cosine is None else f"{item.cosine:.4f}"
        name = set_cell_size(_name(item), width)
        words = _words(item)
        _print_line(
            Text.assemble((f"{number:>3}  ", "dim"), f"{cosine:>7}  {name}  ", words), console
        )


def _print_line(line: Text, console: Console) -> None:
    line.truncate(console.width, overflow="ellipsis")
    line.rstrip()
    console.print(line, soft_wrap=True)


def _name(item: Item) -> str:
    """Return the key of an image, or the row of a text."""
    if item.kind == "text":
        return "text" if item.row is None else f"text {item.row}"
    if item.file is not None:
        return one_line(str(item.file))
    return one_line(str(item.key))


def _words(item: Item) -> Text:
    """Return remarks, the first caption and the number of further ones."""
    words = Text()
    for remark in item.remarks:
        words.append(f"[{one_line(remark)}] ", style="cyan")
    if item.kind == "text":
        langs = ", ".join(caption.lang for caption in item.captions if caption.lang)
        words.append(one_line(item.captions[0].text))
        words.append(f"  ({one_line(langs)})" if langs else "", style="dim")
    elif item.captions:
        words.append(one_line(item.captions[0].text))
        more = len(item.captions) - 1
        words.append(f"  (+{more})" if more else "", style="dim")
    return words
