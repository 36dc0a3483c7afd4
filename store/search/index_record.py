"""Records of indexes, and whether an index matches its cache. Needs no faiss.

An index is derived data: it can be deleted at any time and built again from the targets. It exists only
with its record, and is used only if the fingerprint in the record matches the cache.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

from ...errors import CacheError, DamagedCacheError
from ...formatting import format_bytes
from ..cache import Cache
from ..format.layout import INDEXES, IndexId, Modality, other_modality, parse_index_record
from ..format.record_fields import Fields, read_fields
from ..format.records import encode_record, sha256_hex
from ..io.storage import Storage

Kind = Literal["flat", "ivf", "ivfpq", "hnsw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Identifies the indexed targets: equal fingerprints mean equal targets."""

    teacher: str
    catalog: str
    """Digest of the latest generation."""

    num_units: int
    """Committed units of the modality."""

    units: str
    """SHA-256 over the checksums of the files of the units, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """The fraction of the true neighbours that an index finds, for queries of one modality."""

    at: int
    """Neighbours of each query."""

    value: float | None
    """The fraction found over all queries; None if there were no neighbours."""

    num_queries: int
    seed: int
    """Random seed for the choice of queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossSearch:
    """Search parameters for queries of the other modality: texts among images, images among texts.

    Their neighbours are spread over more lists: with 8 lists where images find 0.97 of their neighbours,
    texts may find 0.38.
    """

    search: Mapping[str, int]
    recall: Recall


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecord:
    """A finished index."""

    teacher: str
    modality: Modality
    view: int
    kind: Kind
    factory: str
    """Factory string of faiss, such as ``IVF4096,SQfp16``."""

    parameters: Mapping[str, Any]
    """Other parameters with which it was built."""

    search: Mapping[str, int]
    """Search parameters for queries of its own modality: nprobe or efSearch; empty for a flat index."""

    num_rows: int
    embed_dim: int
    fingerprint: Fingerprint
    recall: Recall
    """Recall for queries of its own modality."""

    cross: CrossSearch | None
    """None if the other modality had no targets, or an earlier release wrote the record."""

    faiss_version: str
    files: Mapping[str, Mapping[str, Any]]

    @property
    def num_bytes(self) -> int:
        """The size of the index on disk."""
        return sum(description["num_bytes"] for description in self.files.values())


def fingerprint(cache: Cache, index_id: IndexId) -> Fingerprint:
    """Return the fingerprint of the targets of a cache."""
    units = sorted(cache.commits(index_id.teacher).units_of(index_id.modality).items())
    lines = [
        f"{number} {path} {description['sha256']}"
        for number, commit in units
        for path, description in sorted(commit.files.items())
    ]
    return Fingerprint(
        teacher=index_id.teacher,
        catalog=cache.manifest.latest.digest,
        num_units=len(units),
        units=sha256_hex("\n".join(lines).encode()),
    )


def why_stale(record: IndexRecord, now: Fingerprint) -> str | None:
    """Return what has changed in the cache since an index was built, or None if nothing has."""
    then, what = record.fingerprint, f"{record.modality} units"
    if then.num_units != now.num_units:
        return f"{now.num_units:,} {what} are committed, it was built from {then.num_units:,}"
    if then.units != now.units:
        return f"{what} were embedded again after it was built"
    if then.catalog != now.catalog:
        return "the catalog has grown since it was built"
    return None if then == now else f"it was built for teacher {then.teacher}"


def build_command(cache: Cache, index_id: IndexId, kind: str | None = None) -> str:
    """Return the command that builds an index."""
    words = ["siglip2-cache index", str(cache.root)]
    words += [] if index_id.modality == "image" else ["--among texts"]
    words += [f"--teacher {index_id.teacher}"] if len(cache.teachers) > 1 else []
    words += [f"--view {index_id.view}"] if index_id.view else []
    words += [f"--kind {kind}"] if kind else []
    return " ".join(words)


