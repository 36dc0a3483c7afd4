"""Planning: a corpus frozen into the catalog, the same bytes every time, appended to and guarded."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kit.fakes import (
    FakeTeacher,
    SilentProgress,
    config_of,
    draw_image,
    tree_of,
    write_folder_corpus,
    write_table_corpus,
)
from kit.patience import PATIENCE_S

from siglip2_cache import open_cache
from siglip2_cache.errors import DuplicateKeyError, SettingError, SourceError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.dry_run import dry_run
from siglip2_cache.precompute.planning import freeze, part_writer
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.findings import finding_lines
from siglip2_cache.precompute.planning.plan import Plan, make_plan
from siglip2_cache.precompute.planning.spill import Scratch, SpillBuffer
from siglip2_cache.precompute.sources import Sample, TableColumns
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format import layout, transaction
from siglip2_cache.store.format.augmentation import AugmentationPolicy
from siglip2_cache.store.format.catalog import Part, Table
from siglip2_cache.store.format.transaction import roll_forward
from siglip2_cache.store.format.views import WHOLE_IMAGE, draw_view
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.io.location import relocate
from siglip2_cache.store.verify.verify import verify_cache

RUN_BUILD = Path(__file__).parents[3] / "kit" / "run_build.py"

Line = dict[str, Any]

TINY_SCRATCH = partial(Scratch, bucket_rows=3, memory_limit_bytes=1)
"""Three rows a bucket and everything through files."""


def plan(
    cache: Path,
    *sources: Path | str,
    is_dry_run: bool = False,
    scratch: Callable[[], Scratch] = Scratch,
    **settings: Any,
) -> Plan:
    config = PlanConfig(sources=tuple(map(str, sources)), **settings)
    return make_plan(config, LocalStorage(cache), is_dry_run=is_dry_run, scratch=scratch)


def frame(cache: Path, table: Table) -> pl.DataFrame:
    return open_cache(cache).table(table).collect()


def keys(cache: Path) -> dict[int, str]:
    return dict(frame(cache, "samples").select("row", "key").iter_rows())


def texts(cache: Path) -> dict[int, str]:
    return dict(frame(cache, "texts").iter_rows())


def captions(cache: Path) -> list[tuple[int, str, str | None]]:
    """(row, text, lang) in the order of the table."""
    joined = frame(cache, "captions").join(
        frame(cache, "texts"), on="text_row", how="left", maintain_order="left"
    )
    return list(joined.select("row", "text", "lang").iter_rows())


def lines(*names: str, **fields: Any) -> list[Line]:
    """One line of a table for each name, with a caption of its own."""
    return [{"image": f"{n}.png", "key": n, "captions": [f"of {n}"], **fields} for n in names]


def assert_refused(
    cache: Path, *sources: Path | str, match: str, error: type[Exception] = SettingError, **kw: Any
) -> None:
    """A plan is refused with this message and writes nothing."""
    before = tree_of(cache)
    with pytest.raises(error, match=match):
        plan(cache, *sources, **kw)
    assert tree_of(cache) == before


# --- the same bytes every time ---------------------------------------------------------------


def sharing_lines(first: int, last: int) -> list[Line]:
    """Samples of 0 to 4 captions, most of them shared, some with a language."""
    return [
        {
            "image": f"{i}.png",
            "missing": True,  # not drawn: hundreds of pictures that nobody looks at
            "key": f"k{i:02d}",
            "label": f"class {i % 3}",
            "captions": [
                {"text": f"caption {(i * (j + 2)) % 7}", "lang": (None, "de", "en")[(i + j) % 3]}
                for j in range(i % 5)
            ],
        }
        for i in range(first, last)
    ]


@pytest.fixture
def prompt_files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    (tmp_path / "templates.txt").write_text("a photo of a {}\n{} 3\n")
    return {"labels": tmp_path / "labels.txt", "templates": tmp_path / "templates.txt"}


def test_the_bytes_depend_on_neither_bucket_size_nor_memory_new_or_appended(
    tmp_path: Path, prompt_files: dict[str, Path]
) -> None:
    scratches: dict[str, Callable[[], Scratch]] = {
        "default": Scratch,
        "tiny": TINY_SCRATCH,
        "seven": partial(Scratch, bucket_rows=7, memory_limit_bytes=3000),
    }

    def plan_all(num_lines: int, **settings: Any) -> list[Plan]:
        one = write_table_corpus(tmp_path / "one", sharing_lines(0, num_lines))
        two = write_table_corpus(tmp_path / "two", sharing_lines(5, num_lines + 9))
        return [
            plan(tmp_path / name, f"a={one}", f"b={two}", scratch=scratch, shard_rows=8, **settings)
            for name, scratch in scratches.items()
        ]

    plan_all(20, num_views=2)
    default, *others = [tree_of(tmp_path / name) for name in scratches]
    assert all(other == default for other in others)
    found = plan_all(31, **prompt_files)
    default, *others = [tree_of(tmp_path / name) for name in scratches]
    assert all(other == default for other in others)
    assert all(each.findings == found[0].findings for each in found)
    # The comparison would mean little if the catalog were trivial.
    cache = open_cache(tmp_path / "tiny")
    assert len(cache.manifest.generations) == 2
    assert cache.num_samples == 20 + 24 + 11 + 11
    assert cache.num_texts == 7 + 4
    assert found[0].findings.num_existing == 44


def test_what_is_reported_does_not_depend_on_the_buckets_either(tmp_path: Path) -> None:
    names = [f"n{i * 7 % 23:02d}" for i in range(23)]
    source = write_table_corpus(tmp_path / "corpus", lines(*names))
    for cache in ("one", "other"):
        plan(tmp_path / cache, source)
    for name in names[12:]:
        (tmp_path / "corpus" / f"{name}.png").write_bytes(b"another")
    write_table_corpus(tmp_path / "corpus", lines(*names[10:]))
    one = plan(tmp_path / "one", source).findings
    other = plan(tmp_path / "other", source, scratch=TINY_SCRATCH).findings
    assert one == other
    assert (one.num_gone, one.num_changed) == (10, 11)
    assert one.gone == sorted(names[:10])[:5]
    assert one.changed == sorted(names[12:])[:5]


PLAN_IN_A_PROCESS = """
import sys
from pathlib import Path
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.store.io.local import LocalStorage
cache, *sources = sys.argv[1:]
make_plan(PlanConfig(sources=tuple(sources), num_views=2), LocalStorage(Path(cache)))
"""


def test_the_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    one = write_table_corpus(tmp_path / "one", sharing_lines(0, 200))
    two = write_table_corpus(tmp_path / "two", sharing_lines(100, 300))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PLAN_IN_A_PROCESS, tmp_path / name, f"a={one}", f"b={two}"],
            env={**os.environ, "PYTHONHASHSEED": seed, "POLARS_MAX_THREADS": num_threads},
        )
        for name, seed, num_threads in (("first", "1", "1"), ("second", "2", "4"))
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert tree_of(tmp_path / "first") == tree_of(tmp_path / "second")
    assert open_cache(tmp_path / "first").num_samples == 400


PEAK_OF_A_PLAN = """
import resource, sys
from pathlib import Path
from siglip2_cache.precompute.planning import freeze, part_writer, scan
from siglip2_cache.precompute.sources import Caption, CorpusPart, Sample
from siglip2_cache.precompute.planning.spill import Scratch
from siglip2_cache.store.format.views import ViewPolicy

