"""A line that says how far a look through a cache has come, on a terminal only."""

import contextlib
from collections.abc import Callable, Generator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def counting(total: int) -> Generator[Callable[[int], None]]:
    """Yield a function that is told how many rows more were looked at; the line goes when all were."""
    columns = (TextColumn("looking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("rows", total=total)
        yield lambda rows: bar.update(task, advance=rows)
