"""Shards: bytes that are standard Zarr and a memory map at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from numpy.typing import NDArray

from siglip2_cache.errors import DamagedCacheError
from siglip2_cache.store.format.layout import Modality
from siglip2_cache.store.format.shard import ArrayLayout, encode_shard, map_shard

D = 8


def make_layout(modality: Modality, num_rows: int, shard_rows: int = 6) -> ArrayLayout:
    return ArrayLayout(
        modality=modality,
        num_rows=num_rows,
        num_views=2 if modality == "image" else 1,
        embed_dim=D,
        shard_rows=shard_rows,
    )


def make_values(layout: ArrayLayout, num_rows: int | None = None) -> NDArray[np.float16]:
    """Random rows, among them rejected ones: a whole inner chunk of 2 and half of another."""
    shape = (num_rows or layout.num_rows, *layout.row_shape)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    values[2:5] = np.nan
    return values


def write_array(folder: Path, layout: ArrayLayout, values: NDArray[np.float16]) -> None:
    """Write a whole array as the build does: zarr.json, then shard after shard."""
    folder.mkdir()
    (folder / "zarr.json").write_text(json.dumps(layout.metadata()))
    for first in range(0, len(values), layout.shard_rows):
        path = shard_path(folder, layout, first // layout.shard_rows)
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_shard(layout, values[first : first + layout.shard_rows]))


def shard_path(folder: Path, layout: ArrayLayout, unit: int) -> Path:
    return folder.joinpath("c", str(unit), *["0"] * len(layout.row_shape))


def create_with_zarr(folder: Path, layout: ArrayLayout, **options: Any) -> zarr.Array[Any]:
    options = {"compressors": None, **options}
    return zarr.create_array(
        folder,
        shape=layout.shape,
        shards=(layout.shard_rows, *layout.row_shape),
        chunks=(layout.chunk_rows, *layout.row_shape),
        dtype="float16",
        filters=None,
        fill_value=float("nan"),
        config={"write_empty_chunks": True},
        **options,
    )


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("num_rows", [6, 12, 9, 10, 11, 7])
def test_shards_have_the_bytes_that_zarr_python_writes(
    tmp_path: Path, modality: Modality, num_rows: int
) -> None:
    layout = make_layout(modality, num_rows)
    values = make_values(layout)
    array = create_with_zarr(tmp_path / "a.zarr", layout)
    for first in range(0, num_rows, 6):
        rows = slice(first, min(first + 6, num_rows))
        array[rows] = values[rows]
        theirs = shard_path(tmp_path / "a.zarr", layout, first // 6).read_bytes()
        assert encode_shard(layout, values[rows]) == theirs


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("shard_rows", [6, 5, 128, 4])
@pytest.mark.parametrize("num_rows", [1, 13, 12])
def test_zarr_python_and_tensorstore_read_what_we_write(
    tmp_path: Path, modality: Modality, shard_rows: int, num_rows: int
) -> None:
    layout = make_layout(modality, num_rows, shard_rows)
    values = make_values(layout)
    write_array(tmp_path / "a.zarr", layout, values)
    array = zarr.open_array(tmp_path / "a.zarr", mode="r")
    assert array.metadata.dimension_names == (
        ("row", "view", "embed_dim") if modality == "image" else ("row", "embed_dim")
    )
    np.testing.assert_array_equal(array[:], values)
    kvstore = {"driver": "file", "path": str(tmp_path / "a.zarr")}
    store = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    np.testing.assert_array_equal(store.read().result(), values)


def test_rows_that_were_never_written_read_as_nan(tmp_path: Path) -> None:
    layout = make_layout("text", 20)
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(layout.metadata()))
    assert np.isnan(zarr.open_array(tmp_path / "a.zarr", mode="r")[:]).all()


@pytest.mark.parametrize("num_rows", [1, 2, 3, 6])
def test_a_map_gives_the_rows_of_the_unit_and_no_more(tmp_path: Path, num_rows: int) -> None:
    layout = make_layout("image", 6)
    values = make_values(layout, num_rows)
    (tmp_path / "shard").write_bytes(encode_shard(layout, values))
    mapped = map_shard(tmp_path / "shard", layout, num_rows)
    assert (mapped.dtype, mapped.shape) == (np.dtype("<f2"), (num_rows, 2, D))
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, values)


def test_a_short_unit_is_a_short_file() -> None:
    layout = make_layout("text", 16_384, 16_384)
    # One inner chunk of 64 rows, 256 entries of index, the sum.
    assert layout.shard_bytes(1) == 64 * D * 2 + 256 * 16 + 4
    assert len(encode_shard(layout, make_values(layout, 1))) == layout.shard_bytes(1)


@pytest.mark.parametrize(
    ("shard_rows", "chunk_rows"), [(16_384, 64), (64, 64), (96, 32), (6, 2), (5, 1), (1, 1)]
)
def test_inner_chunks_divide_a_shard(shard_rows: int, chunk_rows: int) -> None:
    assert make_layout("text", 1, shard_rows).chunk_rows == chunk_rows


def test_every_flipped_bit_of_the_index_is_refused(tmp_path: Path) -> None:
    layout = make_layout("text", 3)
    path = tmp_path / "shard"
    data = encode_shard(layout, make_values(layout, 3))
    for position in range(4 * D * 2, len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DamagedCacheError, match=r"does not match the record of its unit"):
            map_shard(path, layout, 3)


@pytest.mark.parametrize("num_bytes", [1, 63, 100, 131, 133])
def test_a_shard_of_another_length_is_refused_with_both_lengths(
    tmp_path: Path, num_bytes: int
) -> None:
    layout = make_layout("text", 5)
    data = encode_shard(layout, make_values(layout))
    path = tmp_path / "shard"
    path.write_bytes((bytes(data) + b"\0")[:num_bytes])
    expected = rf"shard {path} \({num_bytes} bytes\) .* \(5 rows, 148 bytes, chunks in row order\)"
    with pytest.raises(DamagedCacheError, match=expected):
        map_shard(path, layout, 5)


def test_a_shard_of_fewer_rows_is_refused(tmp_path: Path) -> None:
    layout = make_layout("text", 6)
    (tmp_path / "shard").write_bytes(encode_shard(layout, make_values(layout, 4)))
    with pytest.raises(DamagedCacheError, match=r"6 rows"):
        map_shard(tmp_path / "shard", layout, 6)


def test_a_missing_or_empty_shard_is_named(tmp_path: Path) -> None:
    layout = make_layout("text", 6)
    for _ in range(2):
        with pytest.raises(
            DamagedCacheError,
            match=r"shard .*/shard (is missing although|\(0 bytes\) does not match)",
        ):
            map_shard(tmp_path / "shard", layout, 6)
        (tmp_path / "shard").write_bytes(b"")


def test_our_metadata_and_zarr_pythons_can_be_mapped(tmp_path: Path) -> None:
    layout = make_layout("image", 9)
    assert layout.matches_map(layout.metadata())
    create_with_zarr(tmp_path / "a.zarr", layout)
    assert layout.matches_map(json.loads((tmp_path / "a.zarr/zarr.json").read_text()))


def test_compressed_or_otherwise_chunked_arrays_cannot_be_mapped(tmp_path: Path) -> None:
    layout = make_layout("image", 9)
    create_with_zarr(tmp_path / "zstd.zarr", layout, compressors=zarr.codecs.ZstdCodec())
    assert not layout.matches_map(json.loads((tmp_path / "zstd.zarr/zarr.json").read_text()))
    other = make_layout("image", 9, shard_rows=8).metadata()
    assert not layout.matches_map(other)
    assert not layout.matches_map({**layout.metadata(), "data_type": "float32"})