class Corpus:
    kind = "table"
    location = root = Path("/corpus")
    def __init__(self, num_samples): self.num_samples = num_samples
    def parts(self):
        yield CorpusPart("", self.scan)
    def scan(self):
        for i in range(self.num_samples):
            key = f"some/folder/of/the/corpus/image-{i * 7919 % self.num_samples:09d}"
            own = Caption(f"a caption of its own for image number {i:09d} of the corpus")
            shared = Caption(f"a caption shared by many: {i % 1000}", "en")
            yield Sample(key=key, path=key + ".jpg", captions=(own, shared), num_bytes=i,
                         mtime_ns=i, place=f"/corpus/captions.jsonl line {i}")

class Nowhere:
    num_bytes = 0
    def add(self, path, data, **described): self.num_bytes += len(data)

scan.SCAN_ROWS = freeze.SCAN_ROWS = part_writer.PART_ROWS = 5_000
sink = Nowhere()
with Scratch(bucket_rows=10_000, memory_limit_bytes=2**21, folder=Path(sys.argv[2])) as space:
    freezer = freeze.Freezer(cache=None, views=ViewPolicy(), sink=sink, scratch=space)
    freezer.scan([("", Corpus(int(sys.argv[1])))], scan.Scanner(None, keeps=False))
    found = freezer.freeze()
assert found.num_samples == int(sys.argv[1]) and found.num_texts == found.num_samples + 1000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_the_memory_of_a_plan_stays_as_the_corpus_grows_tenfold(tmp_path: Path) -> None:
    few, many = 6_000, 60_000
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PEAK_OF_A_PLAN, str(n), tmp_path],
            # Freed memory goes back at once: how much is kept for 10 seconds depends on the machine's speed.
            env={**os.environ, "POLARS_MAX_THREADS": "1", "_RJEM_MALLOC_CONF": "dirty_decay_ms:0"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in (few, many)
    ]
    peak_few, peak_many = (int(process.communicate(timeout=PATIENCE_S)[0]) for process in processes)
    # Key, path, place and two captions of a sample are some 250 bytes, and all that is made of them 1.4 kB.
    assert peak_many - peak_few < (many - few) * 500
    assert list(tmp_path.iterdir()) == []


def test_what_was_spilled_is_read_from_a_folder_whose_name_is_a_pattern(tmp_path: Path) -> None:
    folder, frame = tmp_path / "g [2024]*", pl.DataFrame({"row": [1, 2]})
    folder.mkdir()
    with Scratch(folder=folder) as space:
        buffer = SpillBuffer(space)
        buffer.append(frame)
        buffer.flush()
        assert [each.to_dicts() for each in buffer.frames()] == [frame.to_dicts()]


def test_tables_longer_than_a_part_are_cut_and_read_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_table_corpus(tmp_path / "corpus", sharing_lines(0, 20))
    plan(tmp_path / "whole", source, num_views=2)
    monkeypatch.setattr(part_writer, "PART_ROWS", 4)
    plan(tmp_path / "cut", source, num_views=2, scratch=TINY_SCRATCH)
    names: tuple[Table, ...] = ("files", "samples", "captions", "texts", "views")
    for name in names:
        assert frame(tmp_path / "cut", name).equals(frame(tmp_path / "whole", name)), name
    num_rows = [part.num_rows for part in open_cache(tmp_path / "cut").manifest.parts("views")]
    assert num_rows == [4] * 10


def test_appending_opens_a_part_of_the_files_for_the_samples_that_name_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{i:02d}" for i in range(24)]
    source = write_table_corpus(tmp_path / "corpus", lines(*names))
    monkeypatch.setattr(part_writer, "PART_ROWS", 4)
    plan(tmp_path / "cache", source)
    opened: Counter[str] = Counter()
    real = Cache._part_files

    def part_files(self: Cache, found: Sequence[Part]) -> list[Path]:
        opened.update(part.path for part in found)
        return real(self, found)

    monkeypatch.setattr(Cache, "_part_files", part_files)
    write_table_corpus(tmp_path / "corpus", lines(*names, "new"))
    plan(tmp_path / "cache", source)
    assert {path: n for path, n in opened.items() if "files" in path} == {
        f"catalog/files-{number:05d}.parquet": 1 for number in range(6)
    }


# --- what the catalog says -------------------------------------------------------------------


def test_texts_come_once_in_order_of_first_appearance_and_captions_in_order(
    tmp_path: Path,
) -> None:
    source = write_table_corpus(
        tmp_path / "corpus",
        [
            {"image": "z.png", "captions": ["zebra", "stripes"]},
            {"image": "a.png", "captions": []},
            {"image": "m.png", "captions": ["stripes", {"text": "apple", "lang": "en"}, "zebra"]},
            {"image": "b.png", "captions": [{"text": "apple", "lang": "de", "kind": "alt"}]},
        ],
    )
    found = plan(tmp_path / "cache", source).findings
    assert keys(tmp_path / "cache") == {0: "z", 1: "a", 2: "m", 3: "b"}
    assert texts(tmp_path / "cache") == {0: "zebra", 1: "stripes", 2: "apple"}
    assert frame(tmp_path / "cache", "captions").rows() == [
        *((0, 0, None, None), (0, 1, None, None)),
        *((2, 1, None, None), (2, 2, "en", None), (2, 0, None, None)),
        (3, 2, "de", "alt"),
    ]
    assert (found.num_samples, found.num_captions, found.num_texts) == (4, 6, 3)


def test_texts_differ_by_case_and_unicode_form_and_by_nothing_else(tmp_path: Path) -> None:
    same = ["caf\u00e9", "cafe\u0301", "Caf\u00e9", " caf\u00e9 "]
    source = write_table_corpus(tmp_path / "corpus", [{"image": "a.png", "captions": same}])
    plan(tmp_path / "cache", source)
    assert list(texts(tmp_path / "cache").values()) == same[:3]


def test_labels_sizes_and_times_of_the_files_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_folder_corpus(root / "cats", 1)
    write_folder_corpus(root / "dogs", 2)
    plan(tmp_path / "cache", root)
    samples = frame(tmp_path / "cache", "samples")
    assert samples["label"].to_list() == ["cats", "dogs", "dogs"]
    assert samples["offset"].to_list() == [None] * 3
    files = frame(tmp_path / "cache", "files")
    assert files["path"].to_list() == ["cats/img000.png", "dogs/img000.png", "dogs/img001.png"]
    stats = [(root / path).stat() for path in files["path"]]
    assert files["num_bytes"].to_list() == [stat.st_size for stat in stats]
    assert files["mtime_ns"].to_list() == [stat.st_mtime_ns for stat in stats]


def test_samples_of_one_file_in_a_row_share_its_number_over_bucket_borders(tmp_path: Path) -> None:
    write_shards(tmp_path, 0, 1)
    with tarfile.open(tmp_path / "000.tar", "a") as tar:
        for i in range(4):
            tar.addfile(tarfile.TarInfo(f"more{i}.jpg"))
    plan(tmp_path / "cache", tmp_path / "*.tar", scratch=TINY_SCRATCH)
    assert frame(tmp_path / "cache", "samples")["file"].to_list() == [0, 0, 0, 0, 0, 1]
    files = frame(tmp_path / "cache", "files")
    assert files.select("file", "path").rows() == [(0, "000.tar"), (1, "001.tar")]


