"""How help and wrong command lines are shown, where typer's own way is noisy."""

import inspect
import re
from collections import Counter
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ..formatting import nearest_name


class Command(TyperCommand):
    """A command whose help wraps to the terminal and shows types only where they say something."""

    def __init__(self, *args: Any, help: str | None = None, **settings: Any) -> None:
        # Rich keeps the line ends of a docstring, except those of its first paragraph.
        unwrapped = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(help or ""))
        super().__init__(*args, help=unwrapped, **settings)

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, ready to be shown."""
        parameters = _without_types(super().get_params(ctx))
        sizes = Counter(parameter.rich_help_panel for parameter in parameters)
        for parameter in parameters:
            if sizes[parameter.rich_help_panel] == 1:
                parameter.rich_help_panel = None  # a panel of one option: among the first ones
        return parameters

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line, without typer's braces around required arguments."""
        pieces = super().collect_usage_pieces(ctx)
        return [piece.replace("{", "").replace("}", "") for piece in pieces]


class CommandGroup(TyperGroup):
    """A group of commands that names the nearest one where a name is wrong."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, ready to be shown."""
        return _without_types(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the first argument names."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            ctx.fail(f"no such command: {args[0]}{nearest_name(args[0], known)}")
        return super().resolve_command(ctx, args)


def _without_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""  # instead of <bool>
        elif parameter.param_type_name == "argument":
            parameter.display_type_rich = _no_type  # instead of <str>
    return parameters


def _no_type(ctx: Any) -> str:
    return ""
