"""int8 targets from end to end: build, retry, append, convert, and everything that reads a cache."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from kit.commands import error_line
from kit.fakes import FakeTeacher, SilentProgress, config_of, tree_of, write_folder_corpus
from kit.trainings import metrics_of, train_of

from siglip2_cache import open_cache
from siglip2_cache.errors import BuildError, SettingError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.dry_run import dry_run, dry_run_lines
from siglip2_cache.store.convert import convert_cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.verify.verify import verify_cache

Command = Callable[..., tuple[int, str, str]]


class Said(SilentProgress):
    """Keeps the lines that a build prints."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@dataclass(frozen=True)
class Made:
    corpus: Path
    teacher: Path
    float16: Path
    int8: Path


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One corpus of 24 images in two caches, by a real small teacher."""
    folder = tmp_path_factory.mktemp("int8")
    corpus = write_folder_corpus(folder / "corpus", 24, captions=2)
    for targets in ("float16", "int8"):
        config = config_of(
            corpus,
            folder / targets,
            tiny_checkpoint,
            shard_rows=8,
            num_views=2,
            batch_size=8,
            targets=targets,
            targets_budget=0.01,
            keep_pixels=64,
        )
        build(config, progress=SilentProgress())
    return Made(corpus, tiny_checkpoint, folder / "float16", folder / "int8")


def test_a_build_measures_stores_and_says_what_int8_changes(made: Made, command: Command) -> None:
    status, out, err = command("info", made.int8, "--json")
    assert (status, err) == (0, "")
    teacher = json.loads(out)["teachers"]["tiny"]
    assert teacher["targets"] == "int8"
    assert 0 < teacher["distortion"]["kl_share"] < 0.01
    assert teacher["distortion"]["num_images"] == teacher["distortion"]["num_texts"] == 24
    before = json.loads(command("info", made.float16, "--json")[1])["teachers"]["tiny"]
    assert (before["targets"], before["distortion"]) == ("float16", None)
    assert before["identity"] == teacher["identity"]
    status, out, _ = command("verify", made.int8, "--sample", 4, "--device", "cpu")
    assert (status, out.splitlines()[-1]) == (0, "verified: no fault")


def test_every_vector_is_that_of_float16_but_for_rounding(made: Made) -> None:
    exact, near = open_cache(made.float16), open_cache(made.int8)
    for modality, width in (("image", 2), ("text", 1)):
        ours, theirs = (c.targets(modality) for c in (near, exact))  # type: ignore[arg-type]
        rows = theirs.available_rows()
        assert ours.available_rows().tolist() == rows.tolist()
        for view in range(width):
            views = view if modality == "image" else None
            error = ours.read(rows, views).astype("f4") - theirs.read(rows, views)
            assert 0 < np.linalg.norm(error, axis=1).max() < 0.02


def test_a_conversion_writes_the_arrays_that_a_build_writes(made: Made, tmp_path: Path) -> None:
    convert_cache(open_cache(made.float16), tmp_path / "out", targets="int8", budget=0.01)
    built, converted = tree_of(made.int8), tree_of(tmp_path / "out")
    assert built.keys() == converted.keys()
    same = [path for path in built if "/commits/" not in path and not path.endswith("teacher.json")]
    assert [path for path in same if converted[path] != built[path]] == []
    config = config_of(made.corpus, tmp_path / "out", made.teacher)
    assert build(config, progress=SilentProgress()).num_units == 0  # it is that teacher's cache


def test_searches_reports_and_exports_read_it(made: Made, command: Command, tmp_path: Path) -> None:
    found: dict[str, list[str]] = {}
    for name, root in (("int8", made.int8), ("float16", made.float16)):
        assert command("index", root)[0] == 0
        status, out, err = command("neighbors", root, "--key", "img003", "-k", 3, "--json")
        assert status == 0, err
        [query] = json.loads(out)
        found[name] = [near["key"] for near in query["neighbors"]]
        for report in ("duplicates", "mismatched", "outliers"):
            assert command(report, root)[0] == 0
        files = tmp_path / name
        assert command("export", "embeddings", root, files, "--format", "npy")[0] == 0
    assert found["int8"] == found["float16"]
    assert command("verify", made.int8)[0] == 0


def test_a_student_learns_from_it_and_is_evaluated(
    made: Made, tiny_student: Path, one_thread: None, tmp_path: Path, command: Command
) -> None:
    losses: list[float] = []
    for name, cache in (("int8", made.int8), ("float16", made.float16)):
        train_of(cache, tiny_student, tmp_path / name, pixels="kept")
        losses.append(metrics_of(tmp_path / name)[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]
    model = tmp_path / "int8" / "model"
    status, _, err = command("eval", model, made.int8, "--decode-workers", 0, "--device", "cpu")
    assert (status, err) == (0, "")


def build_fake(corpus: Path, cache: Path, checkpoint: Path, **settings: object) -> Said:
    said = Said()
    config = config_of(corpus, cache, checkpoint, shard_rows=4, **settings)
    build(config, progress=said, make_teacher=lambda *_: FakeTeacher())
    return said


def test_retried_rows_join_others_that_keep_their_bytes_and_samples_are_appended(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus, root = write_folder_corpus(tmp_path / "corpus", 6), tmp_path / "cache"
    broken = corpus / "img001.png"
    good, stat = broken.read_bytes(), broken.stat()
    broken.write_bytes(good[: len(good) // 2])
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    build_fake(corpus, root, tiny_checkpoint, targets="int8", targets_budget=0.01)
    shard = root / layout.shard("tiny", "image", 0)
    before = np.frombuffer(shard.read_bytes()[: 4 * 68], np.int8).reshape(4, 68)
    assert not before[1].any()
    assert open_cache(root).image_targets().available([0, 1, 2]).tolist() == [True, False, True]
    broken.write_bytes(good)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    write_folder_corpus(corpus, 3, first=6)
    # What is recorded holds without the option.
    build_fake(corpus, root, tiny_checkpoint, retry_rejected=True, targets_budget=0.01)
    after = np.frombuffer(shard.read_bytes()[: 4 * 68], np.int8).reshape(4, 68)
    np.testing.assert_array_equal(after[[0, 2, 3]], before[[0, 2, 3]])
    assert after[1].any()
    cache = open_cache(root)
    assert verify_cache(cache).faults == []
    assert cache.image_targets().available_rows().tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10]
    write_folder_corpus(tmp_path / "whole", 6)
    build_fake(
        tmp_path / "whole", tmp_path / "once", tiny_checkpoint, targets="int8", targets_budget=1
    )
    assert shard.read_bytes() == (tmp_path / "once" / layout.shard("tiny", "image", 0)).read_bytes()


def test_a_build_says_the_change_and_refuses_one_above_the_budget(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 6)
    root = tmp_path / "cache"
    with pytest.raises(
        SettingError, match=r"int8 targets change the soft targets by .*0\.000 %; use"
    ):
        build_fake(corpus, root, tiny_checkpoint, targets="int8", targets_budget=1e-9)
    assert open_cache(root).teachers == ()
    # A unit that is much worse than the sample is refused too.
    with monkeypatch.context() as patch:
        patch.setattr("siglip2_cache.precompute.executor.unit.squared_error", lambda old, new: 1e3)
        with pytest.raises(BuildError, match=r"image unit 0 \(rows 0\.\.3\): int8 targets change"):
            build_fake(corpus, root, tiny_checkpoint, targets="int8", targets_budget=0.01)
    assert open_cache(root).commits().units == {}
    said = build_fake(corpus, root, tiny_checkpoint, targets_budget=0.01)
    assert open_cache(root).teacher().encoding.name == "int8"
    assert not any("soft targets" in line for line in said.lines)  # measured once
    said = build_fake(
        corpus, tmp_path / "new", tiny_checkpoint, targets="int8", targets_budget=0.01
    )
    [line] = [line for line in said.lines if "soft targets" in line]
    assert "(measured on 6 images and 6 texts)" in line


@pytest.mark.parametrize("num_captions", [0, 1])
def test_a_corpus_without_captions_or_readable_images_is_measured_on_what_there_is(
    tiny_checkpoint: Path, tmp_path: Path, num_captions: int
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 4, captions=num_captions)
    if num_captions:
        (corpus / "img002.png").write_bytes(b"no image")
    build_fake(corpus, tmp_path / "cache", tiny_checkpoint, targets="int8", targets_budget=1)
    found = open_cache(tmp_path / "cache").teacher().distortion
    assert found is not None
    assert (found.num_images, found.num_texts) == ((3, 3) if num_captions else (4, 0))
    assert found.kl_share > 0


def test_a_dry_run_counts_the_bytes_and_other_targets_are_refused(
    made: Made, tmp_path: Path, command: Command
) -> None:
    def bytes_of(targets: str | None, cache: Path) -> int:
        config = config_of(
            made.corpus, cache, made.teacher, targets=targets, num_views=2, shard_rows=8
        )
        found = dry_run(config, is_timed=False)
        if targets == "int8":
            assert "(64 x int8)" in "\n".join(dry_run_lines(found))
        return found.num_target_bytes

    images = 24 * (36 + 8)  # their table
    sizes = {t: bytes_of(t, tmp_path / "new") - images for t in ("float16", "int8", None)}
    assert sizes["float16"] == sizes[None]
    assert 0.5 < sizes["int8"] / sizes["float16"] < 0.58  # (64 + 4) / 128, and the same index
    with pytest.raises(
        SettingError, match=r"of .*int8 are int8, and --targets is float16; siglip2"
    ):
        bytes_of("float16", made.int8)
    for extra, message in (
        (("--targets", "int4"), "targets 'int4' is not one of float16, int8"),
        (("--targets-budget", "0"), "targets budget must be above 0 and at most 100 %, got 0 %"),
    ):
        given = ("build", made.corpus, tmp_path / "x", "--teacher", made.teacher, *extra)
        assert error_line(*command(*given)) == message


def test_convert_prints_the_sizes_and_what_changes(
    made: Made, tmp_path: Path, command: Command
) -> None:
    to_int8 = (
        "convert",
        made.float16,
        tmp_path / "out",
        "--targets",
        "int8",
        "--targets-budget",
        1,
    )
    status, out, err = command(*to_int8)
    assert status == 0, err
    assert out.splitlines()[0].startswith("converted  7 units; targets take ")
    assert out.splitlines()[1].startswith("tiny       int8 targets change the soft targets by 0.")
    status, out, _ = command(*to_int8, "--json")
    assert (status, json.loads(out)["num_units"]) == (0, 0)
    message = error_line(*command("convert", made.float16, made.int8, "--targets", "float16"))
    assert message.endswith("name another folder")
    refused = command("convert", tmp_path / "none", tmp_path / "new", "--targets", "int8")
    assert error_line(*refused).startswith("no cache at ")


def test_an_estimate_knows_the_bytes(command: Command) -> None:
    arguments = ("estimate", "--images", "1M", "--teacher", "so400m-patch14-384", "--json")
    sizes = {
        targets: json.loads(command(*arguments, "--targets", targets)[1])["bytes"]["text_targets"]
        for targets in ("float16", "int8")
    }
    assert sizes["int8"]["value"] / sizes["float16"]["value"] == pytest.approx(
        1156 / 2304, rel=1e-3
    )
    assert "1,000,000 texts x (1,152 + 4) B" in sizes["int8"]["formula"]
