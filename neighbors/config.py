"""Settings that the reports on a cache share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import SettingError
from ..store.cache import Cache, open_cache
from ..store.format.layout import Modality
from ..store.io.location import Location


def modality_of(among: str) -> Modality:
    """Return the modality that ``images`` or ``texts`` names.

    Raises:
        SettingError: the word is another one.
    """
    if among == "images":
        return "image"
    if among == "texts":
        return "text"
    raise SettingError(f"--among must be images or texts, got {among!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """Settings that every report on a cache has."""

    cache: Location

    teacher: str | None = None
    """Name in the cache; None: the only one."""

    among: str = "images"
    """``images`` or ``texts``: what is searched."""

    view: int = 0
    """View of the images."""

    k: int = 10
    """Neighbours of each image or text."""

    seed: int = 0
    """Random seed."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, where the corpus has moved."""

    def __post_init__(self) -> None:
        modality_of(self.among)
        if self.k < 1:
            raise SettingError(f"-k must be at least 1, got {self.k}")
        for name in ("sample", "limit", "members"):
            value: int | None = getattr(self, name, None)
            if value is not None and value < 1:
                raise SettingError(f"--{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise SettingError(f"--seed must be at least 0, got {self.seed}")

    @property
    def modality(self) -> Modality:
        """Modality of the images or texts that are searched."""
        return modality_of(self.among)

    @property
    def searched_view(self) -> int:
        """View of the images that are searched; 0 for texts."""
        return self.view if self.modality == "image" else 0

    def left_out(self, cache: Cache, num_rows: int) -> str:
        """Return the end of a summary line: how many rows of the cache have no embedding."""
        left = cache.manifest.count(self.modality) - num_rows
        return f"; {left:,} without an embedding left out" if left > 0 else ""

    def open(self) -> tuple[Cache, str]:
        """Return the cache and the name of the teacher.

        Raises:
            SettingError: there is no such teacher or view.
        """
        cache = open_cache(self.cache, corpus_roots=self.corpus_roots)
        if not 0 <= self.view < cache.num_views:
            raise SettingError(
                f"--view {self.view} is not in {cache.root}, which holds views "
                f"0..{cache.num_views - 1} of each image"
            )
        return cache, cache.teacher(self.teacher).name

    def num_rows_read(self) -> int:
        """Return the number of rows that the search reads, for a progress display."""
        cache = open_cache(self.cache)
        return cache.num_samples if self.modality == "image" else cache.num_texts
