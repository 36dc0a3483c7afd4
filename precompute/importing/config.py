"""Settings of an import, and its summary."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import SettingError
from ...store.format.layout import Modality
from ...store.io.location import Location
from ..config import BuildSummary
from ..planning.config import PlanConfig
from .fit import LogitFit

_MAX_LOGIT_SCALE = 10.0
"""Of a logarithm: a factor of 22,026. CLIP stops at 4.6 (100), SigLIP 2 is at 4.7."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingColumns:
    """Names of columns of Parquet files; None: one of the usual names."""

    key: str | None = None
    view: str | None = None
    embedding: str | None = None
    text: str | None = None
    text_embedding: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Settings of one import."""

    source: Location
    """A file, a folder or a pattern of files (open.py)."""

    cache: Location
    """Folder of the cache."""

    teacher_name: str
    """Name of the teacher in the cache."""

    plan: PlanConfig | None = None
    """Corpus that the embeddings belong to; None: that of the cache, or the tars of the source. Its views
    are ``num_views``."""

    shard_rows: int | None = None
    """Rows of a unit in a new cache; None: the default of a build."""

    num_views: int | None = None
    """Views of each image in a new cache. None: 1; of DataCompDR its crops and the whole image."""

    columns: EmbeddingColumns = field(default_factory=EmbeddingColumns)
    logit_scale: float | None = None
    """Logarithm of the factor of a cosine; None: as recorded in the cache, else fitted."""

    logit_bias: float | None = None
    """None: as recorded in the cache, else fitted."""

    seed: int = 0
    """Random seed of the pairs of the fit."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, for a corpus that moved."""

    decode_workers: int | None = None
    """Processes that read and decode the images; None: one a core, at most 16."""

    sample_timeout_s: float = 60.0
    """Seconds that one image may take to read and decode before it is rejected."""

    retry_rejected: bool = False
    """Retry the rejected rows of committed units."""

    def __post_init__(self) -> None:
        if self.logit_scale is not None and abs(self.logit_scale) > _MAX_LOGIT_SCALE:
            raise SettingError(
                f"--logit-scale is a logarithm, at most {_MAX_LOGIT_SCALE:g}, got "
                f"{self.logit_scale:g}; a factor of 100 is 4.6052"
            )
        if self.seed < 0:
            raise SettingError(f"--seed must be at least 0, got {self.seed}")
        if self.decode_workers is not None and not 0 <= self.decode_workers <= 1024:
            raise SettingError(f"decode workers must be 0 to 1,024, got {self.decode_workers}")
        if not self.sample_timeout_s > 0:
            raise SettingError(f"sample timeout must be above 0 s, got {self.sample_timeout_s}")


@dataclass(slots=True, kw_only=True)
class ImportSummary:
    """What an import did."""

    build: BuildSummary
    """The part that every build has."""

    source: str
    kind: str
    digest: str
    """SHA-256 of what was imported."""

    logit_scale: float
    logit_bias: float
    fit: LogitFit | None
    """None: they were given, or are recorded."""

    names: dict[Modality, dict[str, int]]
    """Names by what became of them."""

    norms: dict[Modality, dict[str, float]]
    """Norms of the vectors that this run read."""

    note: str | None
    """What could not be imported faithfully."""

    lines: list[str]
    """The same, a line each."""
