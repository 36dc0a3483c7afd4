"""A cache of a stranger: what its records say is checked, and nothing is written outside of it."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from siglip2_cache.errors import CacheError, DamagedCacheError
from siglip2_cache.store.cache import open_cache
from siglip2_cache.store.describe import describe, describe_lines
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.augmentation import AugmentationPolicy
from siglip2_cache.store.format.record_fields import Fields, is_inner_path
from siglip2_cache.store.format.records import encode_record, sha256_hex
from siglip2_cache.store.format.transaction import roll_forward
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.search.index_checkpoint import IndexState
from siglip2_cache.store.verify.verify import verify_cache

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

SHA256 = sha256_hex(b"theirs")
DESCRIBED = {"num_bytes": 6, "sha256": SHA256}
COMMITS = "teachers/tiny/commits"
PLACE = layout.IndexId(teacher="tiny", modality="text")

HOSTILE = (
    "../home",
    "../../home/keys",
    "/etc/passwd",
    "a/../../home/keys",
    "a\\..\\b",
    "a\0",
    "..",
)


@pytest.mark.parametrize("path", [*HOSTILE, "", "/", "a//b", "a/", "a/.", "./a", "a/..", None, 3])
def test_a_path_that_could_lead_out_is_no_inner_path(path: object) -> None:
    assert not is_inner_path(path)


@pytest.mark.parametrize("path", ["cache.json", "catalog/a-00000.parquet", "..a/b..", "...", "猫"])
def test_a_path_that_leads_down_is(path: str) -> None:
    assert is_inner_path(path)


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda f: f.text("absent"), "REC has no absent"),
        (lambda f: f.text("one"), "REC has one 1, expected a text"),
        (lambda f: f.count("yes"), "REC has yes True, expected an integer, 0 to 900719925"),
        (lambda f: f.count("one", least=2, most=3), "REC has one 1, expected an integer, 2 to"),
        (lambda f: f.count("half"), "REC has half 0.5, expected an integer"),
        (lambda f: f.whole("half"), "REC has half 0.5, expected an integer"),
        (lambda f: f.number("yes"), "REC has yes True, expected a number"),
        (lambda f: f.number("one", limit=0.5), "REC has one 1, expected a number"),
        (lambda f: f.mapping("one"), "REC has one 1, expected an object"),
        (lambda f: f.fields("deep").text("x"), "REC has deep.x None, expected a text"),
        (lambda f: f.entries("deep"), "REC has deep .*, expected a list"),
        (lambda f: f.entries("ones"), r"REC has ones \[1\], expected a list of objects"),
        (lambda f: f.text("long"), r"REC has long \[7(, 7)+.*\.\.\., expected a text"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_named(take: Any, message: str) -> None:
    values = {
        "one": 1,
        "yes": True,
        "half": 0.5,
        "deep": {"x": None},
        "ones": [1],
        "long": [7] * 99,
    }
    with pytest.raises(DamagedCacheError, match=f"^{message}") as caught:
        take(Fields(values, "REC"))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("at", ["staged path", "partial", "record"])
def test_an_intent_that_leads_out_is_not_rolled_forward(tmp_path: Path, path: str, at: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/keys").write_bytes(b"mine")
    cache = LocalStorage(tmp_path / "cache")
    cache.write("partial", b"theirs")
    final, partial = ("a", path) if at == "partial" else (path, f"{path}.partial")
    files = {"a" if at == "staged path" else final: DESCRIBED}
    record = {"record": {"files": files}, "staged": {final: partial}}
    cache.write("cache.json.intent", encode_record(record))
    with pytest.raises(DamagedCacheError, match=r"remove that \.intent file"):
        roll_forward(cache, "cache.json")
    assert (tmp_path / "home/keys").read_bytes() == b"mine"
    assert set(cache.walk()) == {"partial", "cache.json.intent"}


def test_a_digest_that_is_a_path_names_no_copy() -> None:
    description = {"num_bytes": 1, "sha256": "../../home/keys"}
    with pytest.raises(DamagedCacheError, match="expected 64 hexadecimal digits"):
        Fields({"files": {"a": description}}, "REC").files()


class TestLinks:
    """A folder that is a link out of the cache is read through, and never written through."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> LocalStorage:
        (tmp_path / "home").mkdir()
        (tmp_path / "home/keys").write_bytes(b"mine")
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache/teachers").symlink_to(tmp_path / "home")
        return LocalStorage(tmp_path / "cache")

    def test_nothing_is_written_behind_it(self, files: LocalStorage, tmp_path: Path) -> None:
        files.write("ours", b"theirs")
        tries = (
            lambda: files.write("teachers/keys", b"theirs"),
            lambda: files.write("teachers/new/keys", b"theirs"),
            lambda: files.create("teachers/keys", b"theirs", token="0"),
            lambda: files.replace("teachers/keys", b"theirs"),
            lambda: files.rename("ours", "teachers/keys"),
            lambda: files.rename("teachers/keys", "ours"),
            lambda: files.remove("teachers/keys"),
            lambda: files.writing("teachers/keys").__enter__(),
            lambda: files.locked("teachers/new").__enter__(),
        )
        for each in tries:
            with pytest.raises(
                DamagedCacheError, match=r"is behind a symbolic link to .*home.*, outside"
            ):
                each()
        assert [path.name for path in (tmp_path / "home").iterdir()] == ["keys"]
        assert (tmp_path / "home/keys").read_bytes() == b"mine"

    def test_a_file_that_is_a_link_is_not_written_through(
        self, files: LocalStorage, tmp_path: Path
    ) -> None:
        (tmp_path / "cache/a.partial").symlink_to(tmp_path / "home/keys")
        with pytest.raises(OSError, match="symbolic link"):
            files.write("a.partial", b"theirs")
        files.write("b.partial", b"theirs")
        (tmp_path / "cache/b").symlink_to(tmp_path / "home/keys")
        assert files.rename("b.partial", "b")  # takes the link's place
        assert (tmp_path / "home/keys").read_bytes() == b"mine"
        assert not (tmp_path / "cache/b").is_symlink()

    def test_a_cache_behind_a_link_is_written(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "cache").symlink_to(tmp_path / "real")
        LocalStorage(tmp_path / "cache").write("catalog/a", b"ours")
        assert (tmp_path / "real/catalog/a").read_bytes() == b"ours"


