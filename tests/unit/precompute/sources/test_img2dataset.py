"""What img2dataset wrote: tests/data/img2dataset is its own output, of six links in two shards."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.privileges import open_folder, unprivileged

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.sources.fields.columns import TableColumns
from siglip2_cache.precompute.sources.folder import FolderSource
from siglip2_cache.precompute.sources.img2dataset import Img2datasetFiles
from siglip2_cache.precompute.sources.open import open_source
from siglip2_cache.precompute.sources.samples import Problem, Sample, Unused
from siglip2_cache.precompute.sources.webdataset import WebDatasetSource
from siglip2_cache.store.io.local import LocalStorage

WRITTEN = Path(__file__).parents[3] / "data/img2dataset"
FORMATS = ["webdataset", "files"]
KEYS = ["000000", "000001", "000010", "000011", "000012"]  # 000002 could not be downloaded
FAILED = "1 of 3 rows were not downloaded: HTTP Error 404: File not found"


@pytest.fixture(params=FORMATS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what img2dataset wrote in one of two formats."""
    return Path(shutil.copytree(WRITTEN / request.param, tmp_path / request.param))


def entries_of(location: Path) -> tuple[list[Sample], list[Problem]]:
    entries = list(open_source(location).scan())
    samples = [entry for entry in entries if isinstance(entry, Sample)]
    return samples, [entry for entry in entries if isinstance(entry, Problem)]


def keys_of(location: Path) -> list[str]:
    return [sample.key for sample in entries_of(location)[0]]


def problems_of(location: Path) -> list[tuple[str, str]]:
    """Place below the folder and reason."""
    return [(p.place.removeprefix(f"{location}/"), p.reason) for p in entries_of(location)[1]]


def bytes_of(root: Path, sample: Sample) -> bytes:
    place = ImageLocation(
        path=root / sample.path,
        member=sample.member,
        offset=sample.offset,
        length=sample.length,
    )
    return read_image_bytes(place)


def write_records(path: Path, rows: list[tuple[str, str | None]]) -> None:
    pq.write_table(
        pa.table({"status": [r[0] for r in rows], "error_message": [r[1] for r in rows]}), path
    )


def test_both_formats_give_the_same_samples_and_the_rows_that_failed() -> None:
    for form, kind in zip(FORMATS, (WebDatasetSource, Img2datasetFiles), strict=True):
        location = WRITTEN / form
        assert isinstance(open_source(location), kind)
        samples, _ = entries_of(location)
        assert [sample.key for sample in samples] == KEYS
        assert [[c.text for c in sample.captions] for sample in samples] == [
            [f"Drawing {i}\nof a disc"] for i in (0, 1, 3, 4, 5)
        ]
        assert {sample.label for sample in samples} == {None}
        assert problems_of(location) == [("00000.parquet", FAILED)]
    tars, files = (entries_of(WRITTEN / form)[0] for form in FORMATS)
    for in_tar, in_folder in zip(tars, files, strict=True):
        image = bytes_of(WRITTEN / "files", in_folder)
        assert bytes_of(WRITTEN / "webdataset", in_tar) == image
        assert in_tar.source_sha256 == in_folder.source_sha256
        assert in_tar.source_sha256 is not None
        # It is of the download, which was a PNG; what is stored is a JPEG.
        assert in_tar.source_sha256 != hashlib.sha256(image).digest()
        told = (WRITTEN / "files" / in_folder.path).with_suffix(".json")
        assert in_tar.source_sha256.hex() == json.loads(told.read_text())["sha256"]


def test_each_shard_is_a_piece(written: Path) -> None:
    names = [piece.name.removesuffix(".tar") for piece in open_source(written).parts()]
    assert names == ["00000", "00001"]


def test_a_shard_without_stats_is_skipped_by_name(written: Path) -> None:
    before = open_source(written).fingerprint()
    (written / "00000_stats.json").unlink()
    assert keys_of(written) == KEYS[2:]
    [(place, reason)] = problems_of(written)
    assert place.removesuffix(".tar") == "00000"
    assert reason == (
        "img2dataset has not finished it, skipped (there is no 00000_stats.json; run img2dataset "
        f"again, or, if the shard is whole: touch {written}/00000_stats.json)"
    )
    assert open_source(written).fingerprint() != before
    (written / "00000_stats.json").touch()
    assert keys_of(written) == KEYS


def test_a_shard_with_nothing_beside_it_is_unfinished_where_others_have_stats(
    written: Path,
) -> None:
    for path in written.glob("00001[._]*"):
        if path.suffix != ".tar":
            path.unlink()
    assert keys_of(written) == KEYS[:2]


