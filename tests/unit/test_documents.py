"""Links, options and fences of the documents. That their commands run is shown in tests/integration."""

import ast
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kit.documents import CHECKOUT, DOCUMENTS, blocks_of, prose_of, read
from typer.main import get_command

from siglip2_cache import errors
from siglip2_cache.cli import app

LANGUAGES = {"", "console", "js", "json", "python", "sh", "sql"}
OF_OTHERS = {
    *("--index-url", "--nproc-per-node"),  # pip, torchrun
    *("--vector", "--neighbors", "--text"),  # embedding-atlas
    *("--indices", "--clip", "--enable", "--provide"),  # clip-retrieval: --indices_paths, ...
    *("--images", "--seed", "--missing", "--mismatched", "--held-out"),  # siglip2_cache.demo.corpus
    *("--quick", "--check-saved-logits"),  # benchmarks, TinyViT
    "--help",  # of typer
}
"""Options that the documents name and that are not of siglip2-cache."""


@pytest.fixture(scope="module")
def options() -> set[str]:
    return set(options_of(get_command(app)))


@pytest.fixture(scope="module")
def site_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", CHECKOUT / "docs/site_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(read(document))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (CHECKOUT / document).parent / path if path else CHECKOUT / document
        assert file.exists(), f"{document} links to {target}"
        assert not anchor or anchor in anchors_of(file), f"{document} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_that_is_named_exists(document: str, options: set[str]) -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", read(document)))
    assert named <= options | OF_OTHERS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_stand_only_in_blocks_that_say_so(document: str) -> None:
    for block in blocks_of(read(document)):
        assert block.language in LANGUAGES
        if not block.language:
            assert not re.search(r"^(\$ |siglip2-cache |python )", block.text, re.MULTILINE), (
                f"{document}:{block.line}: a block with commands is sh or console"
            )


def options_of(command: Any) -> Iterator[str]:
    """Yield the long options of a command and of the commands below it."""
    for parameter in command.params:
        yield from (name for name in parameter.opts if name.startswith("--"))
    for below in getattr(command, "commands", {}).values():
        yield from options_of(below)


def anchors_of(file: Path) -> set[str]:
    """Return what GitHub makes of the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", prose_of(file.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tree_names_every_folder_of_the_package() -> None:
    packages = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]["packages"]
    folders = {package.replace("siglip2_cache.", "").replace(".", "/") for package in packages}
    [tree] = [b for b in blocks_of(read("CONTRIBUTING.md")) if b.text.startswith("cli.py")]
    named: set[str] = set()
    above: list[str] = []
    for line in tree.text.splitlines():
        if found := re.match(r"( *)(\w+)/", line):
            above = [*above[: len(found[1]) // 2], found[2]]
            named.add("/".join(above))
    assert folders - {"siglip2_cache"} <= named


def test_the_site_has_every_document_once(site_hooks: ModuleType) -> None:
    in_nav = re.findall(r"(?:: |- )(\S+\.md)$", read("mkdocs.yml"), re.MULTILINE)
    documents = [name.removeprefix("docs/") for name in DOCUMENTS if name.startswith("docs/")]
    assert sorted(in_nav) == sorted([*documents, site_hooks.COMMANDS])


def test_the_reference_has_every_command_with_its_options(
    site_hooks: ModuleType, options: set[str]
) -> None:
    page = site_hooks.commands_page()
    assert set(re.findall(r"`(--[a-z-]+)", page)) >= options
    for heading in ("build", "neighbors", "train", "export model", "student new"):
        assert f"\n## {heading}\n" in page
    [views] = [line for line in page.splitlines() if line.startswith("| `--views N`")][:1]
    assert views == (
        "| `--views N` | as the cache, else 1 | "
        "Views of each image: the whole image and N - 1 random crops. |"
    )


def test_links_out_of_the_folder_of_documents_are_those_of_the_site(site_hooks: ModuleType) -> None:
    text = "[a](../../benchmarks/results/a.md#b) [c](../reference/format.md) [d](https://d.org)"
    assert site_hooks.rewritten(text, "docs/guides/x.md") == (
        "[a](../project/benchmarks/results/a.md#b) [c](../reference/format.md) [d](https://d.org)"
    )
    assert site_hooks.rewritten("[a](docs/index.md)", "README.md") == "[a](../index.md)"
    assert "LICENSE" in site_hooks.linked_files()
    for path in site_hooks.linked_files():
        assert (CHECKOUT / path).is_file(), path


def modules() -> set[Path]:
    """Return every module of the checkout but this one."""
    folders = [path for path in CHECKOUT.iterdir() if path.is_dir() and path.name[0] != "."]
    found = [*CHECKOUT.glob("*.py"), *(p for f in folders for p in f.rglob("*.py"))]
    return set(found) - {Path(__file__)}


def test_every_document_that_the_code_names_exists() -> None:
    for path in modules():
        for name in re.findall(r"docs/[\w/-]+\.md", path.read_text("utf-8")):
            assert (CHECKOUT / name).is_file(), f"{path} names {name}"


def test_every_document_that_an_error_names_explains_it() -> None:
    pages = {
        error.page
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.CacheError) and error.page
    }
    assert len(pages) > 8
    for page in pages:
        path, _, anchor = page.partition("#")
        assert not anchor or anchor in anchors_of(CHECKOUT / "docs" / path), page


def test_every_message_of_troubleshooting_is_one_of_the_package() -> None:
    page = prose_of(read("docs/guides/troubleshooting.md"))
    heads = [line[2:].partition(": ")[0] for line in page.splitlines() if line.startswith("- `")]
    quoted = [words for head in heads for words in re.findall(r"`([^`]+)`", head)]
    messages = "\n".join(
        node.value
        for path in modules()
        if path.relative_to(CHECKOUT).parts[0] not in ("tests", "benchmarks", "docs", "build")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert len(quoted) > 30
    assert [words for words in quoted if words not in messages] == []
