"""Caches with patch targets that our writer never touched, and refusals of damaged ones."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tensorstore
import zarr

from siglip2_cache import open_cache
from siglip2_cache.errors import (
    DamagedCacheError,
    FormatVersionError,
    RowUnavailableError,
    SettingError,
)
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.convert import convert_cache
from siglip2_cache.store.describe import describe, describe_lines
from siglip2_cache.store.format import records
from siglip2_cache.store.format.records import decode_record, encode_record, sha256_hex
from siglip2_cache.store.targets import ranged_rows
from siglip2_cache.store.verify.verify import verify_cache

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "format.md").read_text()
TEACHER, FOLDER = "teachers/tiny/teacher.json", "teachers/tiny"
SHARD = f"{FOLDER}/patch.zarr/c/1/0/0/0"
RECORD = f"{FOLDER}/commits/image-00001.json"
CELL_BYTES = 3 + 8


@pytest.fixture(scope="module", params=["raw", "zarr", "beside int8"])
def patches(
    request: pytest.FixtureRequest,
    write_foreign_cache: Callable[..., "ForeignCache"],
    tmp_path_factory: pytest.TempPathFactory,
) -> "ForeignCache":
    """A foreign cache with patch targets: raw shards, zstd in them, or beside int8 embeddings."""
    root = tmp_path_factory.mktemp("patches") / "cache"
    kind = request.param
    return write_foreign_cache(
        root, patches=True, compressed=kind == "zarr", int8=kind == "beside int8"
    )


@pytest.fixture
def copied(write_foreign_cache: Callable[..., "ForeignCache"], tmp_path: Path) -> "ForeignCache":
    return write_foreign_cache(tmp_path / "cache", patches=True)


def test_a_foreign_cache_reads_right(patches: "ForeignCache") -> None:
    assert patches.patches is not None
    values, grids = patches.patches
    targets = open_cache(patches.root).patch_targets()
    rows, views = [21, 0, 7, 7, 18], [1, 0, 0, 1, 1]
    found = targets.read(rows, views)
    assert found.values_VCP.dtype == np.float16
    np.testing.assert_array_equal(found.values_VCP, values[rows, views])
    np.testing.assert_array_equal(found.grids_V2, grids[rows, views])
    np.testing.assert_array_equal(targets.read([3]).values_VCP[0], values[3, 0])
    assert (targets.settings.grid, targets.settings.dim, targets.settings.width) == (2, 3, 5)
    assert targets.basis.shape == (3, 5)
    for row, why in ((8, "was rejected"), (16, "is a gap"), (22, "is not in")):
        with pytest.raises(RowUnavailableError, match=why):
            targets.read([row])


def test_the_reader_on_the_page_restores_what_zarr_and_tensorstore_read(
    patches: "ForeignCache",
) -> None:
    found = re.search(r"<!-- test: patches -->\n```python\n(.*?)```\n", PAGE, re.DOTALL)
    assert found is not None
    page: dict[str, Any] = {}
    exec(found[1], page)
    path = patches.root / FOLDER / "patch.zarr"
    with_zarr = zarr.open_array(path, mode="r")[:]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    with_tensorstore = tensorstore.open(spec, read=True).result().read().result()
    np.testing.assert_array_equal(with_zarr, with_tensorstore)
    values, grids = page["restore"](with_zarr)
    assert patches.patches is not None
    np.testing.assert_array_equal(values, patches.patches[0])
    np.testing.assert_array_equal(grids, patches.patches[1])


def test_ranged_reads_of_an_object_store_give_the_same(
    copied: "ForeignCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    assert copied.patches is not None
    targets = open_cache(copied.root).patch_targets()
    files = targets._stored._files
    targets._stored._map = None
    targets._stored._requests = ranged_rows.RowRequests(files)
    found = targets.read([21, 0, 6], [1, 0, 0])
    np.testing.assert_array_equal(found.values_VCP, copied.patches[0][[21, 0, 6], [1, 0, 0]])


def test_it_verifies_says_what_it_holds_and_is_converted(
    patches: "ForeignCache", tmp_path: Path
) -> None:
    cache = open_cache(patches.root)
    assert verify_cache(cache).faults == []
    described = describe(cache)
    assert described["teachers"]["tiny"]["patches"]["grid"] == 2
    lines = describe_lines(described)
    assert (
        "           patch 2 x 2 cells of 3 values of 5 (90.0 % of the squared norm), int8" in lines
    )
    convert_cache(cache, tmp_path / "out", targets="int8", budget=0.2)
    new = open_cache(tmp_path / "out")
    assert verify_cache(new).faults == []
    assert patches.patches is not None
    rows = cache.image_targets().available_rows()
    for view in (0, 1):
        found = new.patch_targets().read(rows, view)
        np.testing.assert_array_equal(found.values_VCP, patches.patches[0][rows, view])


def test_older_releases_refuse_it_and_name_the_version(
    copied: "ForeignCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "READABLE_VERSIONS", (1, 2, 3))
    with pytest.raises(FormatVersionError, match=rf"{TEACHER} has format version 4, this release"):
        open_cache(copied.root)


def test_a_teacher_without_patch_targets_says_how_they_are_made(foreign: "ForeignCache") -> None:
    assert open_cache(foreign.root).patch_map() is None
    with pytest.raises(SettingError, match=r"tiny of .* has no patch targets; .*--patch-targets"):
        open_cache(foreign.root).patch_targets()


def edit_record(root: Path, path: str, change: Callable[[dict[str, Any]], object]) -> Cache:
    fields = decode_record((root / path).read_bytes(), where=path)
    change(fields)
    (root / path).write_bytes(encode_record(fields))
    return open_cache(root)


def replace_file(root: Path, path: str, data: bytes, record: str = TEACHER) -> Cache:
    """Replace a file of the cache, with a record that fits."""
    (root / path).write_bytes(data)
    described = {"num_bytes": len(data), "sha256": sha256_hex(data)}
    return edit_record(root, record, lambda fields: fields["files"].update({path: described}))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": 0}, r"has patches\.grid 0, expected an integer, 1 to 64"),
        ({"dim": 6}, r"has patches\.dim 6, expected an integer, 1 to 5"),
        ({"rms": 0}, r"has patches\.rms 0, expected a number above 0"),
        ({"width": None}, r"has patches\.width None, expected an integer"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    copied: "ForeignCache", changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DamagedCacheError, match=message):
        edit_record(copied.root, TEACHER, lambda fields: fields["patches"].update(changed))


def test_a_map_that_is_damaged_or_of_another_size_is_refused(copied: "ForeignCache") -> None:
    chunk, metadata = f"{FOLDER}/patch_basis.zarr/c/0/0", f"{FOLDER}/patch_basis.zarr/zarr.json"
    for wrong in (np.ones((3, 5)), np.eye(3)):
        cache = replace_file(copied.root, chunk, wrong.astype("<f4").tobytes())
        with pytest.raises(DamagedCacheError, match=rf"{chunk} is not an orthonormal map"):
            cache.patch_targets()
        assert verify_cache(cache).faults != []
    fields = json.loads((copied.root / metadata).read_text()) | {"shape": [3, 4]}
    cache = replace_file(copied.root, metadata, json.dumps(fields).encode())
    with pytest.raises(
        DamagedCacheError, match=r"is not the map of patch targets of 3 values of 5"
    ):
        cache.patch_targets()
    (copied.root / chunk).unlink()
    assert any(chunk in fault for fault in verify_cache(open_cache(copied.root)).faults)


def test_a_shard_whose_bytes_have_changed_is_found(copied: "ForeignCache") -> None:
    data = bytearray((copied.root / SHARD).read_bytes())
    data[3] ^= 1
    (copied.root / SHARD).write_bytes(data)
    [fault] = verify_cache(open_cache(copied.root)).faults
    assert fault.startswith(f"{SHARD} is damaged: its bytes have changed; remove ")


@pytest.mark.parametrize("what", ["scale", "grid", "beyond the grid", "rejected", "missing"])
def test_cells_that_are_no_whole_grid_are_found_though_the_record_fits(
    copied: "ForeignCache", what: str
) -> None:
    """Unit 1 has rows 6 to 11. View 0 of row 6 has 2 x 2 cells, and of row 7 1 x 3; row 8 is rejected."""
    data = bytearray((copied.root / SHARD).read_bytes())
    row_bytes = 2 * 4 * CELL_BYTES
    at = {
        "scale": (3, np.float32(np.nan).tobytes()),
        "grid": (CELL_BYTES + 7, b"\2\0\3\0"),
        "beyond the grid": (row_bytes + 3 * CELL_BYTES, b"\1"),
        "rejected": (2 * row_bytes, b"\1"),
        "missing": (0, bytes(row_bytes)),
    }
    first, new = at[what]
    data[first : first + len(new)] = new
    cache = replace_file(copied.root, SHARD, bytes(data), RECORD)
    [fault] = verify_cache(cache).faults
    row = {"beyond the grid": 7, "rejected": 8}.get(what, 6)
    assert "tiny: the patch targets of 1 rows of image unit 1 are no whole grid" in fault
    assert f"(first: row {row}, {RECORD})" in fault


def test_a_unit_without_its_patch_shard_is_found(copied: "ForeignCache") -> None:
    cache = edit_record(copied.root, RECORD, lambda fields: fields["files"].pop(SHARD))
    faults = verify_cache(cache).faults
    assert f"{RECORD} does not name {SHARD}" in faults