def test_a_missing_image_keeps_its_row_and_is_counted(tmp_path: Path) -> None:
    here, gone = lines("here", "gone")
    source = write_table_corpus(tmp_path / "corpus", [{**gone, "missing": True}, here])
    found = plan(tmp_path / "cache", source).findings
    assert found.num_missing_files == 1
    assert keys(tmp_path / "cache") == {0: "gone", 1: "here"}
    assert frame(tmp_path / "cache", "files")["num_bytes"][0] is None


def test_views_are_those_that_the_policy_draws_from_the_key(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a", "b"))
    plan(tmp_path / "cache", f"n={source}", num_views=3, view_seed=5, view_min_area=0.5)
    policy = open_cache(tmp_path / "cache").view_policy
    assert (policy.num_views, policy.seed, policy.min_area) == (3, 5, 0.5)
    views = frame(tmp_path / "cache", "views").rows()
    assert [line[:2] for line in views] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    for row, view, top, left, height, width, flip in views:
        box = draw_view(policy, f"n/{'ab'[row]}", view)
        assert (top, left, height, width, flip) == (
            *(box.top, box.left, box.height, box.width),
            box.flip,
        )
        assert view or box == WHOLE_IMAGE


def test_a_cache_of_one_view_has_no_views_table(tmp_path: Path) -> None:
    plan(tmp_path / "cache", write_table_corpus(tmp_path / "corpus", lines("a")))
    assert not list((tmp_path / "cache" / "catalog").glob("views*"))


@pytest.mark.parametrize(
    ("num_views", "shard_rows"), [(1, 16_384), (2, 8_192), (3, 4_096), (5, 2_048), (256, 64)]
)
def test_a_unit_is_16384_rows_divided_by_the_views_down_to_a_power_of_two(
    tmp_path: Path, num_views: int, shard_rows: int
) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    assert plan(tmp_path / "cache", source, num_views=num_views).shard_rows == shard_rows
    assert open_cache(tmp_path / "cache").shard_rows == shard_rows


# --- duplicate keys --------------------------------------------------------------------------

REMEDY = (
    r"use --prefix-keys \(its file's name before each key\), another --key-column or "
    r"--key-column '' \(keys are paths\)$"
)


@pytest.mark.parametrize("scratch", [Scratch, TINY_SCRATCH], ids=["one bucket", "many buckets"])
def test_a_key_given_twice_in_one_source_names_the_first_such_key_and_both_places(
    tmp_path: Path, scratch: Callable[[], Scratch]
) -> None:
    again = [{**line, "image": f"other {i}.png"} for i, line in enumerate(lines(*"yzyw"))]
    source = write_table_corpus(tmp_path / "corpus", [*lines(*"zyxw"), *again])
    table = re.escape(str(source))
    assert_refused(
        tmp_path / "cache",
        source,
        error=DuplicateKeyError,
        match=rf"3 keys are given twice, the first 'y', at {table} line 2 and at {table} line 5; .*{REMEDY}",
        scratch=scratch,
    )
    assert not (tmp_path / "cache").exists()


def test_two_images_of_one_name_are_a_duplicate_that_names_both_files(tmp_path: Path) -> None:
    root = write_folder_corpus(tmp_path / "corpus", 1)
    draw_image(1).save(root / "img000.jpg")
    with pytest.raises(DuplicateKeyError, match=r"at .*img000\.jpg and at .*img000\.png; keys"):
        plan(tmp_path / "cache", root)


def test_two_new_sources_under_one_name_are_refused(tmp_path: Path) -> None:
    one, two = (write_table_corpus(tmp_path / n, lines("a")) for n in ("one", "two"))
    message = f"two sources have the name '{{}}': {one} and {two}; .* with NAME={two}$"
    assert_refused(tmp_path / "cache", f"x={one}", f"x={two}", match=message.format("x"))
    assert_refused(tmp_path / "cache", one, two, match=message.format("captions"))


def test_one_source_given_twice_is_refused(tmp_path: Path) -> None:
    one = write_table_corpus(tmp_path / "one", lines("a"))
    assert_refused(tmp_path / "cache", one, one, match=f"the source {one} was given twice")
    for name in ("x", "y"):
        match = f"the source {one} was given twice"
        assert_refused(tmp_path / "cache", f"x={one}", f"{name}={one}", match=match)


def test_equal_keys_of_two_sources_are_told_apart_by_their_names(tmp_path: Path) -> None:
    one, two = (write_table_corpus(tmp_path / n, lines("a")) for n in ("one", "two"))
    plan(tmp_path / "cache", f"x={one}", f"y={two}")
    assert keys(tmp_path / "cache") == {0: "x/a", 1: "y/a"}


def test_a_namespace_holds_no_slash_so_no_two_names_and_keys_collide_in_one_plan(
    tmp_path: Path,
) -> None:
    one = write_table_corpus(tmp_path / "one", lines("b/x"))
    two = write_table_corpus(tmp_path / "two", lines("x"))
    assert_refused(
        tmp_path / "cache", f"a={one}", f"a/b={two}", error=SourceError, match="there is no .*a/b="
    )


def test_a_key_that_the_cache_has_from_another_source_names_its_row_and_the_new_place(
    tmp_path: Path,
) -> None:
    one = write_table_corpus(tmp_path / "one", lines("b", "a/x"))
    two = write_table_corpus(tmp_path / "two", lines("y", "x"))
    plan(tmp_path / "cache", one)  # the only source: no name before its keys
    match = (
        r"key 'a/x' is given twice, at row 1 of the cache \(from source ''\) and at "
        rf"{re.escape(str(two))} line 2; .* in a cache: give the new source another name \(NAME=PATH\)$"
    )
    for scratch in (Scratch, TINY_SCRATCH):
        assert_refused(
            tmp_path / "cache", f"a={two}", match=match, error=DuplicateKeyError, scratch=scratch
        )
    plan(tmp_path / "cache", f"other={two}")
    assert list(keys(tmp_path / "cache").values()) == ["b", "a/x", "other/y", "other/x"]


# --- appending -------------------------------------------------------------------------------


def test_new_samples_start_a_new_unit_and_what_was_there_stays(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = lines("a", "b", "c", "d", "e")
    source = write_table_corpus(tmp_path / "corpus", first)
    plan(cache, source, shard_rows=4)
    before = tree_of(cache)
    new = [
        {"image": "f.png", "captions": ["of b", "new 1"]},
        {"image": "g.png", "captions": ["new 2", "new 1"]},
    ]
    write_table_corpus(tmp_path / "corpus", [new[0], *first, new[1]])
    found = plan(cache, source)
    assert {path: tree_of(cache)[path] for path in before} == before
    assert (found.first_row, found.first_text_row) == (8, 8)
    assert list(keys(cache)) == [0, 1, 2, 3, 4, 8, 9]
    assert keys(cache)[8] == "f"
    assert texts(cache) == {i: f"of {n}" for i, n in enumerate("abcde")} | {8: "new 1", 9: "new 2"}
    assert captions(cache)[5:] == [
        *((8, "of b", None), (8, "new 1", None)),
        *((9, "new 2", None), (9, "new 1", None)),
    ]
    units = open_cache(cache).manifest.units("image")
    assert [(u.number, u.rows.first, u.rows.count) for u in units] == [
        (0, 0, 4),
        (1, 4, 1),
        (2, 8, 2),
    ]
    assert (found.findings.num_samples, found.findings.num_existing) == (2, 5)
    assert (found.findings.num_texts, found.findings.num_captions) == (2, 4)


def test_it_can_be_appended_to_again_and_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for names in ("a", "ab", "abcdef", "abcdefg"):
        source = write_table_corpus(tmp_path / "corpus", lines(*names))
        plan(cache, source, scratch=TINY_SCRATCH, shard_rows=2)
    assert keys(cache) == {0: "a", 2: "b", 4: "c", 5: "d", 6: "e", 7: "f", 8: "g"}
    assert texts(cache) == {row: f"of {key}" for row, key in keys(cache).items()}
    assert captions(cache) == [(row, f"of {key}", None) for row, key in keys(cache).items()]
    files = frame(cache, "files").select("file", "path").rows()
    assert files == [(i, f"{name}.png") for i, name in enumerate("abcdefg")]
    generations = open_cache(cache).manifest.generations
    assert len({generation.digest for generation in generations}) == len(generations) == 4


def test_a_generation_that_brings_only_captions_of_known_texts_adds_no_text_rows(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    source = write_table_corpus(tmp_path / "corpus", lines("a", "b", captions=["one text"]))
    plan(cache, source, shard_rows=2)
    write_table_corpus(tmp_path / "corpus", lines("a", "b", "c", captions=["one text"]))
    assert plan(cache, source).findings.num_texts == 0
    assert texts(cache) == {0: "one text"}
    assert open_cache(cache).manifest.num_rows("text") == 1


def test_nothing_changed_is_found_without_a_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder_corpus(tmp_path / "corpus", 3)
    plan(tmp_path / "cache", source)
    before = tree_of(tmp_path / "cache")
    monkeypatch.delattr(freeze.Freezer, "scan")
    again = plan(tmp_path / "cache", source)
    assert not again.was_scanned
    assert again.findings.is_empty
    assert tree_of(tmp_path / "cache") == before


def test_columns_named_once_need_not_be_named_again(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", [{"image": "a.png", "mine": "a dog"}])
    plan(tmp_path / "cache", source, columns=TableColumns(captions=("mine",)))
    for columns in (TableColumns(captions=("mine",)), None):
        assert not plan(tmp_path / "cache", source, columns=columns).was_scanned
    more: list[Line] = [{"image": f"{n}.png", "mine": f"a {n}"} for n in ("dog", "b")]
    write_table_corpus(tmp_path / "corpus", [{"image": "a.png", "mine": "a dog"}, *more])
    plan(tmp_path / "cache", source)
    assert list(texts(tmp_path / "cache").values()) == ["a dog", "a b"]


def test_other_columns_than_those_recorded_are_refused_and_further_ones_are_added(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    rows: list[Line] = [{"image": "a.png", "mine": "a dog", "other": "x", "kind": "dog"}]
    source = write_table_corpus(tmp_path / "corpus", rows)
    plan(cache, source, columns=TableColumns(captions=("mine",), key="kind"))
    with pytest.raises(
        SettingError,
        match=r"--caption-column is \['mine'\] for .* in the cache and \['other'\] was asked for; .*"
        r"leave the option out, or build a new cache$",
    ):
        plan(cache, source, columns=TableColumns(captions=("other",)))
    plan(cache, source, columns=TableColumns(encoding="utf-8"))
    [record] = open_cache(cache).manifest.sources
    assert record.settings == {"captions": ["mine"], "key": "kind", "encoding": "utf-8"}


def test_other_caption_endings_than_those_recorded_are_refused(tmp_path: Path) -> None:
    folder = write_folder_corpus(tmp_path / "corpus", 2, captions=1)
    plan(tmp_path / "cache", folder, caption_endings=("txt",))
    with pytest.raises(
        SettingError, match=r"--caption-ending is \['txt'\] for .*\['cap'\] was asked"
    ):
        plan(tmp_path / "cache", folder, caption_endings=("cap",))


def test_removed_samples_keep_their_rows_and_are_reported_and_may_come_back(
    tmp_path: Path,
) -> None:
    cache = tmp_path / "cache"
    source = write_table_corpus(tmp_path / "corpus", lines("a", "b", "c"))
    plan(cache, source)
    write_table_corpus(tmp_path / "corpus", lines("b"))
    found = plan(cache, source).findings
    assert (found.num_gone, found.gone, found.num_existing) == (2, ["a", "c"], 1)
    assert keys(cache) == {0: "a", 1: "b", 2: "c"}
    write_table_corpus(tmp_path / "corpus", lines("c", "b", "a"))
    found = plan(cache, source).findings
    assert (found.num_gone, found.num_samples, found.num_existing) == (0, 0, 3)
    assert keys(cache) == {0: "a", 1: "b", 2: "c"}


def test_changed_files_are_reported_and_keep_what_was_planned(tmp_path: Path) -> None:
    source = write_folder_corpus(tmp_path / "corpus", 3)
    plan(tmp_path / "cache", source)
    before = frame(tmp_path / "cache", "files")
    os.utime(source / "img001.png", ns=(5, 5))
    (source / "img002.png").write_bytes(b"other")
    found = plan(tmp_path / "cache", source).findings
    assert (found.num_changed, found.changed) == (2, ["img001", "img002"])
    assert frame(tmp_path / "cache", "files").equals(before)


TWO = [{"text": "one", "lang": "en"}, {"text": "two", "lang": None}]


@pytest.mark.parametrize(
    "now",
    [
        pytest.param([TWO[0], {"text": "three", "lang": None}], id="changed"),
        pytest.param([*TWO, "three"], id="added"),
        pytest.param([*TWO, {"text": "one", "lang": "de"}], id="added in another language"),
        pytest.param(TWO[:1], id="removed"),
        pytest.param([], id="all removed"),
        pytest.param(TWO[::-1], id="reordered"),
        pytest.param([TWO[0], {"text": "two", "lang": "en"}], id="given a language"),
        pytest.param([{"text": "one", "lang": "de"}, TWO[1]], id="given another language"),
        pytest.param(["one", TWO[1]], id="robbed of its language"),
    ],
)
def test_other_captions_under_a_known_key_are_refused_by_name(
    tmp_path: Path, now: list[object]
) -> None:
    def write(captions: list[Any], *, name: str = "k3") -> Path:
        middle = {"image": "m.png", "key": name, "captions": captions}
        return write_table_corpus(
            tmp_path / "corpus", [*lines("a", "b", "c"), middle, *lines("d", "e")]
        )

    plan(tmp_path / "cache", source := write(TWO))
    write(now)
    for scratch in (Scratch, TINY_SCRATCH):
        assert_refused(
            tmp_path / "cache",
            source,
            scratch=scratch,
            match=r"^1 sample of .*cache differ from the corpus \(captions of 1: 'k3'\); restore them, "
            "or give them new keys; or keep them as recorded and add only what is new: --changed skip$",
        )
    write(now, name="k4")
    assert plan(tmp_path / "cache", source).findings.num_samples == 1


def test_kinds_that_captions_are_given_later_are_named_with_the_remedy(tmp_path: Path) -> None:
    plain = lines("a", "b", "c", captions=["one", "two"])
    plan(tmp_path / "cache", write_table_corpus(tmp_path / "corpus", plain))
    kinds = [{"text": "one", "kind": "alt"}, {"text": "two"}]
    given = [*lines("a"), *lines("b", "c", captions=kinds)]
    for now, what in (
        ([*lines("a", captions=["one", "two"]), *given[1:]], "kinds of captions of 2: 'b', 'c'"),
        (given, "captions of 3, 2 of them only in kinds: 'a', 'b', 'c'"),
    ):
        assert_refused(
            tmp_path / "cache",
            write_table_corpus(tmp_path / "corpus", now),
            match=rf"^\d samples of .* \({what}\); .*: --changed skip; recorded captions get no kinds "
            "later: build a new cache to have them$",
        )


def test_several_changed_captions_are_counted(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a", "b", "c"))
    plan(tmp_path / "cache", source)
    write_table_corpus(tmp_path / "corpus", [*lines("a"), *lines("b", "c", captions=["new"])])
    assert_refused(
        tmp_path / "cache", source, match=r"^2 samples of .* \(captions of 2: 'b', 'c'\)"
    )


def test_a_first_caption_under_a_known_key_is_refused(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a", captions=[]))
    plan(tmp_path / "cache", source)
    write_table_corpus(tmp_path / "corpus", lines("a"))
    assert_refused(tmp_path / "cache", source, match=r"\(captions of 1: 'a'\)")


# --- several sources, sources that move ------------------------------------------------------


def test_sources_in_another_order_or_one_alone_append_to_what_they_are(tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def write(one: str, two: str) -> tuple[Path, Path]:
        first = write_table_corpus(tmp_path / "one", lines(*one))
        return first, write_table_corpus(tmp_path / "two", lines(*two))

    one, two = write("ab", "ab")
    plan(cache, f"x={one}", f"y={two}", shard_rows=2)
    write("abc", "abd")
    plan(cache, two, one)
    assert keys(cache) == {0: "x/a", 1: "x/b", 2: "y/a", 3: "y/b", 4: "y/d", 5: "x/c"}
    write("abce", "a")
    found = plan(cache, one).findings
    assert keys(cache)[6] == "x/e"
    assert (found.num_gone, found.num_existing) == (0, 3), "the other source was not looked at"
    found = plan(cache, two).findings
    assert (found.num_gone, found.gone) == (2, ["y/b", "y/d"])
    names = [source.name for source in open_cache(cache).manifest.sources]
    assert names == ["x", "y"]
    files = frame(cache, "files")
    assert files.select("source", "path").rows()[-1] == ("x", "e.png")


def test_sources_are_called_by_the_name_of_their_folder_or_file(tmp_path: Path) -> None:
    one = write_table_corpus(tmp_path / "one", lines("a"))
    two = write_folder_corpus(tmp_path / "photos", 1)
    plan(tmp_path / "cache", one, two)
    assert keys(tmp_path / "cache") == {0: "captions/a", 1: "photos/img000"}


def test_a_second_source_can_join_one_that_has_no_name(tmp_path: Path) -> None:
    one = write_table_corpus(tmp_path / "one", lines("a"))
    two = write_folder_corpus(tmp_path / "photos", 1)
    plan(tmp_path / "cache", one)
    plan(tmp_path / "cache", one, two, shard_rows=None)
    assert list(keys(tmp_path / "cache").values()) == ["a", "photos/img000"]


def test_renaming_a_source_is_refused(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "one", lines("a"))
    plan(tmp_path / "cache", f"x={source}")
    assert_refused(
        tmp_path / "cache",
        f"y={source}",
        match=f"{source} is named 'x' in {tmp_path / 'cache'}, not 'y'; its keys were recorded",
    )


def test_a_moved_corpus_is_the_same_under_corpus_root(tmp_path: Path) -> None:
    cache, old, new = tmp_path / "cache", tmp_path / "old", tmp_path / "new"
    write_folder_corpus(old / "photos", 3)
    plan(cache, old / "photos")
    old.rename(new)
    write_folder_corpus(new / "photos", 1, first=3)
    found = plan(cache, new / "photos", corpus_roots={str(old): str(new)}).findings
    assert (found.num_existing, found.num_samples, found.num_gone) == (3, 1, 0)
    assert open_cache(cache).corpus_root("") == new / "photos"
    assert list(keys(cache).values()) == ["img000", "img001", "img002", "img003"]
    assert not plan(cache, new / "photos").was_scanned


def test_a_source_that_is_not_given_moves_along(tmp_path: Path) -> None:
    cache, old, new = tmp_path / "cache", tmp_path / "old", tmp_path / "new"
    sources = [write_folder_corpus(old / name, 1) for name in ("x", "y")]
    plan(cache, *sources)
    old.rename(new)
    plan(cache, new / "x", corpus_roots={str(old): str(new)})
    assert open_cache(cache).corpus_root("y") == new / "y"


@pytest.mark.parametrize("name", ["", "x="])
@pytest.mark.parametrize("new_name", ["corpus", "elsewhere"])
def test_a_moved_corpus_without_corpus_root_is_refused_with_the_remedy(
    tmp_path: Path, name: str, new_name: str
) -> None:
    old, new = tmp_path / "corpus", tmp_path / "to" / new_name
    plan(tmp_path / "cache", f"{name}{write_folder_corpus(old, 2)}")
    new.parent.mkdir()
    old.rename(new)
    remedy = re.escape(f"--corpus-root {old}={new}")
    assert_refused(tmp_path / "cache", f"{name}{new}", match=rf"corpus moved, use {remedy}")
    assert_refused(tmp_path / "cache", f"{new}", match=rf"corpus moved, use {remedy}")


def test_another_corpus_beside_one_that_is_gone_needs_only_a_name(tmp_path: Path) -> None:
    old = write_folder_corpus(tmp_path / "old", 1)
    plan(tmp_path / "cache", old)
    old.rename(tmp_path / "away")
    other = write_folder_corpus(tmp_path / "other", 1)
    with pytest.raises(SettingError, match=f"if this is another one, name it with NAME={other}"):
        plan(tmp_path / "cache", other)
    plan(tmp_path / "cache", f"other={other}")
    assert list(keys(tmp_path / "cache").values()) == ["img000", "other/img000"]


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"shard_rows": 8}, "shard rows is 4 in .*cache and cannot be changed to 8"),
        ({"num_views": 2}, "views is 3 in .*cache and cannot be changed to 2"),
        ({"num_views": 1}, "views is 3 in .*cache and cannot be changed to 1"),
        ({"view_seed": 0}, "view seed is 7 in .*cache and cannot be changed to 0"),
        ({"view_min_area": 0.25}, "view min area is 0.5 in .*cache and cannot be changed to 0.25"),
        (
            {"augmentation": AugmentationPolicy(hue=0.1)},
            "augment is none in .*cache and cannot be changed to hue 0.1, jitter 0.8",
        ),
    ],
)
def test_changed_settings_are_refused_with_old_and_new_value(
    tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    recorded = {"shard_rows": 4, "num_views": 3, "view_seed": 7, "view_min_area": 0.5}
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    plan(tmp_path / "cache", source, **recorded)
    remedy = "; leave the option out, or build a new cache"
    assert_refused(tmp_path / "cache", source, match=message + remedy, **asked)
    plan(tmp_path / "cache", source, **recorded)
    write_table_corpus(tmp_path / "corpus", lines("a", "b"))
    found = plan(tmp_path / "cache", source)  # left out: as recorded
    assert (found.shard_rows, found.first_row) == (4, 4)
    assert (found.views.num_views, found.views.seed, found.views.min_area) == (3, 7, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard_rows": 0}, "shard rows must be 1 to 16,777,216, got 0"),
        ({"num_views": 257}, "views must be 1 to 256, got 257"),
        ({"view_min_area": 0.0}, "view min area must be above 0 and at most 1, got 0.0"),
        ({"labels": Path("l.txt")}, "labels were given without templates; give --templates FILE"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    assert_refused(tmp_path / "cache", source, match=message, **settings)
    with pytest.raises(SettingError, match="no source was given"):
        PlanConfig(sources=())
    assert_refused(tmp_path / "cache", f" ={source}", match="has an empty name; write NAME=PATH")


# --- prompts ---------------------------------------------------------------------------------


def prompts(cache: Path) -> list[tuple[str, str, str, str | None]]:
    """(text, label, template, lang) in the order of the table."""
    joined = frame(cache, "prompts").join(
        frame(cache, "texts"), on="text_row", how="left", maintain_order="left"
    )
    return list(joined.select("text", "label", "template", "lang").iter_rows())


def test_prompts_of_a_labels_file_are_texts_after_the_captions_and_no_captions(
    tmp_path: Path, prompt_files: dict[str, Path]
) -> None:
    source = write_table_corpus(
        tmp_path / "corpus", lines("a", captions=["cat 3", "a dog on a lawn"])
    )
    found = plan(tmp_path / "cache", source, **prompt_files, scratch=TINY_SCRATCH).findings
    assert prompts(tmp_path / "cache") == [
        ("a photo of a dog", "dog", "a photo of a {}", None),
        ("dog 3", "dog", "{} 3", None),
        ("a photo of a cat", "cat", "a photo of a {}", None),
        ("cat 3", "cat", "{} 3", None),
    ]
    rows = frame(tmp_path / "cache", "prompts")["text_row"].to_list()
    assert rows == [2, 3, 4, 0], "a prompt that is a caption too shares its text_row"
    assert captions(tmp_path / "cache") == [(0, "cat 3", None), (0, "a dog on a lawn", None)]
    assert (found.num_prompts, found.num_texts, found.num_captions) == (4, 5, 2)


def test_a_later_caption_that_equals_a_prompt_shares_its_text_row(
    tmp_path: Path, prompt_files: dict[str, Path]
) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    plan(tmp_path / "cache", source, **prompt_files)
    write_table_corpus(tmp_path / "corpus", [*lines("a"), *lines("b", captions=["dog 3"])])
    assert plan(tmp_path / "cache", source).findings.num_texts == 0
    assert frame(tmp_path / "cache", "captions")["text_row"].to_list() == [0, 2]
    assert texts(tmp_path / "cache")[2] == "dog 3"


def test_prompts_of_the_corpus_s_own_labels_come_sorted(tmp_path: Path) -> None:
    for name in ("zebra", "ant"):
        write_folder_corpus(tmp_path / "corpus" / name, 2, captions=0)
    (tmp_path / "templates.txt").write_text("the {}")
    plan(tmp_path / "cache", tmp_path / "corpus", templates=tmp_path / "templates.txt")
    assert [line[0] for line in prompts(tmp_path / "cache")] == ["the ant", "the zebra"]


@pytest.mark.parametrize(
    ("own", "of_prompts", "unprompted", "is_noted"),
    [
        pytest.param(["0", "1"], ["0", "1"], [], True, id="places in the list"),
        pytest.param(["1", "1"], ["0", "1"], [], True, id="some of the places"),
        pytest.param(["1", "2"], ["dog", "cat"], ["1", "2"], False, id="counted from 1"),
        pytest.param(["dog", "1"], ["dog", "cat"], ["1"], False, id="names and numbers"),
        pytest.param(["dog", "cat"], ["dog", "cat"], [], False, id="names"),
        pytest.param(["01", "00"], ["dog", "cat"], ["00", "01"], False, id="no plain numbers"),
    ],
)
def test_labels_that_are_numbers_are_places_in_the_list_of_names_or_are_told_of(
    tmp_path: Path, own: list[str], of_prompts: list[str], unprompted: list[str], is_noted: bool
) -> None:
    rows = [{"image": f"{i}.jpg", "label": label} for i, label in enumerate(own)]
    source = write_table_corpus(tmp_path / "corpus", rows)
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    (tmp_path / "templates.txt").write_text("a {}\n")
    settings = {"labels": tmp_path / "names.txt", "templates": tmp_path / "templates.txt"}
    findings = plan(tmp_path / "cache", source, **settings).findings
    found = frame(tmp_path / "cache", "prompts").sort("text_row")
    assert found["label"].to_list() == of_prompts
    assert list(texts(tmp_path / "cache").values())[-2:] == ["a dog", "a cat"]
    assert findings.unprompted == unprompted
    said = "\n".join(finding_lines(findings, "info"))
    assert ("0 is 'dog', 1 is 'cat'" in said) == is_noted
    assert ("of the corpus without a prompt" in said) == bool(unprompted)


def test_a_list_of_names_may_repeat_one_where_labels_are_places_in_it(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("crane\nowl\ncrane\ndog\n")
    (tmp_path / "templates.txt").write_text("a {}\n")
    settings = {"labels": tmp_path / "names.txt", "templates": tmp_path / "templates.txt"}
    rows = [{"image": f"{i}.jpg", "label": i} for i in range(4)]
    source = write_table_corpus(tmp_path / "numbers", rows)
    findings = plan(tmp_path / "cache", source, **settings).findings
    assert [line[:2] for line in prompts(tmp_path / "cache")] == [
        ("a crane", "0"),
        ("a owl", "1"),
        ("a crane", "2"),
        ("a dog", "3"),
    ]
    assert "0 is 'crane', 3 is 'dog'" in "\n".join(finding_lines(findings, "info"))
    source = write_table_corpus(tmp_path / "names", [{"image": "0.jpg", "label": "crane"}])
    assert_refused(
        tmp_path / "other",
        source,
        **settings,
        match="label 'crane' is there twice",
        error=SourceError,
    )


def test_templates_for_a_corpus_without_labels_are_refused(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    (tmp_path / "templates.txt").write_text("the {}")
    assert_refused(
        tmp_path / "cache",
        source,
        templates=tmp_path / "templates.txt",
        match=r"templates.txt were given, but the corpus has no labels; give .* with --labels FILE",
    )


def test_prompts_can_be_appended_and_are_not_doubled(
    tmp_path: Path, prompt_files: dict[str, Path]
) -> None:
    cache = tmp_path / "cache"
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    plan(cache, source)
    assert plan(cache, source, **prompt_files).findings.num_prompts == 4
    first = prompts(cache)
    assert not plan(cache, source, **prompt_files).was_scanned
    assert not plan(cache, source).was_scanned, "prompts left out are as recorded"
    prompt_files["templates"].write_text("a photo of a {}\n{} 3\nno {}\n")
    assert plan(cache, source, **prompt_files).findings.num_prompts == 2
    assert prompts(cache)[:4] == first
    assert [line[0] for line in prompts(cache)[4:]] == ["no dog", "no cat"]
    assert frame(cache, "prompts")["text_row"].is_unique().all()


def test_prompts_keep_the_language_of_their_template(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    (tmp_path / "labels.json").write_text(json.dumps({"dog": {"en": "dog", "de": "Hund"}}))
    (tmp_path / "templates.json").write_text(json.dumps({"de": ["ein {}"], "en": ["a {}"]}))
    plan(
        tmp_path / "cache",
        source,
        labels=tmp_path / "labels.json",
        templates=tmp_path / "templates.json",
    )
    assert prompts(tmp_path / "cache") == [
        ("ein Hund", "dog", "ein {}", "de"),
        ("a dog", "dog", "a {}", "en"),
    ]


def test_a_prompt_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    assert_refused(
        tmp_path / "cache",
        source,
        templates=tmp_path / "none.txt",
        error=SourceError,
        match="none.txt cannot be read: No such file",
    )


# --- what cannot be read ---------------------------------------------------------------------


def test_problems_are_kept_once_and_the_first_few_shown(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    with source.open("a") as table:
        table.write("not json\n" + '{"image": "b.png", "key": "b", "captions": [7]}\n' * 1)
    found = plan(cache, source).findings
    problems = frame(cache, "problems").rows()
    assert found.num_problems == 2
    assert [(name, place, key) for name, place, key, _ in problems] == [
        ("", f"{source} line 2", None),
        ("", f"{source} line 3", "b"),
    ]
    assert problems[1][3] == "a caption is a number, expected text"
    assert found.problems == [f"{place}: {reason}" for _, place, _, reason in problems]
    with source.open("a") as table:
        table.write("[]\n" * 7)
    found = plan(cache, source).findings
    assert (found.num_problems, len(found.problems)) == (7, 5)
    assert frame(cache, "problems").height == 9


def test_file_names_that_are_not_utf8_become_problems(tmp_path: Path) -> None:
    root = write_folder_corpus(tmp_path / "corpus", 2)
    os.rename(os.fsencode(root / "img000.png"), os.fsencode(root) + b"/b\xffd.png")
    found = plan(tmp_path / "cache", root).findings
    assert list(keys(tmp_path / "cache").values()) == ["img001"]
    [problem] = found.problems
    assert problem.startswith(f"{root}/b\\xffd.png: ")
    assert "not UTF-8" in problem


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_a_corpus_in_a_folder_whose_name_is_not_utf8_can_be_planned(
    tmp_path: Path, kind: str
) -> None:
    root = tmp_path / os.fsdecode(b"c\xff")
    source = (
        write_folder_corpus(root, 2)
        if kind == "folder"
        else write_table_corpus(root, [*lines("a", "b"), {"image": "", "key": "c"}])
    )
    plan(tmp_path / "cache", source)
    cache = open_cache(tmp_path / "cache")
    assert cache.num_samples == 2
    assert cache.corpus_root("") == root
    assert frame(tmp_path / "cache", "problems").height == (kind == "table")
    assert not plan(tmp_path / "cache", source).was_scanned


class OddSource:
    """A source whose second sample has a label that UTF-8 cannot write."""

    location = root = Path("/corpus")

    def scan(self) -> list[Sample]:
        good = Sample(key="a", path="a.png", place="/corpus/a.png")
        return [good, replace(good, key="b", label="\udcff")]


def test_a_sample_whose_names_cannot_be_written_is_a_problem_of_any_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_folder_corpus(tmp_path / "corpus", 1)
    monkeypatch.setattr(type(plan_source(source)), "_scan", lambda self: OddSource().scan())
    found = plan(tmp_path / "cache", source).findings
    assert found.num_samples == 1
    assert found.problems == ["/corpus/a.png: its name is not valid UTF-8; rename the file"]


def plan_source(path: Path) -> Any:
    from siglip2_cache.precompute.sources import open_source

    return open_source(path)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "table.jsonl").write_text('{"image": ""}\n')
    cache = tmp_path / "cache"
    assert_refused(cache, tmp_path / "empty", match="holds no images", error=SourceError)
    assert_refused(
        cache,
        tmp_path / "table.jsonl",
        match=r"no images in .*table.jsonl \(.*table.jsonl line 1: the image path is empty\)",
        error=SourceError,
    )
    assert_refused(cache, tmp_path / "no", match="there is no .*/no; expected", error=SourceError)
    assert not cache.exists()


# --- where it is written ---------------------------------------------------------------------


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    assert_refused(
        tmp_path / "home",
        source,
        match=r"home is not empty and is not a cache \(it holds thesis.tex\); name an empty or a new",
    )
    assert_refused(tmp_path / "corpus", source, match="is not a cache")
    with pytest.raises(SettingError, match=r"captions.jsonl is a file; name a folder"):
        plan(source, source)


def test_an_empty_folder_and_one_of_an_unfinished_plan_are_taken(tmp_path: Path) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a"))
    (tmp_path / "cache" / "catalog").mkdir(parents=True)
    (tmp_path / "cache" / ".nfs0001").write_text("")
    (tmp_path / "cache" / "catalog" / "texts-00000.parquet.cache.0123456789ab.partial").touch()
    plan(tmp_path / "cache", source)
    assert keys(tmp_path / "cache") == {0: "a"}


@pytest.mark.parametrize("num_views", [1, 3])
def test_a_dry_run_writes_nothing_and_counts_the_bytes_of_the_build_to_come(
    tmp_path: Path, tiny_checkpoint: Path, num_views: int
) -> None:
    cache, space = tmp_path / "cache", tmp_path / "space"
    space.mkdir()
    for num_images in (5, 9):
        corpus = write_folder_corpus(tmp_path / "corpus", num_images, captions=2)
        before = tree_of(cache)
        scratch = partial(Scratch, bucket_rows=3, memory_limit_bytes=1, folder=space)
        settings = {"shard_rows": 4, "num_views": num_views}
        dry = plan(cache, corpus, is_dry_run=True, scratch=scratch, **settings)
        config = config_of(corpus, cache, tiny_checkpoint, **settings)
        expected = dry_run(config, is_timed=False)
        assert tree_of(cache) == before
        assert cache.exists() == bool(before)
        assert list(space.iterdir()) == []

        build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
        written = {path: data for path, data in tree_of(cache).items() if path not in before}
        catalog = [data for path, data in written.items() if path.endswith(".parquet")]
        in_catalog = [data for path, data in written.items() if path.startswith("catalog/")]
        num_catalog_bytes = sum(len(data) for data in in_catalog if data in catalog)
        assert dry.num_catalog_bytes == expected.num_catalog_bytes == num_catalog_bytes
        assert dry.findings.num_samples == expected.num_images == (5 if num_images == 5 else 4)
        shards = [data for path, data in written.items() if "/c/" in path]
        num_shard_bytes = sum(map(len, shards))
        assert expected.num_target_bytes - 44 * expected.num_images == num_shard_bytes
        assert sum(expected.num_units.values()) == len(shards)


def test_a_plan_that_fails_leaves_no_scratch_and_no_partial_files(tmp_path: Path) -> None:
    (tmp_path / "space").mkdir()
    scratch = partial(Scratch, bucket_rows=3, memory_limit_bytes=1, folder=tmp_path / "space")
    source = write_table_corpus(tmp_path / "corpus", lines("a", "b", "c", "d"))
    copied = {**lines("a")[0], "image": "copy.png"}
    source = write_table_corpus(tmp_path / "corpus", [*lines("a", "b", "c", "d"), copied])
    assert_refused(
        tmp_path / "cache", source, match="given twice", error=DuplicateKeyError, scratch=scratch
    )
    assert list((tmp_path / "space").iterdir()) == []


def test_of_two_plans_at_once_the_second_adopts_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_table_corpus(tmp_path / "corpus", lines("a", "b"))
    do_freeze = freeze.Freezer.freeze

    def freeze_late(self: freeze.Freezer) -> Any:
        monkeypatch.setattr(freeze.Freezer, "freeze", do_freeze)
        plan(tmp_path / "cache", source, shard_rows=8)
        return do_freeze(self)

    monkeypatch.setattr(freeze.Freezer, "freeze", freeze_late)
    found = plan(tmp_path / "cache", source, shard_rows=8)
    assert not found.was_scanned
    assert keys(tmp_path / "cache") == {0: "a", 1: "b"}
    assert not [p for p in tree_of(tmp_path / "cache") if p.endswith((".partial", ".intent"))]


def test_another_path_to_a_known_corpus_is_that_corpus(tmp_path: Path) -> None:
    table = write_table_corpus(tmp_path / "corpus", lines("a", "b"))
    plan(tmp_path / "cache", table)
    (tmp_path / "link").symlink_to(tmp_path / "corpus")
    before = tree_of(tmp_path / "cache")
    assert not plan(tmp_path / "cache", tmp_path / "link" / table.name).was_scanned
    assert tree_of(tmp_path / "cache") == before


def test_a_corpus_that_moved_below_its_old_place_is_moved_once(tmp_path: Path) -> None:
    table = write_table_corpus(tmp_path / "corpus", lines("a", "b"))
    plan(tmp_path / "cache", table)
    (tmp_path / "aside").mkdir()
    (tmp_path / "corpus").rename(tmp_path / "aside" / "moved")
    (tmp_path / "aside").rename(tmp_path / "corpus")
    moved = tmp_path / "corpus" / "moved"
    roots = {str(tmp_path / "corpus"): str(moved)}
    for _ in range(2):
        plan(tmp_path / "cache", moved / table.name, corpus_roots=roots)
        assert open_cache(tmp_path / "cache", corpus_roots=roots).corpus_root("") == moved
    assert keys(tmp_path / "cache") == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "b.png"}, "image 'a.png' and now has 'b.png'"),
        ({"label": "dog"}, "label 'cat' and now has 'dog'"),
    ],
)
def test_a_known_key_that_names_another_image_or_label_is_refused(
    tmp_path: Path, change: Line, message: str
) -> None:
    known = lines("a", "b", label="cat")
    table = write_table_corpus(tmp_path / "corpus", known)
    plan(tmp_path / "cache", table)
    write_table_corpus(tmp_path / "corpus", [{**known[0], **change}, *lines("b", "c", label="cat")])
    assert_refused(
        tmp_path / "cache", table, match=rf"\(location or label of 1: 'a' had {message}\); "
    )


def test_a_corpus_that_moved_above_its_old_place_is_found(tmp_path: Path) -> None:
    roots = {str(tmp_path / "disk" / "old"): str(tmp_path / "disk")}
    assert relocate(str(tmp_path / "disk/old/coco"), roots) == tmp_path / "disk" / "coco"


def test_arrays_that_grow_are_never_set_back_by_an_intent_left_behind(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    config = config_of(corpus, cache, tiny_checkpoint, shard_rows=4)

    def run() -> None:
        build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())

    write_folder_corpus(corpus, 3)
    run()
    write_folder_corpus(corpus, 3, first=3)
    [teacher] = open_cache(cache).teachers
    growth = layout.arrays_record(teacher, 1)

    def die_before_the_growth_is_published(files: LocalStorage, record: str) -> bool:
        if record == growth:
            raise KeyboardInterrupt
        return roll_forward(files, record)

    with monkeypatch.context() as dying:
        dying.setattr(transaction, "roll_forward", die_before_the_growth_is_published)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert LocalStorage(cache).exists(f"{growth}.intent")
    write_folder_corpus(corpus, 3, first=6)
    run()
    opened = open_cache(cache)
    assert verify_cache(opened).faults == []
    shape = json.loads(opened.files.read(layout.array_metadata(teacher, "image")))["shape"]
    assert shape == list(opened.image_targets().shape)


# -- shards


def write_shards(folder: Path, *numbers: int) -> None:
    """Write NNN.tar with one sample each."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        with tarfile.open(folder / f"{number:03d}.tar", "w") as tar:
            for name, data in (("jpg", b"no picture"), ("txt", f"text {number}".encode())):
                member = tarfile.TarInfo(f"k{number}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def pack_folder(path: Path, *numbers: int) -> Path:
    """Write a tar as ``tar -C FOLDER .`` does: with ./ before each name."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            tar.addfile(tarfile.TarInfo(f"./x/k{number}.jpg"))
    return path


def test_names_that_tar_begins_with_a_dot_give_keys_without_it(tmp_path: Path) -> None:
    plan(tmp_path / "cache", pack_folder(tmp_path / "a.tar", 0))
    samples = frame(tmp_path / "cache", "samples")
    assert samples.select("key", "member").rows() == [("x/k0", "./x/k0.jpg")]
    plan(tmp_path / "cache", pack_folder(tmp_path / "a.tar", 0, 1))
    assert list(keys(tmp_path / "cache").values()) == ["x/k0", "x/k1"]


def test_a_source_planned_with_such_dots_in_its_keys_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pack_folder(tmp_path / "a.tar", 0)
    with monkeypatch.context() as before:
        before.setattr("siglip2_cache.precompute.planning.source_names.RULES", {})
        plan(tmp_path / "cache", source)
    found = plan(tmp_path / "cache", pack_folder(source, 0, 1)).findings
    assert (found.num_gone, list(keys(tmp_path / "cache").values())) == (0, ["./x/k0", "./x/k1"])


def test_a_pattern_that_the_shell_expanded_takes_a_shard_more_under_its_own_name(
    tmp_path: Path,
) -> None:
    write_shards(tmp_path / "shards", 0, 1)
    for number in (2, 3):
        plan(tmp_path / "cache", *sorted((tmp_path / "shards").iterdir()))
        write_shards(tmp_path / "shards", number)
    plan(tmp_path / "cache", tmp_path / "shards" / "003.tar")  # alone
    assert list(keys(tmp_path / "cache").values()) == ["000/k0", "001/k1", "002/k2", "003/k3"]


def test_a_pattern_after_files_named_one_by_one_is_told_to_go_on_so(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 0, 1)
    plan(tmp_path / "cache", *sorted((tmp_path / "shards").iterdir()))
    match = r"\*\.tar is new .*000\.tar of the same folder; name the files one by one as before"
    assert_refused(tmp_path / "cache", tmp_path / "shards" / "*.tar", match=match)


@pytest.mark.parametrize("other", ["{000..002}.tar", "*.tar", "002.tar", ""])
def test_a_pattern_that_grew_is_not_taken_for_another_corpus(tmp_path: Path, other: str) -> None:
    write_shards(tmp_path / "shards", 0, 1)
    old, new = tmp_path / "shards" / "{000..001}.tar", tmp_path / "shards" / other
    plan(tmp_path / "cache", old)
    write_shards(tmp_path / "shards", 2)
    with pytest.raises(
        SettingError,
        match=rf"{re.escape(str(new))} is new to the cache, which has {re.escape(str(old))} of the same "
        rf"folder; .* use --corpus-root '{re.escape(str(old))}={re.escape(str(new))}'; .* NAME=",
    ):
        plan(tmp_path / "cache", new)
    roots = {str(old): str(new)}
    if other != "002.tar":
        for _ in range(2):  # the second time the cache knows
            plan(tmp_path / "cache", new, corpus_roots=roots)
            roots = {}
        assert list(keys(tmp_path / "cache").values()) == ["k0", "k1", "k2"]
    else:
        plan(tmp_path / "cache", f"more={new}")
        assert list(keys(tmp_path / "cache").values()) == ["k0", "k1", "more/k2"]


def test_a_folder_that_became_another_kind_of_corpus_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 0)
    plan(tmp_path / "cache", tmp_path / "shards")
    draw_image(0).save(tmp_path / "shards" / "preview.png")
    with pytest.raises(
        SettingError,
        match=r"shards was planned as webdataset and now looks like folder, which would",
    ):
        plan(tmp_path / "cache", tmp_path / "shards")
    (tmp_path / "shards" / "preview.png").unlink()
    assert not plan(tmp_path / "cache", tmp_path / "shards").was_scanned
