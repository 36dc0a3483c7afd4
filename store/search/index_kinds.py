"""Kinds of approximate index: choosing one, building it, and its search parameters.

Shape letters in this file:
    B = rows of a block, D = embed_dim.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import faiss
import numpy as np
from numpy.typing import NDArray

from ...errors import SettingError
from ...formatting import format_bytes
from .exact import has_gpu
from .index_record import Kind

_faiss: Any = faiss  # its types lack what the C++ classes and functions have

KINDS: tuple[str, ...] = ("auto", *get_args(Kind))
SEED = 0
"""Random seed for the rows of training and of measuring recall."""

FLAT_ROWS = 100_000
"""auto: up to this many rows, an exact scan takes about 0.1 s."""

IVF_BYTES = 1 << 34
"""auto: up to this size, 16 GiB, rows are kept in float16 (7 million of 1152 values); above, as codes."""

_MIN_TRAIN_ROWS = 39
"""Rows of a centroid below which faiss warns."""

_TRAIN_ROWS = 64
"""Training rows of a list; faiss uses 39 to 256. Training takes time in proportion."""

_LISTS_PER_ROOT = 2
"""Lists as a multiple of the square root of the rows. A query is compared with all centroids and with the
rows of nprobe lists, which is fastest with sqrt(rows * nprobe) lists, here for nprobe 4. Adding takes time
in proportion to the lists, training to their square."""

_CODE_DIMENSIONS = 8
"""Dimensions of one byte of a product quantizer: 144 bytes for 1152 float16 values, which take 2,304.
Candidates are ranked by the stored rows, so codes need only be good enough to propose them."""

_HNSW_LINKS, _HNSW_DEPTH = 32, 128
_SEARCH_RANGES = {"nprobe": (1, 1024), "efSearch": (16, 1024)}
_CANDIDATES: dict[Kind, tuple[int, ...]] = {
    "flat": (2,),
    "ivf": (2,),
    "hnsw": (2,),
    "ivfpq": (16, 32, 64, 128),
}
"""Rows that an index proposes for each neighbour, fewest first. Rows in float16 are in nearly the right
order; codes are not. For 60,000 synthetic images in codes, 16 candidates a neighbour contained .94 of the
true neighbours of images and .86 of those of texts, with any number of lists; 64 contained .999 and .98."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlan:
    """The kind and parameters of an index to build."""

    kind: Kind
    reason: str
    """The reason for the kind, for people."""

    factory: str
    parameters: Mapping[str, int]


