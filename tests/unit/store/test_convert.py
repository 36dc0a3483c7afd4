"""Converting caches that our writer never touched: what is copied, what is refused, and resuming."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from siglip2_cache import open_cache
from siglip2_cache.errors import BuildError, DamagedCacheError, SettingError
from siglip2_cache.store import convert
from siglip2_cache.store.convert import convert_cache, converted_lines
from siglip2_cache.store.format.records import decode_record, encode_record, sha256_hex
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.verify.verify import verify_cache

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

WriteForeignCache = Callable[..., "ForeignCache"]
BUDGET = 0.05  # of random vectors of 8 values in one block
COMMITS = "teachers/tiny/commits"


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def to_int8(source: Path, out: Path, **settings: Any) -> "convert.Converted":
    return convert_cache(open_cache(source), out, targets="int8", **{"budget": BUDGET, **settings})


@pytest.mark.parametrize("compressed", [False, True])
def test_targets_become_int8_and_the_rest_stays(
    write_foreign_cache: WriteForeignCache, tmp_path: Path, compressed: bool
) -> None:
    names = ("large", "tiny")
    source = write_foreign_cache(tmp_path / "source", teachers=names, compressed=compressed)
    found = to_int8(source.root, tmp_path / "out")
    new, old = open_cache(tmp_path / "out"), open_cache(source.root)
    assert verify_cache(new).faults == []
    assert found.num_units == sum(len(old.commits(name).units) for name in names)
    for (teacher, modality), expected in source.targets.items():
        targets = new.targets(modality, teacher)  # type: ignore[arg-type]
        rows = targets.available_rows()
        assert rows.tolist() == old.targets(modality, teacher).available_rows().tolist()  # type: ignore[arg-type]
        exact = expected[rows, 0] if modality == "image" else expected[rows]
        assert np.abs(targets.read(rows) - exact).max() < 0.01
        assert new.teacher(teacher).identity == old.teacher(teacher).identity
        assert new.teacher(teacher).distortion == found.distortions[teacher]
    assert new.rejected().collect().rows() == old.rejected().collect().rows()
    before, after = tree(source.root), tree(tmp_path / "out")
    same = [path for path in before if path.startswith(("catalog/", "cache.json"))]
    same += [path for path in before if "/images/" in path]
    assert all(after[path] == before[path] for path in same)
    assert converted_lines(found)[0].startswith("converted  14 units; targets take ")


def test_back_to_float16_the_record_of_the_teacher_is_what_it_was(
    foreign: "ForeignCache", tmp_path: Path
) -> None:
    to_int8(foreign.root, tmp_path / "int8")
    convert_cache(open_cache(tmp_path / "int8"), tmp_path / "back", targets="float16")
    back = open_cache(tmp_path / "back")
    assert verify_cache(back).faults == []
    assert back.teacher().distortion is None
    rows = open_cache(tmp_path / "int8").text_targets().available_rows()
    before = open_cache(tmp_path / "int8").text_targets().read(rows)
    assert back.text_targets().read(rows).tobytes() == before.tobytes()
    fields = decode_record((tmp_path / "back/teachers/tiny/teacher.json").read_bytes(), where="")
    ours = decode_record((foreign.root / "teachers/tiny/teacher.json").read_bytes(), where="")
    assert {**fields, "files": {}} == {**ours, "files": {}}


def test_a_cache_that_has_the_targets_already_is_copied_with_its_bytes(
    write_foreign_cache: WriteForeignCache, tmp_path: Path
) -> None:
    source = write_foreign_cache(tmp_path / "source", int8=True)
    to_int8(source.root, tmp_path / "out")
    before, after = tree(source.root), tree(tmp_path / "out")
    assert before.keys() == after.keys()
    arrays = [path for path in before if "zarr/c/" in path]
    assert arrays
    assert all(after[path] == before[path] for path in arrays)
    assert verify_cache(open_cache(tmp_path / "out")).faults == []


def test_run_again_it_adds_what_the_source_has_gained_and_nothing_else(
    foreign: "ForeignCache", tmp_path: Path
) -> None:
    source = shutil.copytree(foreign.root, tmp_path / "source")
    later = tmp_path / "later"
    later.mkdir()
    for path in ("catalog/append-00001.json", f"{COMMITS}/arrays-00001.json"):
        (source / path).rename(later / Path(path).name)
    for unit in ("image-00003.json", "text-00002.json"):
        (source / COMMITS / unit).rename(later / unit)
    first = to_int8(source, tmp_path / "out")
    assert open_cache(tmp_path / "out").num_samples == 15
    assert to_int8(source, tmp_path / "out").num_units == 0
    (later / "append-00001.json").rename(source / "catalog/append-00001.json")
    for path in list(later.iterdir()):
        path.rename(source / COMMITS / path.name)
    assert (first.num_units, to_int8(source, tmp_path / "out").num_units) == (5, 2)
    to_int8(foreign.root, tmp_path / "at-once")
    once, twice = tree(tmp_path / "at-once"), tree(tmp_path / "out")
    measured = ("teachers/tiny/teacher.json",)  # on the captions of the part that was there
    assert {p: d for p, d in once.items() if p not in measured} == {
        p: d for p, d in twice.items() if p not in measured
    }


def test_rows_converted_before_a_retry_keep_their_bytes(
    foreign: "ForeignCache", tmp_path: Path
) -> None:
    source = shutil.copytree(foreign.root, tmp_path / "source")
    to_int8(source, tmp_path / "out")
    shard = tmp_path / "out/teachers/tiny/text.zarr/c/0/0"
    before = shard.read_bytes()
    fields = decode_record((source / COMMITS / "text-00000.json").read_bytes(), where="")
    values = np.fromfile(source / "teachers/tiny/text.zarr/c/0/0", "<f2")[: 6 * 8].reshape(6, 8)
    values[3] = values[
        2
    ]  # the rejected row has a target now; and a target has changed, as never happens
    values[0] = values[1]
    data = values.tobytes() + (source / "teachers/tiny/text.zarr/c/0/0").read_bytes()[6 * 16 :]
    (source / "teachers/tiny/text.zarr/c/0/0").write_bytes(data)
    [path] = fields["files"]
    fields |= {"attempt": 1, "num_rejected": 0, "rejected": []}
    fields["files"] = {path: {"num_bytes": len(data), "sha256": sha256_hex(data)}}
    (source / COMMITS / "text-00000.r1.json").write_bytes(encode_record(fields))
    assert to_int8(source, tmp_path / "out").num_units == 1
    after = shard.read_bytes()
    assert after[: 3 * 12] == before[: 3 * 12]
    assert after[3 * 12 : 4 * 12] == before[2 * 12 : 3 * 12]
    assert open_cache(tmp_path / "out").text_targets().available(range(6)).all()


@pytest.mark.parametrize("is_missing", [False, True])
def test_damage_of_the_new_cache_is_not_given_new_checksums_either(
    foreign: "ForeignCache", tmp_path: Path, is_missing: bool
) -> None:
    source = shutil.copytree(foreign.root, tmp_path / "source")
    to_int8(source, tmp_path / "out")
    shard = tmp_path / "out/teachers/tiny/text.zarr/c/0/0"
    before = bytearray(shard.read_bytes())
    if is_missing:
        shard.unlink()
    else:
        shard.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    record = source / COMMITS / "text-00000.json"
    fields = decode_record(record.read_bytes(), where="") | {"attempt": 1}
    (source / COMMITS / "text-00000.r1.json").write_bytes(encode_record(fields))
    assert to_int8(source, tmp_path / "out").num_units == 1
    assert shard.read_bytes() == before
    assert verify_cache(open_cache(tmp_path / "out")).faults == []


def test_a_change_above_the_budget_is_refused_before_the_teacher_is_written(
    foreign: "ForeignCache", tmp_path: Path
) -> None:
    with pytest.raises(
        SettingError,
        match=r"int8 targets change the soft targets by 0\.\d+ % of their entropy, above the budget of "
        r"0\.000 %; use --targets float16, or a larger --targets-budget",
    ):
        to_int8(foreign.root, tmp_path / "out", budget=1e-9)
    assert open_cache(tmp_path / "out").teachers == ()
    to_int8(foreign.root, tmp_path / "out")  # with a larger budget it goes on


def test_a_unit_that_changes_more_than_the_sample_is_refused(
    foreign: "ForeignCache", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "squared_error", lambda before, after: 1.0)
    with pytest.raises(BuildError, match=r"image unit 0: int8 targets change the soft .* budget"):
        to_int8(foreign.root, tmp_path / "out")


def test_a_folder_that_holds_something_else_is_refused(
    foreign: "ForeignCache", write_foreign_cache: WriteForeignCache, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=r"is the cache itself; name another folder"):
        to_int8(foreign.root, foreign.root)
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"is a file; name a folder for the cache"):
        to_int8(foreign.root, tmp_path / "file")
    with pytest.raises(SettingError, match=r"lie in one another; name a folder beside the cache"):
        to_int8(foreign.root, foreign.root / "int8")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").touch()
    with pytest.raises(SettingError, match=r"photos is not empty .* \(it holds a\.jpg\)"):
        to_int8(foreign.root, photos)
    assert [path.name for path in photos.iterdir()] == ["a.jpg"]
    other = write_foreign_cache(tmp_path / "other", int8=True).root
    with pytest.raises(SettingError, match=r"has int8 targets; name another folder"):
        convert_cache(open_cache(foreign.root), other, targets="float16")
    fields = decode_record((other / "cache.json").read_bytes(), where="") | {"digest": "0" * 64}
    (other / "cache.json").write_bytes(encode_record(fields))
    with pytest.raises(
        SettingError, match=r"holds another corpus than .*\(cache\.json has another"
    ):
        to_int8(foreign.root, other)
    with pytest.raises(SettingError, match=r"targets 'int4' is not one of float16, int8"):
        convert_cache(open_cache(foreign.root), tmp_path / "new", targets="int4")


@pytest.mark.parametrize(
    "path",
    [
        "teachers/tiny/image.zarr/c/1/0/0",
        "teachers/tiny/images/00001.parquet",
        "catalog/texts-00000.parquet",
    ],
)
@pytest.mark.parametrize("is_missing", [False, True])
def test_damage_is_not_given_new_checksums(
    foreign: "ForeignCache", tmp_path: Path, path: str, is_missing: bool
) -> None:
    source = shutil.copytree(foreign.root, tmp_path / "source")
    data = bytearray((source / path).read_bytes())
    data[9] ^= 1
    (source / path).write_bytes(data)
    if is_missing:
        (source / path).unlink()
    with pytest.raises(
        DamagedCacheError, match=rf"{path} (is missing|is missing or does not match)"
    ):
        to_int8(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_it_works_from_and_to_an_object_store(foreign: "ForeignCache", memory: str) -> None:
    out = parse_location(f"{memory}/int8")
    to_int8(foreign.root, out)  # type: ignore[arg-type]
    cache = open_cache(out)
    assert verify_cache(cache).faults == []
    convert_cache(cache, parse_location(f"{memory}/back"), targets="float16")
    back = open_cache(f"{memory}/back")
    rows = back.text_targets().available_rows()
    assert back.text_targets().read(rows).tobytes() == cache.text_targets().read(rows).tobytes()


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_caches_of_every_version_are_converted(version: int, tmp_path: Path) -> None:
    golden = open_cache(Path(__file__).parents[2] / "data" / f"cache-v{version}")
    for targets in ("int8", "float16"):
        convert_cache(golden, tmp_path / targets, targets=targets, budget=1)
        cache = open_cache(tmp_path / targets)
        assert verify_cache(cache).faults == []
        assert cache.manifest.latest.digest == golden.manifest.latest.digest
        rows = golden.text_targets().available_rows()
        error = cache.text_targets().read(rows) - golden.text_targets().read(rows)
        assert np.abs(error).max() < 0.01


@pytest.mark.parametrize("budget", [0, -1, 5, float("nan")])
def test_a_budget_that_is_no_share_is_refused_as_in_a_build(
    foreign: "ForeignCache", tmp_path: Path, budget: float
) -> None:
    with pytest.raises(
        SettingError, match=r"targets budget must be above 0 and at most 100 %, got"
    ):
        to_int8(foreign.root, tmp_path / "out", budget=budget)
    assert not (tmp_path / "out").exists()
