"""Caches with int8 targets that our writer never touched, and refusals of damaged ones."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tensorstore
import zarr

from siglip2_cache import Cache, open_cache
from siglip2_cache.errors import DamagedCacheError, FormatVersionError
from siglip2_cache.store.describe import describe, describe_lines
from siglip2_cache.store.format import records
from siglip2_cache.store.format.records import decode_record, encode_record, sha256_hex
from siglip2_cache.store.targets import shard_maps
from siglip2_cache.store.targets.blocks import read_blocks
from siglip2_cache.store.verify.verify import verify_cache

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "format.md").read_text()
TEACHER, CHUNK = "teachers/tiny/teacher.json", "teachers/tiny/rotation.zarr/c/0/0"
METADATA = "teachers/tiny/rotation.zarr/zarr.json"


@pytest.fixture(scope="module", params=["map", "zarr"])
def int8(
    request: pytest.FixtureRequest,
    write_foreign_cache: Callable[..., "ForeignCache"],
    tmp_path_factory: pytest.TempPathFactory,
) -> "ForeignCache":
    """A foreign cache of int8 targets, with raw shards and with zstd in them."""
    root = tmp_path_factory.mktemp("int8") / "cache"
    return write_foreign_cache(root, int8=True, compressed=request.param == "zarr")


@pytest.fixture
def copied(write_foreign_cache: Callable[..., "ForeignCache"], tmp_path: Path) -> "ForeignCache":
    return write_foreign_cache(tmp_path / "cache", int8=True)


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for one step of float16."""
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("is_whole", [True, False])
def test_rows_are_read_as_the_page_restores_them(
    int8: "ForeignCache", is_whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_whole:
        monkeypatch.setattr(shard_maps, "_MAX_MAPPED_SHARDS", 0)
    cache = open_cache(int8.root)
    images, texts = cache.image_targets(), cache.text_targets()
    assert (images.shape, texts.shape, images.dtype) == ((22, 2, 8), (15, 8), np.float16)
    rows, views = [21, 0, 0, 13], [1, 0, 1, 1]
    assert_near(images.read(rows, views), int8.targets["tiny", "image"][rows, views])
    assert_near(texts.read([14, 0, 9]), int8.targets["tiny", "text"][[14, 0, 9]])
    found, valid = images.read_masked(range(22))
    assert_near(found, int8.targets["tiny", "image"][:, 0])
    assert (np.isnan(found).all(axis=1) == ~valid).all()
    assert_near(images.read_unit(1), int8.targets["tiny", "image"][6:12])
    blocks = list(read_blocks(images, view=1, block_rows=4))
    rows = np.concatenate([block.rows_B for block in blocks])
    assert rows.tolist() == images.available_rows().tolist()
    values = np.concatenate([block.values_BD.copy() for block in blocks[-1:]])
    assert_near(values, int8.targets["tiny", "image"][blocks[-1].rows_B, 1])


def test_stored_axes_are_those_of_the_rotation(int8: "ForeignCache") -> None:
    targets = open_cache(int8.root).text_targets()
    assert targets.rotation is not None
    rotated = targets.read([5, 7], basis="stored").astype(np.float32)
    restored = (rotated.reshape(-1, 4) @ targets.rotation).reshape(2, 8)
    np.testing.assert_allclose(restored, int8.targets["tiny", "text"][[5, 7]], atol=1e-3)
    assert not np.allclose(rotated, restored, atol=0.05)


def test_ten_lines_of_the_page_restore_what_zarr_and_tensorstore_read(
    int8: "ForeignCache",
) -> None:
    found = re.search(r"<!-- test: int8 -->\n```python\n(.*?)```\n", PAGE, re.DOTALL)
    assert found is not None
    page: dict[str, Any] = {}
    exec(found[1], page)
    folder = int8.root / "teachers/tiny"
    rotation = zarr.open_array(folder / "rotation.zarr", mode="r")[:]
    with_zarr = zarr.open_array(folder / "text.zarr", mode="r")[:]
    store = {"driver": "file", "path": str(folder / "text.zarr")}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": store}, read=True).result()
    np.testing.assert_array_equal(opened.read().result(), with_zarr)
    assert_near(page["restore"](with_zarr, rotation), int8.targets["tiny", "text"])


def test_a_foreign_cache_verifies_and_says_what_it_holds(int8: "ForeignCache") -> None:
    cache = open_cache(int8.root)
    report = verify_cache(cache)
    assert report.faults == []
    assert report.num_rows == {"image": 19, "text": 13}
    lines = "\n".join(describe_lines(describe(cache)))
    assert "22 x 2 x 8 int8" in lines
    assert "int8 changes the soft targets by 0.0200 % of their entropy, a logit by at most" in lines


def test_an_older_release_refuses_it_and_names_the_version(
    copied: "ForeignCache", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "READABLE_VERSIONS", (1, 2))
    with pytest.raises(FormatVersionError, match=rf"{TEACHER} has format version 3, this release"):
        open_cache(copied.root)


def edit_teacher(root: Path, change: Callable[[dict[str, Any]], object]) -> Cache:
    fields = decode_record((root / TEACHER).read_bytes(), where="teacher")
    change(fields)
    (root / TEACHER).write_bytes(encode_record(fields))
    return open_cache(root)


def replace_file(root: Path, path: str, data: bytes) -> Cache:
    """Replace a file of the rotation, with a record that fits."""
    (root / path).write_bytes(data)
    described = {"num_bytes": len(data), "sha256": sha256_hex(data)}
    return edit_teacher(root, lambda fields: fields["files"].update({path: described}))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("int4", "has dtype 'int4', expected float16 or int8"), (8, "has dtype 8, expected a text")],
)
def test_another_dtype_is_refused(copied: "ForeignCache", dtype: Any, message: str) -> None:
    with pytest.raises(DamagedCacheError, match=message):
        edit_teacher(copied.root, lambda fields: fields.update(dtype=dtype))