def plan_index(kind: str, num_rows: int, embed_dim: int) -> IndexPlan:
    """Return the kind and parameters of an index for ``num_rows`` rows.

    Raises:
        SettingError: there is no such kind, or too few rows for it.
    """
    if kind not in KINDS:
        raise SettingError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    is_auto = kind == "auto"
    chosen, reason = _choose(num_rows, embed_dim) if is_auto else (_as_kind(kind), "as asked")
    wanted_lists = round(_LISTS_PER_ROOT * math.sqrt(num_rows))
    num_lists = max(1, min(wanted_lists, num_rows // _MIN_TRAIN_ROWS))
    match chosen:
        case "flat":
            return IndexPlan(kind=chosen, reason=reason, factory="IDMap,SQfp16", parameters={})
        case "hnsw":
            factory = f"IDMap,HNSW{_HNSW_LINKS},SQfp16"
            parameters = {"efConstruction": _HNSW_DEPTH}
            return IndexPlan(kind=chosen, reason=reason, factory=factory, parameters=parameters)
        case "ivf":
            factory = f"IVF{num_lists},SQfp16"
        case "ivfpq":
            if num_rows < 256 * _MIN_TRAIN_ROWS:
                raise SettingError(
                    f"kind ivfpq learns its codes from at least {256 * _MIN_TRAIN_ROWS:,} rows, "
                    f"there are {num_rows:,}; use flat or ivf"
                )
            factory = f"IVF{num_lists},PQ{_num_codes(embed_dim)}"
    # A product quantizer needs training rows for its codes, even with few lists.
    num_train = min(num_rows, max(_TRAIN_ROWS * num_lists, 256 * _MIN_TRAIN_ROWS))
    parameters = {"train_rows": num_train, "seed": SEED}
    return IndexPlan(kind=chosen, reason=reason, factory=factory, parameters=parameters)


def make_index(plan: IndexPlan, embed_dim: int) -> Any:
    """Return an empty faiss index of inner products."""
    index = _faiss.index_factory(embed_dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    if plan.kind in ("ivf", "ivfpq"):
        clustering = ivf_of(index).cp
        clustering.spherical = True
        clustering.seed = SEED
    if plan.kind == "hnsw":
        graph = _faiss.downcast_index(index.index)
        graph.hnsw.efConstruction = plan.parameters["efConstruction"]
    return index


def train(index: Any, rows_BD: NDArray[np.float32]) -> None:
    """Train the lists and codes of an index; the lists on a GPU if faiss has one."""
    if has_gpu():
        flat = _faiss.IndexFlatIP(index.d)
        ivf_of(index).clustering_index = gpu = _faiss.index_cpu_to_all_gpus(flat)
        index.train(rows_BD)
        ivf_of(index).clustering_index = None
        del gpu
    else:
        index.train(rows_BD)


class Adder:
    """Adds rows to an index, finding their lists on a GPU if faiss has one.

    The index stays in main memory: it may not fit on a GPU, and can be saved at any time.
    """

    def __init__(self, index: Any) -> None:
        self._index, self._quantizer = index, None
        ivf = _faiss.try_extract_index_ivf(index)
        if ivf is not None and has_gpu():
            self._quantizer = _faiss.index_cpu_to_all_gpus(_faiss.downcast_index(ivf.quantizer))

    def add(self, rows_B: NDArray[np.int64], unit_BD: NDArray[np.float32]) -> None:
        """Add L2-normalised rows with their row numbers as ids."""
        if self._quantizer is None:
            self._index.add_with_ids(unit_BD, rows_B)
            return
        _, list_B1 = self._quantizer.search(unit_BD, 1)
        list_B = np.ascontiguousarray(list_B1[:, 0], np.int64)
        pointers = [faiss.swig_ptr(array) for array in (unit_BD, rows_B, list_B)]
        ivf_of(self._index).add_core(len(rows_B), *pointers)


def list_searches(kind: Kind, factory: str) -> list[dict[str, int]]:
    """Return search parameters to try, in order of work; a flat index has only one."""
    if kind == "flat":
        return [{"candidates": _CANDIDATES[kind][0]}]
    name = "efSearch" if kind == "hnsw" else "nprobe"
    value, most = _SEARCH_RANGES[name]
    if name == "nprobe":
        most = min(most, int(factory.split(",")[0].removeprefix("IVF")))
    values: list[int] = []
    while value < most:
        values.append(value)
        value *= 2
    return [
        {name: value, "candidates": candidates}
        for candidates in _CANDIDATES[kind]
        for value in (*values, most)
    ]


def widen_search(index: Any, search: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Yield search parameters with more and more lists, up to all; none for an index without lists."""
    nprobe = search.get("nprobe")
    while nprobe is not None and nprobe < ivf_of(index).nlist:
        nprobe = min(2 * nprobe, ivf_of(index).nlist)
        yield {**search, "nprobe": nprobe}


def set_search(index: Any, search: Mapping[str, int]) -> None:
    """Set the search parameters of an index."""
    for name in search.keys() & _SEARCH_RANGES.keys():
        _faiss.ParameterSpace().set_index_parameter(index, name, search[name])


def ivf_of(index: Any) -> Any:
    """Return the inverted file of an index."""
    return _faiss.extract_index_ivf(index)


def _choose(num_rows: int, embed_dim: int) -> tuple[Kind, str]:
    num_bytes = 2 * num_rows * embed_dim
    rows, size = f"{num_rows:,} rows", format_bytes(num_bytes)
    if num_rows <= FLAT_ROWS:
        return "flat", f"{rows} are at most {FLAT_ROWS:,}, so an exact scan is fast"
    if num_bytes <= IVF_BYTES:
        return "ivf", f"{rows} are more than {FLAT_ROWS:,}, and their {size} fit in memory"
    return "ivfpq", f"{rows} of {size} exceed {format_bytes(IVF_BYTES)}, so codes are kept"


def _as_kind(kind: str) -> Kind:
    return next(each for each in get_args(Kind) if each == kind)


def _num_codes(embed_dim: int) -> int:
    """Return the bytes of the code of a row: the largest divisor of its width up to an eighth of it."""
    most = max(1, embed_dim // _CODE_DIMENSIONS)
    return max(m for m in range(1, most + 1) if embed_dim % m == 0)