# -- every record, with any field removed or changed

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([2**53 + 1, 10**30, -(2**63), 1e308, -0.5]),
    st.sampled_from([*HOSTILE, "", "image", "\udc80", "tiny"]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.sampled_from(["a", "../x"]), st.just(DESCRIBED), max_size=2),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value in a JSON value but itself."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def harm(data: st.DataObject, fields: dict[str, Any]) -> dict[str, Any]:
    """Return a record's fields of which some are removed, renamed or changed."""
    fields = json.loads(json.dumps(fields))
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from(list(places(fields)) or [()]))
        if not way:
            return fields
        owner: Any = fields
        for key in way[:-1]:
            owner = owner[key]
        what = data.draw(st.sampled_from(["remove", "change", "rename"]))
        if what == "remove" or (what == "rename" and not isinstance(owner, dict)):
            del owner[way[-1]]
        elif what == "rename":
            owner[data.draw(st.sampled_from(HOSTILE))] = owner.pop(way[-1])
        else:
            owner[way[-1]] = json.loads(json.dumps(data.draw(ODD)))
    return fields


@pytest.fixture(scope="module")
def stranger(foreign: "ForeignCache", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with an index and an unfinished index; beside it, home/keys."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "home").mkdir()
    (folder / "home/keys").write_bytes(b"mine")
    root = shutil.copytree(foreign.root, folder / "cache")
    files = LocalStorage(root)
    files.write(f"{PLACE.file}.5.partial", b"saved")
    description = files.describe(f"{PLACE.file}.5.partial")
    state = {"making": {}, "next_row": 5, "files": {f"{PLACE.file}.5.partial": description}}
    files.write(PLACE.state, encode_record(state))
    index = {
        **{"teacher": "tiny", "modality": "text", "view": 0, "kind": "flat", "factory": "Flat"},
        **{"parameters": {}, "search": {"candidates": 1}, "num_rows": 1, "embed_dim": 8},
        "fingerprint": {"teacher": "tiny", "catalog": "", "num_units": 1, "units": ""},
        "recall": {"at": 10, "value": 0.9, "num_queries": 5, "seed": 0},
        **{"faiss_version": "1", "files": {PLACE.file: DESCRIBED}},
    }
    files.write(PLACE.record, encode_record(index))
    return root


def use(root: Path) -> None:
    """Do with a cache what reads every record of it."""
    cache = open_cache(root)
    describe_lines(describe(cache))
    verify_cache(cache)
    for name in cache.teachers:
        for targets in (cache.image_targets(name), cache.text_targets(name)):
            targets.read_masked(targets.available_rows())
    for modality in layout.MODALITIES:
        for unit in cache.manifest.units(modality):
            assert 0 <= unit.number < 10**6


RECORDS = (
    "cache.json",
    "catalog/append-00001.json",
    "teachers/tiny/teacher.json",
    f"{COMMITS}/arrays-00001.json",
    f"{COMMITS}/image-00001.json",
    f"{COMMITS}/text-00000.json",
    PLACE.record,
    PLACE.state,
    "teachers/tiny/image.zarr/zarr.json",
)


def faults_of(root: Path) -> str:
    """Return the error that opening a cache ends with, or else all faults that are found in it."""
    try:
        return "\n".join(verify_cache(open_cache(root)).faults)
    except CacheError as error:
        return str(error)


@pytest.mark.parametrize(
    ("record", "way", "value", "message"),
    [
        ("cache.json", ("shard_rows",), 0, "shard_rows 0, expected an integer, 1 to 16777216"),
        ("cache.json", ("rows", "first"), 4, "rows.first 4, expected 0, the row after earlier"),
        ("cache.json", ("views", "min_area"), 2, "damaged: view min area must be above 0"),
        (
            "cache.json",
            ("views", "augmentation"),
            {},
            "has no views.augmentation.brightness",
        ),
        (
            "cache.json",
            ("views", "augmentation"),
            {**asdict(AugmentationPolicy()), "hue": 2},
            "cache.json is damaged: augment hue must be 0 to 0.5, got 2",
        ),
        ("cache.json", ("sources",), [3], r"sources \[3\], expected a list of objects"),
        (RECORDS[1], ("generation",), 7, "generation 7, expected 1, as in its file name"),
        (RECORDS[1], ("files", "../x"), DESCRIBED, "names '../x', which leads out of the cache"),
        (RECORDS[2], ("name",), "../../home", "name '../../home', expected 'tiny', as its folder"),
        (RECORDS[2], ("logit_scale",), 1e308, "logit_scale 1e[+]308, expected a number"),
        (
            RECORDS[4],
            ("rejected", 0, "row"),
            99,
            "rejected.row 99, expected an integer, 6 to 11",
        ),
        (RECORDS[4], ("attempt",), 1, "unit 1, expected 1 from row 6, as in its file name"),
        (RECORDS[4], ("files", "/etc/passwd"), DESCRIBED, "names '/etc/passwd', which leads out"),
        (
            PLACE.record,
            ("files", "cache.json"),
            DESCRIBED,
            "expected indexes/tiny/text.faiss alone",
        ),
    ],
)
def test_a_record_that_is_not_what_its_place_says_is_damaged(
    stranger: Path, record: str, way: tuple[Any, ...], value: Any, message: str
) -> None:
    whole = (stranger / record).read_bytes()
    fields = json.loads(whole)
    owner = fields
    for key in way[:-1]:
        owner = owner[key]
    owner[way[-1]] = value
    del fields["checksum"]
    (stranger / record).write_bytes(encode_record(fields))
    try:
        assert re.search(message, faults_of(stranger))
    finally:
        (stranger / record).write_bytes(whole)


@pytest.mark.parametrize("record", RECORDS)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_a_record_says_the_error_is_ours_and_nothing_outside_changes(
    stranger: Path, record: str, data: st.DataObject
) -> None:
    path = stranger / record
    whole, before = path.read_bytes(), sorted(stranger.parent.rglob("*"))
    fields = json.loads(whole)
    changed = harm(data, {name: value for name, value in fields.items() if name != "checksum"})
    is_plain = record.endswith("zarr.json")
    path.write_bytes(json.dumps(changed).encode() if is_plain else encode_record(changed))
    try:
        with contextlib.suppress(CacheError):
            use(stranger)
        if record == PLACE.state:
            heard: list[str] = []
            assert IndexState(LocalStorage(stranger), PLACE, {}).resume(heard.append) is None
            assert len(heard) == 1
    finally:
        path.write_bytes(whole)
    assert (stranger.parent / "home/keys").read_bytes() == b"mine"
    assert sorted(stranger.parent.rglob("*")) == before


INTENT = {
    "record": {"unit": 0, "rejected": [], "files": {"t/a": DESCRIBED, "t/b": DESCRIBED}},
    "staged": {"t/a": "t/a.text.0.partial", "t/b": "t/b.text.0.partial"},
}


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_an_intent_says_nothing_outside_changes(
    tmp_path: Path, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home/keys").write_bytes(b"mine")
    files = LocalStorage(tmp_path / "cache")
    for partial in INTENT["staged"].values():
        files.write(partial, b"theirs")
    files.write("t/x.json.intent", encode_record(harm(data, INTENT)))
    with contextlib.suppress(DamagedCacheError):
        roll_forward(files, "t/x.json")
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path).glob("home/**/*")] == [
        "home/keys"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "home"]
    assert (tmp_path / "home/keys").read_bytes() == b"mine"
