"""The ``siglip2-cache`` command: its parts, and what a user sees of an error."""

import errno
import io
import os
import sys
from typing import Annotated, Any

import typer

from .commands.agreement import agreement
from .commands.build import build
from .commands.convert import convert
from .commands.demo import demo
from .commands.doctor import doctor
from .commands.duplicates import duplicates
from .commands.estimate import estimate
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.help import Command, CommandGroup
from .commands.import_targets import import_targets
from .commands.index import index
from .commands.info import info
from .commands.mismatched import mismatched
from .commands.neighbors import neighbors
from .commands.options import say
from .commands.outliers import outliers
from .commands.report import report
from .commands.student import student
from .commands.train import train
from .commands.verify import verify
from .errors import CacheError
from .formatting import first_line
from .streams import open_missing_streams

_COMMANDS = {
    "Build a cache": {
        "build": build,
        "import": import_targets,
        "convert": convert,
        "estimate": estimate,
        "info": info,
        "verify": verify,
    },
    "Search a cache": {
        "report": report,
        "neighbors": neighbors,
        "duplicates": duplicates,
        "mismatched": mismatched,
        "outliers": outliers,
        "agreement": agreement,
        "index": index,
    },
    "Train a student": {"train": train, "eval": evaluate},
    "Try it": {"demo": demo, "doctor": doctor},
}
"""Commands by the panel of the help that shows them."""

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, pretty_exceptions_enable=False)
for _panel, _commands in _COMMANDS.items():
    for _name, _function in _commands.items():
        app.command(_name, cls=Command, rich_help_panel=_panel)(_function)
app.add_typer(export, name="export", rich_help_panel="Search a cache")
app.add_typer(student, name="student", rich_help_panel="Train a student")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from .version import __version__

        typer.echo(f"siglip2-cache {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Run the SigLIP 2 teacher once over a corpus, cache its embeddings, train students from them."""


def main() -> None:
    """Run the command line; show a mistake of the user as one line, without a traceback.

    A second line names the document that explains the error, where there is one.
    A wrong command line exits with status 2, everything else that a user can mend with status 1.
    """
    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show is replaced
        sys.stdout.reconfigure(errors="replace")
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except Exception as error:
        # Errors of click, which typer may bring along as a copy: no class to import.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            sys.exit(_print_usage_error(error))
        message = _explain(error)
        if message is None or os.environ.get("SIGLIP2_CACHE_DEBUG") == "1":
            raise
        if message:  # else another process says it
            say(f"error: {message}", err=True)
            if isinstance(error, CacheError) and error.page:
                say(f"see docs/{error.page}", err=True)
        sys.exit(1)


def _print_usage_error(error: Any) -> int:
    """Print what is wrong with a command line and the nearest right name; return the exit status."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return error.exit_code
    nearest = getattr(error, "possibilities", None)
    message = f"{error.message}; did you mean {nearest[0]}?" if nearest else error.format_message()
    message = " ".join(message.split()).rstrip(".")
    help = f"{error.ctx.command_path} --help" if error.ctx else "siglip2-cache --help"
    say(f"error: {message[:1].lower()}{message[1:]} (see {help})", err=True)
    return error.exit_code


def _explain(error: Exception) -> str | None:
    """Return what to tell the user; None for a bug of this package, which needs its traceback."""
    if isinstance(error, CacheError):
        return str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "no space left where the output goes"
    # polars does not name the file that it was reading, and some of its OSErrors have no parts.
    if isinstance(error, OSError) or type(error).__module__.startswith("polars."):
        return (
            f"a table cannot be read ({first_line(error)}); "
            "siglip2-cache verify CACHE names the damaged file"
        )
    return None


if __name__ == "__main__":
    main()
