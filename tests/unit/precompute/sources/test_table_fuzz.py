"""Tables of anything: a plan of them is made or refused, and no row is lost on the way."""

import contextlib
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings

from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.sources import Problem, Sample, Unused, open_source
from siglip2_cache.store.io.local import LocalStorage

KINDS = ["jsonl", "csv", "tsv", "parquet"]
HEADS = {
    "jsonl": b'{"image": "a.png", "key": "k", "caption": "c"}\n',
    "csv": b"image,key,caption\n",
    "tsv": b"image\tkey\tcaption\n",
}
fuzz = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# Words that mean something to a reader, between any others.
words = st.sampled_from(
    [
        *b'image key caption " "" , { } [ ] : null NaN 1e999 - \\ud800 \\u0000 .. / a.png'.split(
            b" "
        ),
        *(b"\t", b"\n", b"\r\n", b"\r", b"\0", b" ", b"\\", b"\x1b[2J", b"9" * 400, b"\xff"),
        "\u2028\ufeff".encode(),
    ]
)
contents = st.lists(words | st.binary(max_size=6), max_size=40).map(b"".join)


def entries_of(table: Path) -> list[Sample | Problem | Unused] | None:
    """What a scan gives; None where the table is refused as a whole."""
    try:
        return list(open_source(table).scan())
    except (SourceError, SettingError):
        return None


def plan_of(table: Path) -> None:
    """Plan a table; that it may be refused is all that this forgives."""
    config = PlanConfig(sources=(str(table),))
    with contextlib.suppress(SourceError, SettingError):
        make_plan(config, LocalStorage(table.parent / "cache"), is_dry_run=True)


@pytest.mark.parametrize("kind", KINDS)
@fuzz
@given(content=contents, has_head=st.booleans())
def test_any_bytes_are_planned_or_refused(
    tmp_path: Path, kind: str, content: bytes, has_head: bool
) -> None:
    table = tmp_path / f"table.{kind}"
    table.write_bytes((HEADS.get(kind, b"PAR1") if has_head else b"") + content)
    entries = entries_of(table)
    assert entries is None or len(entries) > 0
    plan_of(table)


# Values as JSON knows them, lone surrogates and numbers that are none among them.
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["a.png", "..", "/", "", " ", "a\0b", "\ud800", "de", "http://x/y.png", "./"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["text", "lang", "de", "en", "raw", "x", ""]), inner, max_size=3
        ),
    ),
    max_leaves=6,
)
columns = st.sampled_from(
    [
        *("image", "Image", "path", "key", "id", "caption", "captions", "caption_de", "lang"),
        *("label", "title", "caption_id"),
        *("", "\ud800"),
    ]
)
rows = st.lists(st.dictionaries(columns, values, max_size=5), min_size=1, max_size=6)


@fuzz
@given(rows=rows)
@example(rows=[{"image": "a.png", "key": float("inf")}, {"image": "b.png", "lang": {}}])
def test_every_line_of_a_jsonl_is_a_sample_or_a_problem(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = entries_of(table)
    if entries is not None:
        lines = [entry for entry in entries if not isinstance(entry, Unused)]
        expected = [f"{table} line {number}" for number in range(1, len(rows) + 1)]
        assert list(dict.fromkeys(entry.place for entry in lines)) == expected
        assert len({e.place for e in lines if isinstance(e, Sample)}) == sum(
            isinstance(e, Sample) for e in lines
        )
    plan_of(table)


arrow_types = st.sampled_from(
    (
        *(pa.string(), pa.large_string(), pa.binary(), pa.int64(), pa.float32(), pa.bool_()),
        *(pa.null(), pa.date32(), pa.duration("us"), pa.time64("ns"), pa.timestamp("ns")),
        *(pa.decimal128(38, 3), pa.list_(pa.string()), pa.dictionary(pa.int32(), pa.string())),
        pa.struct([("de", pa.string()), ("en", pa.list_(pa.string()))]),
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        pa.map_(pa.string(), pa.string()),
    )
)
_VALUES: dict[str, list[Any]] = {
    "string": ["a.png", "", "é\0", None],
    "list<": [["a", None, ""], [], None],
    "dictionary": ["a.png", None],
    "binary": [b"a.png", b"\xff", None],
    "struct<bytes": [{"bytes": b"\xff\xd8", "path": "a.png"}, None],
    "struct<de": [{"de": "ein", "en": ["a", None]}, None],
    "map": [[("de", "ein")], [], None],
    "float": [1.5, float("nan"), None],
    "bool": [True, None],
}


@fuzz
@given(
    schema=st.lists(st.tuples(columns.filter(str.isascii), arrow_types), min_size=1, max_size=4),
    num_rows=st.integers(0, 4),
)
@example(schema=[("image", pa.string()), ("key", pa.time64("ns"))], num_rows=1)  # 7 ns, for Python
def test_every_row_of_a_parquet_of_any_schema_is_a_sample_or_a_problem(
    tmp_path: Path, schema: list[tuple[str, pa.DataType]], num_rows: int
) -> None:
    arrays: list[Any] = []
    for _, kind in schema:
        some = next(
            (v for k, v in _VALUES.items() if str(kind).removeprefix("large_").startswith(k)),
            [7, None],
        )
        some = [None] if pa.types.is_null(kind) else some
        arrays.append(pa.array([some[i % len(some)] for i in range(num_rows)], kind))
    table = tmp_path / "table.parquet"
    pq.write_table(pa.Table.from_arrays(arrays, names=[name for name, _ in schema]), table)
    entries = entries_of(table)
    if entries is not None:
        rows = [f"{table} row {number}" for number in range(1, num_rows + 1)]
        packed = [f"{table}, index {number}" for number in range(num_rows)]  # the images are inside
        of_rows = (entry for entry in entries if not isinstance(entry, Unused))
        assert list(dict.fromkeys(entry.place for entry in of_rows)) in (rows, packed)
    plan_of(table)


@fuzz
@given(
    at=st.integers(0, 10**6),
    value=st.integers(1, 255),
    length=st.floats(0, 1),
    is_cut=st.booleans(),
)
@example(at=281829, value=128, length=0.0, is_cut=False)  # a column's name is no UTF-8
def test_a_damaged_parquet_is_planned_or_refused(
    tmp_path: Path, at: int, value: int, length: float, is_cut: bool
) -> None:
    table = tmp_path / "table.parquet"
    lines = [{"image": f"{i}.png", "key": f"k{i}", "captions": ["a", "b"]} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(lines), table, row_group_size=20)
    data = bytearray(table.read_bytes())
    data[at % len(data)] ^= value
    table.write_bytes(data[: int(len(data) * length)] if is_cut else data)
    entries_of(table)
    plan_of(table)
