"""Nearest neighbours of queries, by exact search or from an index."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import SettingError
from ..formatting import format_count
from ..store.cache import Cache
from ..store.format.layout import other_modality
from ..store.search.exact import Neighbors, exact_neighbors
from ..store.search.index_query import open_index
from ..store.search.index_record import IndexRecord, format_recall, summarize_index
from .config import ReportConfig
from .items import items_of, own_text_rows
from .queries import EmbeddedQuery, Query, QueryResolver
from .report import Group, Item, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborsConfig(ReportConfig):
    """Settings of find_neighbors."""

    queries: tuple[Query, ...] = ()
    """Queries; empty: a random sample of images."""

    sample: int = 5
    """Number of images in that sample."""

    include_self: bool = False
    """Let an image or text be its own neighbour."""

    approximate: bool = False
    """Search the index that siglip2-cache index built, instead of every row."""

    checkpoint: str | None = None
    """Folder of the teacher's checkpoint, if it has moved."""

    device: str = "auto"

    patches: bool = False
    """Compare each text also with the cells of its images, which needs the teacher and its patch targets."""

    def __post_init__(self) -> None:
        ReportConfig.__post_init__(self)
        is_of_texts = bool(self.queries) and all(query.kind == "text" for query in self.queries)
        if self.patches and not (is_of_texts and self.modality == "image"):
            raise SettingError(
                "--patches shows where a text is in images: it goes with --text, and with --among images"
            )


def find_neighbors(
    config: NeighborsConfig, *, on_rows: Callable[[int], None] | None = None
) -> Report:
    """Return the k nearest images or texts of each query.

    Raises:
        SettingError: the teacher, the view, a key, a text or a picture cannot be used.
        RowUnavailableError: a row of a query has no embedding.
    """
    cache, teacher = config.open()
    resolver = QueryResolver(cache, teacher, config.view, config.checkpoint, config.device)
    if config.queries:
        queries = resolver.resolve(config.queries)
    else:
        queries = resolver.random(config.sample, config.seed)
    if not queries:
        raise SettingError(f"{cache.root} has no image embedded by {teacher} yet")
    if config.patches:
        cache.patch_targets(teacher)  # else refused only after the search
    found, how = _search(config, cache, teacher, queries, on_rows)
    groups, notes = _groups(config, cache, queries, found), tuple[str, ...]()
    if config.patches:
        from .patch_cosines import with_patch_cosines

        live = resolver.live_teacher()
        groups = with_patch_cosines(cache, live, queries, groups, view=config.view)
        notes = (
            "heat maps: cosine of the text to each part of an image, dark to bright, one scale a row",
        )
    return Report(
        title="Neighbors",
        cache=cache.root,
        teachers=(teacher,),
        summary=(
            f"{format_count(len(queries), 'query')} among {found.num_rows:,} {config.among}, {how}"
            + config.left_out(cache, found.num_rows),
            *notes,
        ),
        groups=tuple(groups),
    )


def _search(
    config: NeighborsConfig,
    cache: Cache,
    teacher: str,
    queries: Sequence[EmbeddedQuery],
    on_rows: Callable[[int], None] | None,
) -> tuple[Neighbors, str]:
    """Return the neighbours, and how they were found, in words."""
    embeddings_QD = np.stack([query.embedding_D for query in queries])
    exclude_Q = [
        query.own_row if query.item.kind == config.modality and not config.include_self else -1
        for query in queries
    ]
    targets = cache.targets(config.modality, teacher)
    k = min(config.k, len(targets) + 1)
    if config.approximate:
        index = open_index(cache, config.modality, teacher=teacher, view=config.searched_view)
        is_other_Q = [query.item.kind != config.modality for query in queries]
        found = index.neighbors(embeddings_QD, k, exclude_Q=exclude_Q, is_other_Q=is_other_Q)
        return found, _by_index(index.record, found, is_other_Q, k, exclude_Q)
    found = exact_neighbors(
        targets, embeddings_QD, k, view=config.searched_view, exclude_Q=exclude_Q, on_rows=on_rows
    )
    return found, "exact"


def _by_index(
    record: IndexRecord,
    found: Neighbors,
    is_other_Q: Sequence[bool],
    k: int,
    exclude_Q: Sequence[int],
) -> str:
    """Return the recall of the index and what it missed, in words."""
    measured: list[str] = []
    if not all(is_other_Q):
        measured.append(format_recall(record.modality, summarize_index(record)))
    if any(is_other_Q):
        measured.append(
            format_recall(other_modality(record.modality), summarize_index(record)["cross"])
        )
    words = f"by the index ({', '.join(measured)}"
    if k > record.recall.at:
        words += f"; lower at {k:,}"
    words += ")"
    wanted_Q = [min(k, found.num_rows - (row >= 0)) for row in exclude_Q]
    missing = sum(wanted_Q) - int((found.rows_QK >= 0).sum())
    if missing:
        words += (
            f"; {missing:,} existing neighbours were missed, without --approximate all are found"
        )
    return words


def _groups(
    config: NeighborsConfig, cache: Cache, queries: Sequence[EmbeddedQuery], found: Neighbors
) -> list[Group]:
    near = items_of(
        cache, config.modality, found.rows_QK[found.rows_QK >= 0].tolist(), view=config.view
    )
    own_rows = [q.own_row for q in queries if q.own_row >= 0 and q.item.kind != config.modality]
    images = own_rows if config.modality == "text" else near
    own = own_text_rows(cache, images) if own_rows else {}
    groups: list[Group] = []
    for query, rows_K, cosine_K in zip(queries, found.rows_QK, found.cosine_QK, strict=True):
        items = [
            replace(
                near[row],
                cosine=cosine,
                remarks=(*_own_remark(query, near[row], own), *near[row].remarks),
            )
            for row, cosine in zip(rows_K.tolist(), cosine_K.tolist(), strict=True)
            if row >= 0
        ]
        groups.append(Group(query=query.item, items=tuple(items)))
    return groups


def _own_remark(query: EmbeddedQuery, item: Item, own: Mapping[int, set[int]]) -> tuple[str, ...]:
    """Return a remark if query and item are the same, or image and own caption."""
    assert item.row is not None
    if query.item.kind == item.kind:
        return ("itself",) if query.own_row == item.row else ()
    image, text = (item.row, query.own_row) if item.kind == "image" else (query.own_row, item.row)
    return ("own caption",) if text in own.get(image, ()) else ()
