"""Paths in a cache, and what their names say."""

import pytest

from siglip2_cache.store.format import layout


def test_every_path_is_where_the_format_says() -> None:
    assert layout.generation_record(0) == "cache.json"
    assert layout.generation_record(1) == "catalog/append-00001.json"
    assert layout.catalog_part("samples", 12) == "catalog/samples-00012.parquet"
    assert layout.teacher_record("so400m") == "teachers/so400m/teacher.json"
    assert layout.array_metadata("so400m", "text") == "teachers/so400m/text.zarr/zarr.json"
    assert layout.shard("so400m", "image", 7) == "teachers/so400m/image.zarr/c/7/0/0"
    assert layout.shard("so400m", "text", 123456) == "teachers/so400m/text.zarr/c/123456/0"
    assert layout.images_part("so400m", 7) == "teachers/so400m/images/00007.parquet"
    assert layout.unit_record("a", "image", 7) == "teachers/a/commits/image-00007.json"
    assert layout.unit_record("a", "text", 123456, 2) == "teachers/a/commits/text-123456.r2.json"
    assert layout.arrays_record("a", 3) == "teachers/a/commits/arrays-00003.json"


@pytest.mark.parametrize("modality", layout.MODALITIES)
@pytest.mark.parametrize("unit", [0, 99_999, 100_000])
@pytest.mark.parametrize("attempt", [0, 1, 12])
def test_the_name_of_a_unit_record_says_what_it_is(
    modality: layout.Modality, unit: int, attempt: int
) -> None:
    name = layout.unit_record("a", modality, unit, attempt).rsplit("/", 1)[1]
    assert layout.parse_unit_record(name) == (modality, unit, attempt)


@pytest.mark.parametrize(
    "name",
    [
        "image-00000.json.intent",
        "image-00000.json.0123456789ab.partial",
        "image-00000.r0.json",
        "image-00000.r01.json",
        "image-0.json",
        "arrays-00001.json",
        "images-00000.json",
        "image-00000.json~",
        "image-00000.r1.r2.json",
    ],
)
def test_other_names_are_no_unit_records(name: str) -> None:
    assert layout.parse_unit_record(name) is None


@pytest.mark.parametrize("name", ["a", "so400m-patch14-384", "A.b_c-1", "0"])
def test_plain_words_can_name_a_teacher(name: str) -> None:
    assert layout.is_teacher_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "-a", "a/b", "a b", "ä", "a\\b", "_a"])
def test_what_could_leave_the_folder_or_hide_in_it_cannot(name: str) -> None:
    assert not layout.is_teacher_name(name)


def test_only_partials_and_intents_are_garbage_by_name() -> None:
    assert layout.is_garbage_name("catalog/samples-00000.parquet.cache.0123456789ab.partial")
    assert layout.is_garbage_name("cache.json.intent")
    assert not layout.is_garbage_name("teachers/a/image.zarr/c/0/0/0")
    assert not layout.is_garbage_name("teachers/partial/teacher.json")


@pytest.mark.parametrize(
    "record",
    [
        layout.generation_record(0),
        layout.generation_record(1),
        layout.teacher_record("x.y-1"),
        layout.arrays_record("x.y-1", 2),
        layout.unit_record("x.y-1", "image", 3),
        layout.unit_record("x.y-1", "text", 123456, 10),
    ],
)
def test_a_staged_file_leads_to_the_record_it_waits_for(record: str) -> None:
    commit = record.rsplit("/", 1)[-1].removesuffix(".json")
    is_catalog = record.startswith(("cache", "catalog"))
    path = "catalog/texts-00000.parquet" if is_catalog else "teachers/x.y-1/image.zarr/c/3/0/0"
    assert layout.record_of_staged(f"{path}.{commit}") == record


@pytest.mark.parametrize("path", ["notes.txt", "teachers/a.unit-3", "catalog/.x"])
def test_a_stranger_leads_to_no_record(path: str) -> None:
    assert layout.record_of_staged(path) is None


@pytest.mark.parametrize(
    ("place", "stem"),
    [
        (layout.IndexId(teacher="a.b", modality="image"), "indexes/a.b/image"),
        (layout.IndexId(teacher="a", modality="image", view=12), "indexes/a/image-view12"),
        (layout.IndexId(teacher="a", modality="text"), "indexes/a/text"),
    ],
)
def test_the_place_of_an_index_and_its_record_name_each_other(
    place: layout.IndexId, stem: str
) -> None:
    assert (place.file, place.record) == (f"{stem}.faiss", f"{stem}.json")
    assert layout.parse_index_record(place.record) == place
    assert layout.parse_index_record(place.file) is None
    assert layout.is_garbage_name(place.state)
    assert layout.record_of_staged(place.state) is None  # a build leaves it alone


@pytest.mark.parametrize(
    "path", ["indexes/a/text-view1.json", "indexes/a/image-view0.json", "indexes/image.json"]
)
def test_no_other_name_is_the_record_of_an_index(path: str) -> None:
    assert layout.parse_index_record(path) is None
