"""What mkdocs adds to the files of docs: the reference of commands, and the pages they link to elsewhere.

The documents are read on GitHub too, so their links are those of the checkout. On the site, files outside of
docs are below project/, and links to them are rewritten.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
COMMANDS = "reference/commands.md"
_OUTSIDE = "project"

_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the reference of commands and every file outside of docs that a page links to."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, COMMANDS, content=commands_page()))
    for path in sorted(linked_files()):
        files.append(File.generated(config, site_path(path), abs_src_path=str(CHECKOUT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links to files outside of docs, and from such files; link the reference of commands."""
    if page.file.src_uri == "reference/index.md":  # in a checkout there is no such page
        markdown = markdown.replace(
            "| Commands |", f"| [Commands]({posixpath.basename(COMMANDS)}) |"
        )
    return rewritten(markdown, checkout_path(page.file.src_uri))


def site_path(path: str) -> str:
    """Return where a file of the checkout is on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{_OUTSIDE}/{path}"


def checkout_path(uri: str) -> str:
    """Return which file of the checkout a page of the site is."""
    return uri.removeprefix(f"{_OUTSIDE}/") if uri.startswith(_OUTSIDE) else f"docs/{uri}"


def rewritten(markdown: str, path: str) -> str:
    """Return a document of the checkout with its links as they are on the site."""
    folder = posixpath.dirname(site_path(path))

    def rewrite(link: re.Match[str]) -> str:
        if "://" in link[2]:
            return link[0]
        target = site_path(posixpath.normpath(posixpath.join(posixpath.dirname(path), link[2])))
        return f"{link[1]}{posixpath.relpath(target, folder)}{link[3] or ''}{link[4]}"

    return _LINK.sub(rewrite, markdown)


def linked_files() -> set[str]:
    """Return every file outside of docs that the documents link to, and those that these link to."""
    found: set[str] = set()
    pages = [p.relative_to(CHECKOUT).as_posix() for p in (CHECKOUT / "docs").rglob("*.md")]
    while pages:
        page = pages.pop()
        for link in _LINK.finditer(_FENCE.sub("", (CHECKOUT / page).read_text("utf-8"))):
            if "://" in link[2]:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link[2]))
            if not target.startswith("docs/") and target not in found:
                found.add(target)
                if target.endswith(".md"):
                    pages.append(target)
    return found


def commands_page() -> str:
    """Return the reference of all commands as Markdown, from the program itself."""
    from typer.main import get_command

    from siglip2_cache.cli import app

    root = get_command(app)
    parts = [
        "# Commands\n",
        "Made from the program: `siglip2-cache COMMAND --help` shows the same.\n",
        *_options(root),
    ]
    for words, command in _commands(root, ()):
        parts += [f"## {' '.join(words)}\n", *_command(words, command)]
    return "\n".join(parts)


def _commands(group: Any, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        words = (*above, name)
        if hasattr(command, "commands"):
            yield from _commands(command, words)
        else:
            yield words, command


def _command(words: tuple[str, ...], command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join(f"{each.metavar}{'...' if each.nargs == -1 else ''}" for each in arguments)
    yield f"```\nsiglip2-cache {' '.join(words)} {usage} [OPTIONS]\n```\n".replace("  ", " ")
    yield f"{_prose(command.help)}\n"
    if arguments:
        yield "| argument | |\n|---|---|"
        yield from (f"| `{each.metavar}` | {_cell(each.help)} |" for each in arguments)
        yield ""
    yield from _options(command)


def _options(command: Any) -> Iterator[str]:
    panels: dict[str, list[Any]] = {}
    for each in command.params:
        if each.param_type_name == "option" and not each.hidden:
            panels.setdefault(each.rich_help_panel or "Options", []).append(each)
    for panel, options in panels.items():
        yield f"| {panel} | default | |\n|---|---|---|"
        for each in options:
            names = ", ".join(each.opts)
            metavar = "" if each.is_flag else f" {each.metavar or each.type.name.upper()}"
            yield f"| `{names}{metavar}` | {_default(each)} | {_cell(each.help)} |"
        yield ""


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return _cell(option.show_default)
    if option.is_flag or option.default is None or callable(option.default):
        return ""
    return f"`{option.default}`"


def _cell(text: str | None) -> str:
    return _prose(text or "").replace("|", r"\|")  # which would end the cell


def _prose(text: str) -> str:
    """Return a help text as Markdown: options as code, and no marks but those."""
    marked = re.sub(r"([*_`])", r"\\\1", text).replace("<", "&lt;")
    return re.sub(r"(?<![\w-])(--[a-z][a-z-]*[a-z])", r"`\1`", marked)
