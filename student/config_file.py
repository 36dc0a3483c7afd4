"""Settings of a training in YAML files: the file of --config, and config.yaml of a run.

config.yaml has the given settings at the top. Values that were derived from them, the cache and the
checkpoints are under ``resolved``: the same run resumes with exactly these, but --config ignores them, and a
new training derives them again.
"""

import dataclasses
import os
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml
from upath import UPath

from ..errors import SettingError
from ..formatting import first_line, nearest_name
from ..store.io.location import given_location
from .config import TrainConfig

_RESOLVED = "resolved"
_HEAD = """\
# Given settings that differ from the defaults. siglip2-cache train --config reads this file.
"""
_RESOLVED_HEAD = """
# Values derived from these settings, the cache and the checkpoints. --config ignores them and derives them
# again; to set one yourself, write it above.
"""


def make_config(file: Path | None, flags: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of a YAML file, overridden by flags; None among the flags means not given.

    ``weights``, ``caption_weights`` and ``corpus_roots`` of the flags override single entries. ``steps`` and
    ``epochs`` override each other, and so do ``val_share`` and ``val_keys``.

    Raises:
        SettingError: a setting is unknown, repeated or missing, or has a value of another type.
    """
    found = {} if file is None else _read_settings(file)
    given = {name: value for name, value in flags.items() if value is not None}
    for name in {"weights", "caption_weights", "corpus_roots"} & given.keys():
        of_file = _typed(name, found.get(name) or {}, file)
        given[name] = {**of_file, **given[name]}
    for alternatives in ({"steps", "epochs"}, {"val_share", "val_keys"}):
        if given.keys() & alternatives:
            found = {name: value for name, value in found.items() if name not in alternatives}
    merged = {**found, **given}
    for name, flag in (("cache", "CACHE"), ("student", "--student"), ("out", "--out")):
        if merged.get(name) is None:
            raise SettingError(f"{flag} is missing: name it, or {name} in a file given by --config")
    return TrainConfig(**{name: _typed(name, value, file) for name, value in merged.items()})


def as_plain(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as plain values, for YAML and for comparison."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path | UPath):
            return str(value)
        return dict(value) if isinstance(value, Mapping) else value

    return {each.name: plain(getattr(config, each.name)) for each in fields(config)}


def default_settings() -> dict[str, Any]:
    """Return the plain default of every setting that has one."""
    defaults = {each.name: _default(each) for each in fields(TrainConfig)}
    return {name: value for name, value in defaults.items() if value is not dataclasses.MISSING}


def to_yaml(given: TrainConfig, resolved: TrainConfig) -> str:
    """Return the text of config.yaml: given settings, then resolved ones."""
    given_values = as_plain(given)
    stated = {
        each.name: given_values[each.name]
        for each in fields(TrainConfig)
        if getattr(given, each.name) != _default(each)
    }
    decided = {
        name: value
        for name, value in as_plain(resolved).items()
        if name not in stated or stated[name] != value
    }
    return _HEAD + _dump(stated) + _RESOLVED_HEAD + _dump({_RESOLVED: decided})


def read_resolved(text: str) -> dict[str, Any] | None:
    """Return all settings of a run from the text of its config.yaml; None if it has none.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    found = yaml.safe_load(text)
    if not isinstance(found, dict):
        return None
    settings = cast("dict[str, Any]", found)
    decided = settings.pop(_RESOLVED, None)
    return {**settings, **decided} if isinstance(decided, dict) else settings


def _dump(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def _default(each: dataclasses.Field[Any]) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise SettingError(f"there is no file {path}; --config needs a YAML file") from None
    except _RepeatedKey as error:
        raise SettingError(f"{path} {error}; remove one") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} cannot be read as YAML: {first_line(error)}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SettingError(f"{path} has no settings; write lines such as 'steps: 1000'")
    known = [each.name for each in fields(TrainConfig)]
    settings = cast("dict[Any, Any]", found)
    settings.pop(_RESOLVED, None)
    for name in settings:
        if name not in known:
            raise SettingError(f"{path} has an unknown setting {name!r}{nearest_name(name, known)}")
    return {str(name): value for name, value in settings.items() if value is not None}


class _RepeatedKey(Exception):  # noqa: N818 - becomes a SettingError that names the file
    pass


class _Loader(yaml.SafeLoader):
    """Reads YAML like safe_load, but refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first_lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first_lines:
                raise _RepeatedKey(f"names {name!r} twice, in lines {first_lines[name]} and {line}")
            first_lines[name] = line
        return super().construct_mapping(node, deep)


_CHECKPOINTS = ("student", "teacher_text", "image_tower", "init_from")
"""Settings that are a folder, or may be a hub id; a hub id never begins with ``~``."""


def _typed(name: str, value: Any, file: Path | None) -> Any:
    """Return a value in the type of its field: floats from whole numbers, paths from strings."""
    wanted = _TYPES[name]
    if name == "cache" and isinstance(value, str | Path | UPath):
        return given_location(str(value))
    if wanted is Path and isinstance(value, str | Path):
        return Path(os.path.expanduser(value))
    if name == "teacher" and isinstance(value, str):
        return value
    if name in _CHECKPOINTS and isinstance(value, str):
        return os.path.expanduser(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is float and isinstance(value, str):  # YAML 1.1 reads 1e-5 as a string
        value = _as_number(value)
        is_number = isinstance(value, float)
    if wanted is float and is_number:
        return float(value)
    if wanted is dict and isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value)
        if name == "corpus_roots":  # two paths
            return {_expanded(key): _expanded(entry) for key, entry in entries.items()}
        weights = {term: _as_number(w) if isinstance(w, str) else w for term, w in entries.items()}
        if all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights.values()):
            return {term: float(w) for term, w in weights.items()}
    elif wanted is not dict and type(value) is wanted:
        return value
    where = f"{file}: " if file else ""
    raise SettingError(f"{where}{name} must be {_TYPE_WORDS[wanted]}, got {value!r}")


def _expanded(path: object) -> str:
    return os.path.expanduser(str(path))


def _as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _plain_type(hint: Any) -> type:
    """Return the type of a field's values other than None."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        hint = [each for each in get_args(hint) if each is not type(None)][-1]
        origin = typing.get_origin(hint)
    if origin is Literal:
        return str
    return dict if origin is not None else hint


_TYPES = {
    name: _plain_type(hint)
    for name, hint in typing.get_type_hints(TrainConfig).items()
    if name in {each.name for each in dataclasses.fields(TrainConfig)}
}
_TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "names with values",
    Path: "a path",
}