def test_shards_whose_stats_were_all_left_out_count_by_their_records(written: Path) -> None:
    for path in written.glob("*_stats.json"):
        path.unlink()
    assert keys_of(written) == KEYS
    records = written / "00001.parquet"
    records.write_bytes(records.read_bytes()[:-100])  # img2dataset was killed while writing it
    assert keys_of(written) == KEYS[:2]
    assert problems_of(written)[-1][1] == (
        "img2dataset has not finished it, skipped (00001.parquet is cut; run img2dataset again, or, "
        f"if the shard is whole: rm {written}/00001.parquet)"
    )


def test_tars_that_were_handed_on_alone_are_a_plain_webdataset(tmp_path: Path) -> None:
    for name in ("00000.tar", "00001.tar"):
        shutil.copy(WRITTEN / "webdataset" / name, tmp_path)
    assert keys_of(tmp_path) == KEYS
    assert problems_of(tmp_path) == []


def test_one_tar_or_a_pattern_knows_what_lies_beside_it(tmp_path: Path) -> None:
    root = Path(shutil.copytree(WRITTEN / "webdataset", tmp_path / "w"))
    assert entries_of(root / "00000.tar")[1][0].reason == FAILED
    (root / "00001_stats.json").unlink()
    samples, problems = entries_of(root / "{00000..00002}.tar")
    assert [sample.key for sample in samples] == KEYS[:2]
    assert [(Path(p.place).name, p.reason.split(" (")[0]) for p in problems] == [
        ("00000.parquet", FAILED),
        ("00001.tar", "img2dataset has not finished it, skipped"),
        ("00002.tar", "no such file"),
    ]


def test_a_problem_names_each_reason_once_with_its_count(written: Path) -> None:
    rows = [("failed_to_download", "timed out")] * 3 + [("success", None)] * 2
    rows += [("failed_to_resize", "bad\n  image"), ("failed_to_download", None)]
    write_records(written / "00000.parquet", rows)
    assert problems_of(written) == [
        ("00000.parquet", "3 of 7 rows were not downloaded: timed out"),
        ("00000.parquet", "1 of 7 rows were not decoded or resized: bad image"),
        ("00000.parquet", "1 of 7 rows were not downloaded: no reason given"),
    ]


def test_very_many_different_reasons_end_in_a_count(written: Path) -> None:
    write_records(
        written / "00000.parquet", [("failed_to_download", f"{i:03d}" * 200) for i in range(100)]
    )
    problems = problems_of(written)
    assert len(problems) == 21
    assert problems[-1][1] == "80 of 100 rows failed for 80 other reasons"
    assert max(len(reason) for _, reason in problems) < 300


def test_records_that_are_damaged_are_a_problem_and_the_images_are_used(written: Path) -> None:
    (written / "00000.parquet").write_bytes(b"PAR1 what is this PAR1")
    assert keys_of(written) == KEYS
    [(place, reason)] = problems_of(written)
    assert place == "00000.parquet"
    assert reason.startswith("the record of its downloads cannot be read (")


def test_a_table_of_other_columns_beside_a_shard_is_none_of_ours(written: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), written / "00000.parquet")
    assert problems_of(written) == []


def test_a_changed_record_changes_the_fingerprint_of_its_piece_alone(written: Path) -> None:
    before = [piece.fingerprint for piece in open_source(written).parts()]
    write_records(written / "00001.parquet", [("success", None)])
    after = [piece.fingerprint for piece in open_source(written).parts()]
    assert before[0] == after[0]
    assert before[1] != after[1]


# -- the format "files"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WRITTEN / "files", tmp_path / "files"))


def test_an_edited_text_changes_the_fingerprint_of_files(files: Path) -> None:
    before = open_source(files).fingerprint()
    (files / "00000/000001.json").write_text('{"caption": "another"}')
    assert open_source(files).fingerprint() != before
    assert entries_of(files)[0][1].captions[0].text == "another"


def test_a_txt_counts_where_there_is_no_json_and_a_whole_txt_is_one_caption(files: Path) -> None:
    (files / "00000/000000.json").unlink()
    (files / "00000/000000.txt").write_text("other\ntext")
    sample = entries_of(files)[0][0]
    assert [caption.text for caption in sample.captions] == ["other\ntext"]
    assert sample.source_sha256 is None


