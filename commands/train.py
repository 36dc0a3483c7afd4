"""The command ``train``: its options are the fields of TrainConfig, which override a --config file."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin

import typer

from ..errors import SettingError
from ..student.config import SETTINGS, TrainConfig
from ..student.config_checks import choices_of
from .options import (
    AsJson,
    Private,
    Push,
    Quiet,
    flag,
    local_path_option,
    option,
    parse_roots,
    path_argument,
    print_found,
    say,
)


def train(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None,
        local_path_option(
            "FILE", "YAML file of settings, such as RUN/config.yaml. Options override it."
        ),
    ] = None,
    push: Push = None,
    private: Private = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    **settings: Any,
) -> None:
    """Train a student from a cache and the images of its corpus; no teacher is loaded.

    Writes RUN/model, a folder for plain transformers, and shows a table of what was gained. Run the same
    command again to resume. On several GPUs: torchrun --nproc-per-node N -m siglip2_cache train ...
    """
    from ..progress import make_display
    from ..student.config_file import make_config
    from ..student.export.push import check_push
    from ..student.launch import find_launch, raised_once
    from ..student.training.progress import TrainProgress
    from ..student.training.summary import summary_lines, summary_values
    from ..student.training.trainer import TrainInterrupted
    from ..student.training.trainer import train as run_train

    launch = find_launch()
    with raised_once(launch):
        chosen = make_config(config, _given(context, settings))
        check_push(push, is_private=private)
    try:
        summary = run_train(chosen, progress=TrainProgress(make_display(is_quiet=quiet)))
    except (TrainInterrupted, KeyboardInterrupt) as error:
        if launch.rank == 0:
            say(str(error) or "stopped; run the same command again to resume", err=True)
        raise typer.Exit(130) from None
    if not summary.is_first:
        return
    found, lines = summary_values(chosen, summary), summary_lines(chosen, summary)
    if push is not None:
        from ..student.training.export_checkpoint import ExportCheckpointConfig, push_checkpoint

        written = ExportCheckpointConfig(
            run=chosen.out, out=chosen.out / "model", choice=chosen.export
        )
        url = push_checkpoint(written, push, is_private=private)
        found, lines = {**found, "pushed": url}, [*lines, f"pushed     {url}"]
    print_found(found, lines, as_json)


def _given(context: typer.Context, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the command line, without those that are defaults."""
    given: dict[str, Any] = {}
    for name, value in settings.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            given[name] = value
    if "weights" in given:
        given["weights"] = _parse_weights("weight", given["weights"])
    if "caption_weights" in given:
        given["caption_weights"] = _parse_weights("caption weight", given["caption_weights"])
    if "teacher" in given:
        [first, *others] = given["teacher"]
        is_plain = not others and "=" not in first
        given["teacher"] = first if is_plain else _parse_weights("teacher", [first, *others], 1.0)
    if "corpus_roots" in given:
        given["corpus_roots"] = parse_roots(given["corpus_roots"])
    return given


def _parse_weights(
    what: str, arguments: list[str], default: float | None = None
) -> dict[str, float]:
    """Return the numbers of NAME=NUMBER by name; None as default: there is no NAME alone."""
    weights: dict[str, float] = {}
    for argument in arguments:
        name, separator, number = argument.rpartition("=")
        if not separator and default is not None:
            name, number = argument, str(default)
        if name in weights:
            raise SettingError(f"{what} {name} is given twice: leave one out")
        try:
            weights[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise SettingError(f"{what} {argument!r} is not {_FORMS[what]}")
    return weights


_FORMS = {
    "weight": "TERM=NUMBER, such as soft=1",
    "teacher": "NAME or NAME=WEIGHT, such as b=0.5",
    "caption weight": "kind:NAME=WEIGHT or language:NAME=WEIGHT, such as kind:synthetic=0.5",
}


def _parameters() -> Iterator[inspect.Parameter]:
    """Yield a parameter of the command for each field of TrainConfig."""
    defaults = {each.name: each.default for each in fields(TrainConfig)}
    for name, (hint, setting) in SETTINGS.items():
        kind, metavar = _on_command_line(hint)
        dashed = setting.flag or f"--{name.replace('_', '-')}"
        if name == "cache":
            shown = path_argument("CACHE", help=setting.help)
        elif kind is bool:
            shown = flag(dashed, setting.help, setting.panel)
        else:
            shown = option(
                setting.metavar or metavar,
                setting.help,
                setting.panel,
                default=setting.default,
                name=dashed,
            )
        default = defaults[name]
        if not isinstance(default, str | int | float):  # None, required, or an empty mapping
            default, kind = None, kind | None
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
        )


def _on_command_line(hint: Any) -> tuple[Any, str]:
    """Return the type in which an option takes a field, and what stands for its value in the help."""
    if choices := choices_of(hint):
        return str, "|".join(choices)
    if any(get_origin(each) is Mapping for each in (hint, *get_args(hint))):
        return list[str], "NAME=VALUE"
    [kind] = set(get_args(hint) or [hint]) - {type(None)}
    if kind in (bool, int, float):
        return kind, "N" if kind is int else "NUMBER"
    return str, "TEXT"


_own = inspect.signature(train, eval_str=True).parameters
_cache, _student, _out, *_others = _parameters()
cast(Any, train).__signature__ = inspect.Signature(
    [
        *(_own["context"], _cache, _student, _out, _own["config"]),
        *(_own["push"], _own["private"], _own["as_json"], _own["quiet"], *_others),
    ]
)