def test_a_rotation_whose_bytes_have_changed_is_not_used_and_verify_names_it(
    copied: "ForeignCache",
) -> None:
    path = copied.root / CHUNK
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    cache = open_cache(copied.root)
    with pytest.raises(DamagedCacheError, match=rf"{CHUNK} is missing or does not match {TEACHER}"):
        cache.text_targets().read([0])
    [fault] = verify_cache(cache).faults
    assert fault.startswith(f"{CHUNK} is damaged: its bytes have changed")
    path.unlink()
    assert any(CHUNK in fault for fault in verify_cache(open_cache(copied.root)).faults)


def test_a_rotation_that_is_not_orthonormal_is_refused(copied: "ForeignCache") -> None:
    for wrong in (2 * np.eye(4), np.eye(3), np.full((4, 4), np.nan)):
        cache = replace_file(copied.root, CHUNK, wrong.astype("<f4").tobytes())
        with pytest.raises(DamagedCacheError, match=rf"{CHUNK} is not an orthonormal map"):
            cache.codec()
        assert verify_cache(cache).faults != []


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 3]},
        {"shape": []},
        {"shape": "44"},
        {"shape": [-4, 4]},
        {"data_type": "float64"},
        {"codecs": []},
    ],
)
def test_metadata_of_another_rotation_are_refused(
    copied: "ForeignCache", change: dict[str, Any]
) -> None:
    metadata = json.loads((copied.root / METADATA).read_text()) | change
    cache = replace_file(copied.root, METADATA, json.dumps(metadata).encode())
    with pytest.raises(DamagedCacheError, match=r"is not the rotation of a teacher of width 8 as"):
        cache.image_targets()


def test_a_record_without_its_rotation_is_refused(copied: "ForeignCache") -> None:
    shutil.rmtree(copied.root / "teachers/tiny/rotation.zarr")
    cache = edit_teacher(
        copied.root, lambda fields: [fields["files"].pop(path) for path in (CHUNK, METADATA)]
    )
    with pytest.raises(DamagedCacheError, match=r"zarr\.json is missing or does not match"):
        cache.text_targets()


def test_a_changed_scale_is_found_by_its_norm(copied: "ForeignCache") -> None:
    shard = "teachers/tiny/text.zarr/c/1/0"
    data = bytearray((copied.root / shard).read_bytes())
    scale = np.frombuffer(data, "<f4", 1, 8)  # of text_row 6
    data[8:12] = (scale * 1.01).astype("<f4").tobytes()
    (copied.root / shard).write_bytes(data)
    record = copied.root / "teachers/tiny/commits/text-00001.json"
    fields = decode_record(record.read_bytes(), where="unit")
    fields["files"][shard]["sha256"] = sha256_hex(data)
    record.write_bytes(encode_record(fields))
    [fault] = verify_cache(open_cache(copied.root)).faults
    assert "1 text rows of unit 1 are not of norm 1 (first: row 6" in fault