def test_a_shard_folder_that_may_not_be_read_is_a_problem() -> None:
    with open_folder() as root:
        files = Path(shutil.copytree(WRITTEN / "files", root / "files"))
        (files / "00000").chmod(0)
        with unprivileged(root):
            assert keys_of(files) == KEYS[2:]
            assert problems_of(files) == [
                ("00000", "the folder cannot be read (Permission denied)")
            ]


def test_caption_endings_are_chosen_as_in_any_folder(files: Path) -> None:
    (files / "00000/000000.blip.txt").write_text("a blip caption")
    source = open_source(files, caption_endings=("blip.txt",))
    samples = [item for item in source.scan() if isinstance(item, Sample)]
    assert [c.text for c in samples[0].captions] == ["a blip caption"]
    assert [sample.captions for sample in samples[1:]] == [()] * 4
    assert source.settings == {"caption_endings": ["blip.txt"]}
    notes = {item.reason for item in source.scan() if isinstance(item, Unused)}
    assert "files ending in .txt that hold text, beside images" in notes


def test_texts_without_a_letter_are_no_captions(files: Path) -> None:
    (files / "00000/000000.txt").write_text("0 0.5 0.5 0.1 0.1")
    (files / "00000/000000.json").unlink()
    items = list(open_source(files).scan())
    assert next(s for s in items if isinstance(s, Sample)).captions == ()
    [note] = [n for n in items if isinstance(n, Unused)]
    reason = "files ending in .txt without a letter, such as labels of YOLO"
    assert (note.place, note.count, note.reason) == (f"{files}/00000/000000.txt", 1, reason)


def test_what_is_wrong_with_files_is_named(files: Path) -> None:
    (files / "00000/000000.jpg").unlink()
    (files / "00000/000001.json").write_text("{")
    (files / "00001/notes").touch()
    (files / "more").mkdir()
    (files / "more/x").touch()
    (files / "_tmp").mkdir()
    found = [(place, reason.split(" (")[0]) for place, reason in problems_of(files)]
    assert found == [
        (
            str(files),
            "its sub-folders more are not read, because there are shards beside them; give each as a "
            "separate source",
        ),
        ("00000/000001.json", "malformed JSON"),
        ("00000/000000.json", "there is no image to it"),
        ("00000/000000.txt", "there is no image to it"),
        ("00000.parquet", FAILED),
        ("00001/notes", "files without an ending, not read as images"),
    ]


def test_files_that_another_of_the_sample_stands_before_are_told(files: Path) -> None:
    shard = files / "00001"
    for name in ("000010.JPG", "000010.png", "000010.JSON", "000010.txt", "000010.notes"):
        (shard / name).write_bytes(b"x")
    for i in range(6):
        for ending in ("jpeg", "webp"):
            (shard / f"x{i}.{ending}").write_bytes(b"x")
    taken = [Path(sample.path).name for sample in entries_of(files)[0]]
    assert taken == [f"{key}.jpg" for key in KEYS] + [f"x{i}.jpeg" for i in range(6)]
    image, text = "a second image of its sample, not used", "a second .json of its sample, not used"
    assert problems_of(files)[1:] == [
        ("00001/000010.JPG", image),
        ("00001/000010.png", image),
        ("00001/x0.webp", image),
        ("00001/000010.JSON", text),
        ("00001", f"5 more: {image}"),
    ]


def test_a_cache_in_the_corpus_is_not_named_and_adds_no_generation(written: Path) -> None:
    config = PlanConfig(sources=(str(written),))
    cache = LocalStorage(written / "cache")
    problems = problems_of(written)
    assert make_plan(config, cache).was_scanned
    told = open_cache(written / "cache").table("problems").collect()["reason"].to_list()
    assert told == [reason for _, reason in problems] == [FAILED]
    assert not make_plan(config, cache).was_scanned
    assert problems_of(written) == problems


@pytest.mark.parametrize("beside", [["00007.parquet", "00008_stats.json"], ["00001.parquet"], []])
def test_a_folder_of_numbered_classes_is_an_ordinary_folder(
    tmp_path: Path, beside: list[str]
) -> None:
    for i in range(3):
        (tmp_path / f"{i:05d}").mkdir()
        (tmp_path / f"{i:05d}/a.jpg").write_bytes(b"j")
    for name in beside:
        (tmp_path / name).touch()
    assert isinstance(open_source(tmp_path), FolderSource)
    assert {sample.label for sample in entries_of(tmp_path)[0]} == {"00000", "00001", "00002"}


def test_columns_are_refused_for_files(files: Path) -> None:
    with pytest.raises(SettingError, match="columns are for tables"):
        open_source(files, columns=TableColumns(key="id"))
