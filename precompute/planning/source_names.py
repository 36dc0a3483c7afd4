"""The sources of a plan: opened, named, and checked against those that a cache already has."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import SettingError
from ...store.cache import Cache
from ...store.format.manifest import SourceRecord
from ...store.io.location import Location, is_url, lies_in, parse_location, relocate
from ...store.io.requests import kind_of
from ...store.io.storage import Storage
from ..sources import Source, TableColumns, open_source
from ..sources.fields.caption_endings import SETTING as ENDINGS
from ..sources.fields.caption_endings import parse_endings
from ..sources.globs import is_pattern, matches_any
from ..sources.key_rules import PLAIN, PREFIXED, RULES
from ..sources.webdataset import STORED_VIEWS, WebDatasetSource
from .config import PlanConfig

_SHARDED = {"webdataset", "parquet"}
"""Kinds whose location may name several files of one folder."""

_OPTIONS = {
    "image": "--image-column",
    "captions": "--caption-column",
    "key": "--key-column",
    "lang": "--lang-column",
    "kind": "--kind-column",
    "label": "--label-column",
    "encoding": "--encoding",
    ENDINGS: "--caption-ending",
}
"""Options by the name that their value has in the settings of a source."""

_KIND_FILES = "*.parquet and *_stats.json of img2dataset, images beside shards, dataset_info.json"


def name_sources(config: PlanConfig, cache: Cache | None) -> list[tuple[str, Source]]:
    """Return (name, source) in the order given.

    A source that the cache has keeps its name. A new one takes the name that the user gave; without one,
    an only source has no name, and any other takes the name of its folder or file.

    Raises:
        SourceError: a source is not found or cannot be recognised.
        SettingError: a name or location conflicts with another source, or with the cache.
    """
    recorded = {
        str(relocate(record.location, config.corpus_roots)): record
        for record in (cache.manifest.sources if cache else ())
    }
    by_real_path = {_real_path(location): location for location in recorded}
    named: list[tuple[str, Source]] = []
    for argument in config.sources:
        asked, path = _split_name(argument)
        source = open_source(path)
        # Another path to a recorded corpus (a link, a mount) is that corpus, not a second one.
        location = by_real_path.get(_real_path(str(source.location)))
        if location is not None:
            source = open_source(location)
        record = recorded.get(str(source.location))
        if record is not None and record.kind != source.kind:
            raise SettingError(
                f"{source.location} was planned as {record.kind} and now looks like {source.kind}, which "
                f"would change the keys of its images; restore missing files or remove new ones "
                f"({_KIND_FILES}), or build a new cache"
            )
        columns, endings = _choices(config, record)
        if columns is not None or endings is not None:
            source = open_source(source.location, columns=columns, caption_endings=endings)
        source = _rekeyed(source, config, record)
        source = _with_stored_views(source, config, record)
        name = record.name if record else asked
        if asked is not None and name != asked:
            raise SettingError(
                f"{source.location} is named {name!r} in {_root_of(cache)}, not {asked!r}; its keys were "
                "recorded under that name"
            )
        if name is None:
            _refuse_moved(source, recorded)
            _refuse_other_files(source, recorded, config.corpus_roots)
            is_only = len(config.sources) == 1 and not recorded
            named_by = source.root if is_pattern(source.location) else source.location
            name = "" if is_only else named_by.stem or str(named_by).strip("/").rpartition("/")[2]
        named.append((name, source))
    _refuse_unused_endings(config, named)
    _refuse_shared_names(named, {record.name: location for location, record in recorded.items()})
    return named


def _real_path(location: str) -> str:
    """Return a path without links, the same for all paths to one file; a URL unchanged."""
    return location if is_url(location) else os.path.realpath(location)


def _rekeyed(source: Source, config: PlanConfig, record: SourceRecord | None) -> Source:
    """Return the source with its recorded rules for keys; a new source, with the current rules.

    Raises:
        SettingError: prefixes were requested, and the source was planned without.
    """
    if record is not None:
        rules = {name for name in RULES if record.settings.get(name)}
    else:
        rules = {PLAIN} if source.kind == "webdataset" else set[str]()
        rules |= {PREFIXED} if config.prefix_keys else set()
    if config.prefix_keys and PREFIXED not in rules:
        raise SettingError(
            f"the keys of {source.location} were recorded without their files' names; leave out "
            "--prefix-keys, or build a new cache"
        )
    in_order = tuple(name for name in RULES if name in rules)
    return replace(source, key_rules=in_order) if in_order else source


def _with_stored_views(source: Source, config: PlanConfig, record: SourceRecord | None) -> Source:
    """Return the source with views as recorded; a new one, as requested.

    Raises:
        SettingError: stored views were requested of a source without tars.
    """
    wanted = STORED_VIEWS in record.settings if record else config.has_stored_views
    if not wanted:
        return source
    if not isinstance(source, WebDatasetSource):
        raise SettingError(
            f"{source.location} is not made of tars, and only they have crops beside their images; give "
            "--views 1 to take whole images"
        )
    return replace(source, has_stored_views=True)


def _choices(
    config: PlanConfig, record: SourceRecord | None
) -> tuple[TableColumns | None, tuple[str, ...] | None]:
    """Return the columns and caption endings of a source: those recorded for it and those asked for now.

    Raises:
        SettingError: what is asked for differs from what is recorded.
    """
    settings = record.settings.items() if record else ()
    own = {*RULES, STORED_VIEWS}
    chosen: dict[str, Any] = {name: value for name, value in settings if name not in own}
    asked = config.columns.to_settings() if config.columns else {}
    if config.caption_endings is not None:
        asked[ENDINGS] = list(parse_endings(config.caption_endings))
    for name, value in asked.items():
        recorded = chosen.setdefault(name, value)
        if recorded != value and record is not None:
            raise SettingError(
                f"{_OPTIONS[name]} is {recorded!r} for {record.location} in the cache and {value!r} was "
                "asked for; it is fixed for a source: leave the option out, or build a new cache"
            )
    endings = chosen.pop(ENDINGS, None)
    if "captions" in chosen:
        chosen["captions"] = tuple(chosen["captions"])
    return TableColumns(**chosen) if chosen else None, endings and tuple(endings)


def _refuse_unused_endings(config: PlanConfig, named: Sequence[tuple[str, Source]]) -> None:
    if config.caption_endings and not any(ENDINGS in source.settings for _, source in named):
        raise SettingError(
            f"--caption-ending {config.caption_endings[0]} is for folders of images and for tars, and "
            f"{named[0][1].location} is neither; leave it out, or choose columns with --caption-column"
        )


def _root_of(cache: Cache | None) -> str:
    return str(cache.root) if cache else "the cache"


def _refuse_moved(source: Source, recorded: Mapping[str, SourceRecord]) -> None:
    """Refuse a new source without a name if a recorded one is gone: its samples could be added twice."""
    gone = [location for location in recorded if not matches_any(parse_location(location))]
    if gone:
        same_name = (each for each in gone if Path(each).name == source.location.name)
        old = next(same_name, gone[0])
        raise SettingError(
            f"{source.location} is new to the cache, whose source {old} is no longer there; if the corpus "
            f"moved, use --corpus-root {old}={source.location}; if this is another one, name it with "
            f"NAME={source.location}"
        )


def _refuse_other_files(
    source: Source, recorded: Mapping[str, SourceRecord], corpus_roots: Mapping[str, str]
) -> None:
    """Refuse other files of a recorded folder of shards as a new source without a name.

    ``{000..123}.tar`` that was ``{000..122}.tar`` is the same corpus, and its samples would be added twice.
    Two single files are two sources: a shell makes them of a pattern without quotes.
    """
    if source.kind not in _SHARDED:
        return
    for location, record in recorded.items():
        root = relocate(record.root, corpus_roots)
        if record.kind != source.kind or root != source.root:
            continue
        was_file, is_file = (
            _is_one_file(each) for each in (parse_location(location), source.location)
        )
        if was_file and is_file:
            continue
        begin = f"{source.location} is new to the cache, which has {location} of the same folder; "
        if was_file:
            raise SettingError(
                f"{begin}name the files one by one as before (a pattern without quotes), including new ones; "
                f"or, if it is another corpus, name it with NAME={source.location}"
            )
        raise SettingError(
            f"{begin}if it is that corpus with other shards, use --corpus-root "
            f"'{location}={source.location}'; if it is another one, name it with NAME={source.location}"
        )


def _is_one_file(location: Location) -> bool:
    return not is_pattern(location) and kind_of(location) == "file"


def _refuse_shared_names(named: Sequence[tuple[str, Source]], recorded: Mapping[str, str]) -> None:
    locations = dict(recorded)
    given: set[str] = set()
    for name, source in named:
        location = str(source.location)
        real_path = _real_path(location)  # a link to it is the same corpus
        if real_path in given:
            raise SettingError(f"the source {location} was given twice")
        other = locations.get(name, location)
        if other != location:
            moved = f"; or, if the corpus moved, use --corpus-root {other}={location}"
            raise SettingError(
                f"two sources have the name {name!r}: {other} and {location}; give this one another name "
                f"with NAME={location}{moved if name in recorded else ''}"
            )
        given.add(real_path)
        locations[name] = location


def refuse_sources_in_cache(sources: Sequence[tuple[str, Source]], files: Storage) -> None:
    """Refuse sources in the folder of the cache.

    Raises:
        SettingError: one is there.
    """
    for _, source in sources:
        if lies_in(source.location, files.root):
            raise SettingError(
                f"the source {source.location} is in the folder of the cache, {files.root}, which must "
                "hold nothing else; use another folder for the cache, or move the corpus"
            )


def _split_name(argument: str) -> tuple[str | None, str]:
    name, separator, path = argument.partition("=")
    if not separator or "/" in name or Path(argument).exists():
        return None, argument
    if not name.strip():
        raise SettingError(f"source {argument!r} has an empty name; write NAME=PATH or only PATH")
    return name, path