def read_index_record(files: Storage, index_id: IndexId) -> IndexRecord | None:
    """Return the record of an index, or None if it does not exist.

    Raises:
        DamagedCacheError, FormatVersionError: the record cannot be read.
    """
    try:
        data = files.read(index_id.record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    record = read_fields(data, where=files.where(index_id.record))
    try:
        return _parse_record(record, index_id)
    except DamagedCacheError as error:
        raise DamagedCacheError(f"{error}; run siglip2-cache index again") from None


def _parse_record(record: Fields, index_id: IndexId) -> IndexRecord:
    recorded = (record.text("teacher"), record.text("modality"), record.count("view"))
    if recorded != (index_id.teacher, index_id.modality, index_id.view):
        record.refuse("teacher", f"those of {index_id.stem}")
    kind, found = record.text("kind"), record.files()
    if kind not in get_args(Kind):
        record.refuse("kind", f"one of {', '.join(get_args(Kind))}")
    if found.keys() != {index_id.file}:
        record.refuse("files", f"{index_id.file} alone")
    made_from = record.fields("fingerprint")
    cross = None if record.values.get("cross") is None else record.fields("cross")
    return IndexRecord(
        teacher=index_id.teacher,
        modality=index_id.modality,
        view=index_id.view,
        kind=cast("Kind", kind),
        factory=record.text("factory"),
        parameters=record.mapping("parameters"),
        search=_parse_search(record.fields("search")),
        num_rows=record.count("num_rows"),
        embed_dim=record.count("embed_dim", least=1),
        fingerprint=Fingerprint(
            teacher=made_from.text("teacher"),
            catalog=made_from.text("catalog"),
            num_units=made_from.count("num_units"),
            units=made_from.text("units"),
        ),
        recall=_parse_recall(record.fields("recall")),
        cross=cross
        and CrossSearch(
            search=_parse_search(cross.fields("search")),
            recall=_parse_recall(cross.fields("recall")),
        ),
        faiss_version=record.text("faiss_version"),
        files=found,
    )


def _parse_search(search: Fields) -> dict[str, int]:
    return {name: search.count(name) for name in search.values}


def _parse_recall(recall: Fields) -> Recall:
    return Recall(
        at=recall.count("at"),
        value=None if recall.values.get("value") is None else recall.number("value"),
        num_queries=recall.count("num_queries"),
        seed=recall.whole("seed"),
    )


def write_index_record(files: Storage, index_id: IndexId, record: IndexRecord) -> None:
    """Write the record of an index durably, after its file."""
    files.replace(index_id.record, encode_record(asdict(record)))


def list_indexes(files: Storage) -> Iterator[IndexId]:
    """Yield the indexes that have a record, damaged or not, in the order of paths."""
    for teacher in files.names(INDEXES):
        for name in files.names(f"{INDEXES}/{teacher}"):
            index_id = parse_index_record(f"{INDEXES}/{teacher}/{name}")
            if index_id is not None:
                yield index_id


def describe_indexes(cache: Cache, teacher: str) -> list[dict[str, Any]]:
    """Return descriptions of the indexes of a teacher as plain values, for ``info``."""
    found: list[dict[str, Any]] = []
    for index_id in list_indexes(cache.files):
        if index_id.teacher != teacher:
            continue
        where = {"modality": index_id.modality, "view": index_id.view}
        try:
            record = read_index_record(cache.files, index_id)
        except CacheError as error:
            found.append({**where, "fault": str(error)})
            continue
        if record is not None:
            stale = why_stale(record, fingerprint(cache, index_id))
            found.append({**where, **summarize_index(record), "stale": stale})
    return found


def summarize_index(record: IndexRecord) -> dict[str, Any]:
    """Return a summary of an index as plain values."""
    return {
        "kind": record.kind,
        "factory": record.factory,
        "search": dict(record.search),
        "rows": record.num_rows,
        "num_bytes": record.num_bytes,
        "recall": asdict(record.recall),
        "cross": record.cross and asdict(record.cross),
        "modality": record.modality,
    }


def format_index_line(found: Mapping[str, Any]) -> str:
    """Return one description of describe_indexes as a line of text."""
    what = f"{found['modality']} index" + (f" of view {found['view']}" if found["view"] else "")
    if "fault" in found:
        return f"{what} cannot be used: {found['fault']}"
    stale = f"; not used: {found['stale']}" if found["stale"] else ""
    return f"{what}: {format_index(found)}{stale}"


def format_index(found: Mapping[str, Any]) -> str:
    """Return a summary as text: kind, rows, size, and the recall of both modalities."""
    own, other = found["modality"], other_modality(found["modality"])
    return (
        f"{found['kind']} ({found['factory']}), {found['rows']:,} rows, "
        f"{format_bytes(found['num_bytes'])}, {format_recall(own, found)}, "
        f"{format_recall(other, found['cross'])}"
    )


def format_recall(modality: str, found: Mapping[str, Any] | None) -> str:
    """Return the recall of queries of a modality as text, with the search parameters."""
    if found is None or found["recall"]["value"] is None:
        return f"recall of {modality}s not measured"
    recall = found["recall"]
    search = [f"{name} {value}" for name, value in found["search"].items() if name != "candidates"]
    by = f" ({', '.join(search)})" if search else ""
    return f"recall@{recall['at']} of {modality}s {recall['value']:.3f}{by}"
