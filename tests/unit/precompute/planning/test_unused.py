"""What a corpus holds that a plan did not use: counted over all pieces, said, and kept in the cache."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from siglip2_cache import open_cache
from siglip2_cache.precompute.planning import source_names
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.findings import Findings, finding_lines
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.planning.unused import _MAX_KINDS
from siglip2_cache.precompute.sources import Caption, CorpusPart, Problem, Sample, Unused
from siglip2_cache.store.describe import describe, describe_lines
from siglip2_cache.store.format.corpus_notes import Note
from siglip2_cache.store.format.records import decode_record, encode_record
from siglip2_cache.store.io.local import LocalStorage

HEIC = "files ending in .heic, not read as images"


def unused(count: int, place: str, what: str = HEIC) -> Unused:
    return Unused(place=place, reason=what, count=count, remedy="convert them to JPEG")


@dataclass(frozen=True)
class Shelf:
    """A source of pieces that are lists."""

    location: Path
    items: tuple[tuple[Sample | Problem, ...], ...]
    kind: str = "folder"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.location

    def fingerprint(self) -> str:
        return str(self.items)

    def parts(self) -> Iterator[CorpusPart]:
        for number, items in enumerate(self.items):
            yield CorpusPart(str(number), lambda items=items: iter(items))


def sample(key: str, *captions: str) -> Sample:
    return Sample(key=key, path=key, place=key, captions=tuple(Caption(c) for c in captions))


def plan_shelf(
    monkeypatch: pytest.MonkeyPatch, cache: Path, *items: tuple[Sample | Problem, ...], **dry: bool
) -> Findings:
    shelf = Shelf(cache.parent / "shelf", items)
    monkeypatch.setattr(source_names, "open_source", lambda *_, **__: shelf)
    return make_plan(PlanConfig(sources=("shelf",)), LocalStorage(cache), **dry).findings


def test_what_several_pieces_do_not_use_is_one_note_with_the_sum_and_the_first_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pieces = (sample("a", "dog"), unused(2, "x.heic")), (unused(5, "y.heic"), unused(1, "z", "odd"))
    found = plan_shelf(monkeypatch, tmp_path / "c", *pieces)
    assert [note.line() for note in found.notes] == [
        f"{HEIC}: 7, first x.heic; convert them to JPEG",
        "odd: 1, first z; convert them to JPEG",
    ]
    assert found.num_problems == 0


def test_notes_are_said_by_a_dry_run_and_by_a_build_and_kept_for_info(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pieces = ((sample("a"), sample("b"), unused(3, "x.heic")),)
    dry = plan_shelf(monkeypatch, tmp_path / "c", *pieces, is_dry_run=True)
    built = plan_shelf(monkeypatch, tmp_path / "c", *pieces)
    assert dry.notes == built.notes
    said = [line for line in finding_lines(built, "see") if line.startswith("note")]
    assert said[0].startswith(
        "note       images without a caption, which is all of them: 2; looked"
    )
    assert said[1] == f"note       {HEIC}: 3, first x.heic; convert them to JPEG"
    found = describe(open_cache(tmp_path / "c"))
    assert [line for line in describe_lines(found) if line.startswith("note")] == said
    assert found["notes"][1]["count"] == 3


def test_a_note_of_a_name_that_no_record_can_hold_leaves_a_cache_that_opens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = [
        Unused(place=f"{name}1", reason=f"a{name}2", count=1, remedy=f"{name}3")
        for name in ("\0", "\ud800")
    ]
    plan_shelf(monkeypatch, tmp_path / "c", (sample("a", "dog"), *odd))
    assert [note.line() for note in open_cache(tmp_path / "c").manifest.latest.notes] == [
        r"a\02: 1, first \01; \03",
        r"a\ud8002: 1, first \ud8001; \ud8003",
    ]


def test_a_note_with_nul_of_an_earlier_release_makes_no_cache_damaged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan_shelf(monkeypatch, tmp_path / "c", (sample("a", "dog"), unused(3, "x.heic")))
    record = tmp_path / "c/cache.json"
    fields = decode_record(record.read_bytes(), where="")
    fields["notes"][0]["remedy"] = "--caption-column 'a\0'"
    record.write_bytes(encode_record(fields))
    [note] = open_cache(tmp_path / "c").manifest.latest.notes
    assert note.remedy == r"--caption-column 'a\0'"


def test_a_later_plan_says_anew_what_it_finds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan_shelf(monkeypatch, tmp_path / "c", (sample("a", "dog"), unused(3, "x.heic")))
    plan_shelf(monkeypatch, tmp_path / "c", (sample("a", "dog"), sample("b", "cat")))
    assert open_cache(tmp_path / "c").manifest.latest.notes == ()


def test_images_that_lack_what_others_have_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items = (
        replace(sample("a", "dog"), label="dog"),
        sample("b"),
        replace(sample("c"), label="cat"),
        sample("d", "fish"),
    )
    found = plan_shelf(monkeypatch, tmp_path / "c", items[:3], items[3:])
    assert [note.line() for note in found.notes] == [
        "images without a caption, where others have one: 2, first b; they are embedded without a text",
        "images without a label, where others have one: 2, first b; zero-shot evaluation leaves them out",
    ]


def test_a_source_without_any_label_has_no_note_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = plan_shelf(monkeypatch, tmp_path / "c", (sample("a", "dog"), sample("b", "cat")))
    assert found.notes == []


def test_kinds_without_end_do_not_fill_the_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    many = tuple(unused(1, "x", f"files ending in .{i}") for i in range(1000))
    found = plan_shelf(monkeypatch, tmp_path / "c", (sample("a", "dog"), *many))
    assert len(found.notes) == _MAX_KINDS  # pyright: ignore[reportPrivateUsage]
    lines = finding_lines(found, "info lists them")
    assert lines[-1].endswith("more notes: info lists them")
    assert len(lines) < 10


def test_a_long_place_is_cut_at_its_start() -> None:
    note = Note(source="s", what="files", count=1, first="/long" * 40 + "/x.heic", remedy="do")
    assert note.line().startswith("s: files: 1, first ...")
    assert note.line().endswith("/x.heic; do")
    assert len(note.line()) < 130
