"""Queries and their neighbours, with what the catalog says of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.errors import DamagedCacheError, RowUnavailableError, SettingError
from siglip2_cache.neighbors.nearest import NeighborsConfig, find_neighbors
from siglip2_cache.neighbors.queries import Query, read_queries
from siglip2_cache.neighbors.report import Caption, Report
from siglip2_cache.neighbors.report_json import report_values
from siglip2_cache.progress import Display, TaskProgress
from siglip2_cache.store.format import layout
from siglip2_cache.store.search.exact import Neighbors, exact_neighbors
from siglip2_cache.store.search.index_build import build_index
from siglip2_cache.store.search.index_query import IndexedTargets, resolve_index


def look(cache: Path, *queries: Query, **settings: Any) -> Report:
    settings.setdefault("teacher", "first")
    return find_neighbors(NeighborsConfig(cache=cache, queries=queries, **settings))


def cosines_by_hand(one_D: NDArray[Any], others_ND: NDArray[Any]) -> NDArray[np.float64]:
    one, others = one_D.astype(np.float64), others_ND.astype(np.float64)
    return others @ one / np.linalg.norm(others, axis=1) / np.linalg.norm(one)


def row_of(cache: Path, key: str) -> int:
    samples = open_cache(cache).samples().collect()
    return dict(samples.select("key", "row").iter_rows())[key]


def test_the_neighbours_of_a_key_are_those_of_float64_with_keys_and_captions(planted: Path) -> None:
    cache = open_cache(planted)
    rows = cache.image_targets("first").available_rows()
    found = look(planted, Query("key", "p03"), k=100)
    [group] = found.groups
    own = row_of(planted, "p03")
    others = rows[rows != own]
    targets = cache.image_targets("first")
    cosine = cosines_by_hand(targets.read([own])[0], targets.read(others))
    order = np.lexsort((others, -cosine))
    assert [item.row for item in group.items] == others[order].tolist()
    np.testing.assert_allclose([item.cosine for item in group.items], cosine[order], atol=1e-12)
    by_key = {item.key: item for item in group.items}
    assert by_key["p05"].captions == (Caption("Picture 5", "en"), Caption("A picture", "en"))
    assert by_key["p07"].captions == ()
    assert "damaged" not in by_key
    assert group.query is not None
    assert group.query.key == "p03"


def test_an_image_is_its_own_neighbour_only_when_that_is_asked_for(planted: Path) -> None:
    row = row_of(planted, "p04")
    [group] = look(planted, Query("row", row), k=3, include_self=True).groups
    assert (group.items[0].row, group.items[0].cosine) == (row, 1.0)
    assert group.items[0].remarks == ("itself",)
    [group] = look(planted, Query("row", row), k=50).groups
    assert row not in [item.row for item in group.items]


def test_equal_pictures_come_in_the_order_of_their_rows(planted: Path) -> None:
    [group] = look(planted, Query("key", "p00"), k=1).groups
    assert group.items[0].key == "copy"
    assert group.items[0].cosine == 1.0


def test_a_view_is_searched_with_that_view(planted: Path) -> None:
    cache, row = open_cache(planted), row_of(planted, "p02")
    targets = cache.image_targets("first")
    rows = targets.available_rows()
    rows = rows[rows != row]
    [group] = look(planted, Query("row", row), view=1, k=1).groups
    cosine = cosines_by_hand(targets.read([row], 1)[0], targets.read(rows, 1))
    assert group.items[0].row == rows[cosine.argmax()]
    assert group.items[0].view == 1


def test_a_caption_of_the_cache_is_found_without_a_model_and_its_images_are_marked(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "siglip2_cache.precompute.teacher.reload", None)
    [group] = look(planted, Query("text", " Picture 5 "), k=50).groups
    assert group.query is not None
    assert group.query.captions == (Caption("Picture 5", "en"),)
    marked = {item.key for item in group.items if "own caption" in item.remarks}
    assert marked == {"p05"}


def test_the_own_captions_of_an_image_are_marked_among_texts(planted: Path) -> None:
    [group] = look(planted, Query("key", "p05"), among="texts", k=50).groups
    marked = {item.captions[0].text for item in group.items if "own caption" in item.remarks}
    assert marked == {"Picture 5", "A picture"}
    shared = next(item for item in group.items if item.captions[0].text == "A picture")
    assert shared.values == {"keys": ["p00", "p01", "p02"], "images": 11}


def test_a_text_is_not_its_own_neighbour_among_texts(planted: Path) -> None:
    [group] = look(planted, Query("text", "Picture 5"), among="texts", k=50).groups
    assert "Picture 5" not in [item.captions[0].text for item in group.items]


def test_a_picture_of_the_cache_is_known_by_its_bytes(planted: Path) -> None:
    picture = planted.parent / "corpus" / "p06.png"
    [group] = look(planted, Query("image", str(picture)), k=1).groups
    assert group.query is not None
    assert group.query.key == "p06"


def test_without_a_query_a_seeded_choice_of_images_is_shown(planted: Path) -> None:
    one, again, other = (look(planted, sample=4, seed=seed, k=2) for seed in (1, 1, 2))
    assert one.groups == again.groups
    assert [s.query for s in one.groups] != [s.query for s in other.groups]
    rows = [s.query.row for s in one.groups if s.query is not None]
    assert len(rows) == 4
    assert None not in rows
    assert one.summary == ("4 queries among 15 images, exact; 1 without an embedding left out",)


def test_json_has_one_object_a_query_with_its_neighbours(planted: Path) -> None:
    queries = (Query("key", "p01"), Query("text", "Picture 2"))
    values = json.loads(json.dumps(report_values(look(planted, *queries, k=2))))
    assert [sorted(each) for each in values] == [["neighbors", "query"]] * 2
    assert values[0]["query"]["key"] == "p01"
    assert values[1]["query"]["text"] == "Picture 2"
    near = values[0]["neighbors"][0]
    assert {"row", "key", "cosine", "captions", "langs"} <= set(near)
    assert isinstance(near["cosine"], float)


@pytest.mark.parametrize("row", [-1, 16, 10**20])
def test_a_row_out_of_range_is_named(planted: Path, row: int) -> None:
    with pytest.raises(RowUnavailableError, match=rf"row {row} is not in .* rows 0\.\.15"):
        look(planted, Query("row", row))


def test_a_rejected_image_cannot_be_asked_for_and_says_why(planted: Path) -> None:
    with pytest.raises(RowUnavailableError, match=r"was rejected by first: damaged image"):
        look(planted, Query("key", "damaged"))


def test_a_brought_picture_is_whole_whatever_view_is_searched(planted: Path) -> None:
    picture = planted.parent / "corpus" / "p06.png"
    cache = open_cache(planted)
    [group] = look(planted, Query("image", str(picture)), view=1, k=1, include_self=True).groups
    query = cache.image_targets("first").read([row_of(planted, "p06")], 0)
    expected = exact_neighbors(cache.image_targets("first"), query, 1, view=1)
    assert group.items[0].row == expected.rows_QK[0, 0]
    assert group.items[0].cosine == expected.cosine_QK[0, 0]
    assert group.query is not None
    assert group.query.view == 0


@pytest.mark.parametrize("damage", [b"\0" * 256, b"\xff" * 256])
def test_a_row_that_is_stored_without_a_direction_is_named_or_left_out(
    planted: Path, tmp_path: Path, damage: bytes
) -> None:
    shutil.copytree(planted, tmp_path / "c")
    with (tmp_path / "c" / layout.shard("first", "image", 0)).open("r+b") as shard:
        shard.write(damage)  # both views of row 0, of 64 x float16
    with pytest.raises(DamagedCacheError, match=r"image row 0 of .* run siglip2-cache verify"):
        look(tmp_path / "c", Query("row", 0))
    found = look(tmp_path / "c", sample=100)
    assert found.summary == ("14 queries among 14 images, exact; 2 without an embedding left out",)
    assert 0 not in [group.query.row for group in found.groups if group.query]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("key", "caf\udce9"), r"key 'caf\\udce9' is not UTF-8"),
        (Query("text", "caf\udce9"), r"text 'caf\\udce9' is not UTF-8"),
        (Query("image", "a\0b"), "a file name cannot hold a zero byte"),
        (Query("key", "p0"), r"has the key 'p0'; did you mean 'p00', 'p01', 'p02'\?"),
        (Query("key", "p03.png"), r"has the key 'p03\.png'; did you mean 'p03'\?"),
        (Query("key", "nothing"), r"no sample of .* has the key 'nothing'$"),
        (Query("text", "  "), "a text of a query is empty"),
        (Query("image", "/no/such.png"), r"picture /no/such\.png: no such file"),
    ],
)
def test_what_is_not_there_is_named(planted: Path, query: Query, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        look(planted, query)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"among": "videos"}, "--among must be images or texts, got 'videos'"),
        ({"k": 0}, "-k must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"sample": 0}, "--sample must be at least 1, got 0"),
        ({"view": 2}, r"--view 2 is not in .* views 0\.\.1"),
        ({"teacher": "third"}, "no teacher 'third'"),
        ({"teacher": None}, "several teachers: first, second; name one"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    planted: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        look(planted, Query("key", "p01"), **settings)


def test_a_file_of_queries_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("a cat\n\n  two dogs \n")
    assert read_queries(tmp_path / "q.txt") == [Query("text", "a cat"), Query("text", "two dogs")]
    (tmp_path / "r.jsonl").write_bytes('{"text": "a\u2028b\x85c"}\r\n'.encode())
    assert read_queries(tmp_path / "r.jsonl") == [Query("text", "a\u2028b\x85c")]
    (tmp_path / "q.jsonl").write_text(
        '{"key": "a/b"}\n{"row": 7}\n{"text": "a cat"}\n{"image": "x/y.jpg"}\n'
    )
    assert read_queries(tmp_path / "q.jsonl") == [
        Query("key", "a/b"),
        Query("row", 7),
        Query("text", "a cat"),
        Query("image", str(tmp_path / "x/y.jpg")),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"key": "a", "row": 1}', r"q\.jsonl line 2 is not a query"),
        ('{"row": "7"}', r"line 2 is not a query"),
        ('{"row": true}', r"line 2 is not a query"),
        ('{"text": " "}', r"line 2 is not a query"),
        ("[1]", r"line 2 is not a query"),
        ("a cat", r"line 2 is not a query: 'a cat'"),
    ],
)
def test_a_line_that_is_no_query_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text('{"row": 1}\n' + line + "\n")
    with pytest.raises(SettingError, match=message):
        read_queries(tmp_path / "q.jsonl")


def test_a_file_of_no_queries_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("\n \n")
    with pytest.raises(SettingError, match="has none"):
        read_queries(tmp_path / "q.txt")
    with pytest.raises(SettingError, match=r"gone\.txt cannot be read: No such file"):
        read_queries(tmp_path / "gone.txt")


def test_an_index_says_what_it_finds_of_what_was_asked(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(planted, tmp_path / "cache")
    cache = open_cache(root)
    build_index(
        cache, resolve_index(cache, "image", teacher="first"), progress=TaskProgress(Display())
    )
    image, text = Query("key", "p03"), Query("text", "Picture 3")

    def said(*queries: Query, k: int = 3) -> str:
        return look(root, *queries, k=k, approximate=True).summary[0]

    among = "among 15 images, by the index"
    left_out = "; 1 without an embedding left out"
    assert said(image) == f"1 query {among} (recall@10 of images 1.000){left_out}"
    assert said(text) == f"1 query {among} (recall@10 of texts 1.000){left_out}"
    both = "recall@10 of images 1.000, recall@10 of texts 1.000"
    assert said(image, text, k=12) == f"2 queries {among} ({both}; lower at 12){left_out}"
    whole = IndexedTargets.neighbors

    def half_blind(self: IndexedTargets, *arguments: Any, **settings: Any) -> Neighbors:
        found = whole(self, *arguments, **settings)
        found.rows_QK[:, 1:] = -1
        return found

    monkeypatch.setattr(IndexedTargets, "neighbors", half_blind)
    assert "; 27 existing neighbours were missed, without --approximate all are found" in said(
        image, text, k=99
    )  # one of 14 others, one of 15
