"""What a build of so many images would take: numbers by hand, and against what is really written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kit.fakes import config_of, write_folder_corpus

from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.dry_run import dry_run
from siglip2_cache.precompute.estimate import disk, formulas
from siglip2_cache.precompute.estimate.config import EstimateConfig
from siglip2_cache.precompute.estimate.estimate import Estimate, estimate_build
from siglip2_cache.precompute.estimate.report import estimate_json, estimate_lines
from siglip2_cache.precompute.planning.config import default_shard_rows
from siglip2_cache.siglip import find_architecture
from siglip2_cache.store.format.catalog import IMAGES_SCHEMA, encode_part, encode_table
from siglip2_cache.store.format.views import ViewPolicy, draw_views

BASE = find_architecture("base-patch16-224")


def estimated(**settings: Any) -> Estimate:
    settings = {"teacher": "base-patch16-224", "num_images": 1_000_000, **settings}
    return estimate_build(EstimateConfig(**settings))


def numbers(found: Estimate, group: str) -> dict[str, float]:
    return {each.name: each.value for each in found.quantities if each.group == group}


def test_units_and_objects_by_hand() -> None:
    found = estimated(num_images=2_500_001, num_views=4, captions_per_image=2)
    assert numbers(found, "units") == {
        "image_units": 611,  # of 4,096
        "text_units": 1221,
        "image_shard": 4096 * 4 * 768 * 2 + 64 * 16 + 4,
        "worker_memory": 3 * (4096 * 4 * 768 * 2 + 64 * 16 + 4),
    }
    parts = 1 + 3 + 6 + 6 + 11  # files, samples, captions, texts, views
    assert numbers(found, "objects") == {
        "shards": 611 + 1221,
        "image_tables": 611,
        "records": 611 + 1221,
        "catalog_parts": parts,
        "settings": 4,
        "objects": 2 * (611 + 1221) + 611 + parts + 4,
    }


def test_a_billion_images_have_the_bytes_of_the_design() -> None:
    found = estimated(num_images=10**9, num_views=5, teacher="so400m-patch14-384")
    sizes = numbers(found, "bytes")
    assert sizes.pop("bytes") == pytest.approx(sum(sizes.values()))
    targets = sizes.pop("image_targets") + sizes.pop("text_targets")
    assert targets == pytest.approx(10**9 * 6 * 1152 * 2, rel=1e-3)
    del sizes["unit_records"]
    assert sum(sizes.values()) == pytest.approx(157e9, rel=1e-3)


def test_texts_that_images_share_are_embedded_once_and_their_captions_kept() -> None:
    found = estimated(captions_per_image=5, num_texts=3_000_000)
    assert found["text_units"] == 184
    assert numbers(found, "bytes")["captions"] == 2_000_000 * formulas.CAPTION_BYTES
    assert found["all_texts"] == 3_000_000 * BASE.flops_of_text
    assert "captions" not in numbers(estimated(), "bytes")
    assert "views" not in numbers(estimated(), "bytes")  # a whole image has no box


def test_time_is_arithmetic_over_the_share_of_the_peak() -> None:
    found = estimated(num_views=3, num_gpus=8, peak_tflops=100, mfu=0.25)
    hours = 1e6 * 3 * BASE.flops_of_view / 25e12 / 3600
    text_hours = 1e6 * BASE.flops_of_text / 25e12 / 3600
    assert found["gpu_hours_images"] == pytest.approx(hours)
    assert found["gpu_hours_texts"] == pytest.approx(text_hours)
    assert found["gpu_hours"] == pytest.approx(hours + text_hours)
    assert found["wall_time"] == pytest.approx((hours + text_hours) * 3600 / 8)
    assert found["image_unit_time"] == pytest.approx(4096 * 3 * BASE.flops_of_view / 25e12)


def test_a_measured_rate_takes_the_place_of_the_formula_and_says_so() -> None:
    found = estimated(images_per_s=50, num_gpus=2, image_bytes=2e5, num_views=2)
    assert found["gpu_hours_images"] == pytest.approx(1e6 / 50 / 3600)
    assert found["read_by_a_worker"] == 50 * 2e5
    assert found["read_by_all"] == 2 * 50 * 2e5
    assert found["written_by_a_worker"] == 50 * (2 * 768 * 2 + 36)
    [line] = [each for each in found.quantities if each.name == "images_per_s"]
    share = 50 * 2 * BASE.flops_of_view / 989e12
    assert line.formula == f"as given, measured: {share:.2g} of 989 TFLOP/s"
    assert any("--texts-per-s" in note for note in found.notes)
    found = estimated(images_per_s=50, texts_per_s=400)
    assert found["gpu_hours_texts"] == pytest.approx(1e6 / 400 / 3600)
    assert not any("--texts-per-s" in note for note in found.notes)


def test_remote_tars_are_read_through_unless_their_images_are_large() -> None:
    found = estimated(image_bytes=100_000)
    tar = 10_000 * (100_000 + 1_792)
    assert found["tars"] == 100
    assert found["remote_bytes"] == 100 * tar
    assert found["remote_requests"] == 100 * -(-tar // 2**23)
    found = estimated(image_bytes=5e6)
    assert (found["remote_bytes"], found["remote_requests"]) == (1e6 * 2**16, 1e6)


def test_a_note_says_how_to_have_fewer_units() -> None:
    found = estimated(num_images=10**9, num_views=5, teacher="so400m-patch14-384")
    [note] = [note for note in found.notes if note.startswith("--shard-rows")]
    assert note.startswith("--shard-rows 16384 makes 61,036 image units, with shards of 188.7 MB")
    better = estimated(
        num_images=10**9, num_views=5, teacher="so400m-patch14-384", shard_rows=16_384
    )
    assert better["image_units"] == 61_036
    assert better["image_shard"] == pytest.approx(188.7e6, rel=1e-3)
    assert better["driver_memory"] < 1e9
    assert better["resume_time"] < 10
    assert not any(note.startswith("--shard-rows") for note in better.notes)


def test_what_a_dry_run_counts_of_a_corpus_is_what_was_estimated(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 30)
    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint, shard_rows=8, num_views=2)
    counted = dry_run(config, is_timed=False)
    found = estimated(
        teacher=str(tiny_checkpoint),
        num_images=30,
        num_texts=counted.num_texts,
        num_views=2,
        shard_rows=8,
    )
    assert counted.num_units == {"image": found["image_units"], "text": found["text_units"]}
    images = 30 * (disk.IMAGE_BYTES + 8)  # a build leaves some margin
    targets = numbers(found, "bytes")
    assert counted.num_target_bytes - images == targets["image_targets"] + targets["text_targets"]


N = 20_000
KEYS = [f"{i // 10_000:05d}/{i:09d}" for i in range(N)]


@pytest.fixture(scope="module")
def lengths() -> Any:
    return np.random.default_rng(0).lognormal(11.3, 0.7, N).astype(np.int64)


def nothing(*names: str) -> list[pl.Expr]:
    return [pl.lit(None).alias(name) for name in names]


@pytest.mark.parametrize(
    ("expected", "measure"),
    [
        (
            formulas.SAMPLE_BYTES,
            lambda lengths: encode_part(
                "samples",
                pl.DataFrame(
                    {
                        "row": range(N),
                        "key": KEYS,
                        "file": [i // 10_000 for i in range(N)],
                        "member": [f"{key[6:]}.jpg" for key in KEYS],
                        "offset": 512 + np.cumsum(lengths // 512 * 512 + 2048),
                        "length": lengths,
                    }
                ).with_columns(nothing("row_group", "index", "label", "source_sha256")),
            ),
        ),
        (
            formulas.FILE_BYTES,
            lambda lengths: encode_part(
                "files",
                pl.DataFrame(
                    {
                        "file": range(N),
                        "path": [f"{key}.jpg" for key in KEYS],
                        "num_bytes": lengths,
                        "mtime_ns": 10**18 + np.cumsum(lengths * 1000),
                    }
                ).with_columns(source=pl.lit("")),
            ),
        ),
        (
            formulas.CAPTION_BYTES,
            lambda lengths: encode_part(
                "captions",
                pl.DataFrame(
                    {
                        "row": [i // 5 for i in range(N)],
                        "text_row": np.random.default_rng(1).integers(0, 10**9, N),
                    }
                ).with_columns(nothing("lang", "kind")),
            ),
        ),
        (
            formulas.VIEW_BYTES,
            lambda lengths: encode_part(
                "views",
                pl.DataFrame(
                    {
                        name: column.ravel()
                        for name, column in draw_views(
                            ViewPolicy(num_views=5), KEYS[: N // 5]
                        ).items()
                    }
                    | {
                        "row": np.repeat(np.arange(N // 5), 5),
                        "view": np.tile(np.arange(5, dtype=np.int16), N // 5),
                    }
                ),
            ),
        ),
        (
            disk.IMAGE_BYTES,
            lambda lengths: encode_table(
                pl.DataFrame(
                    {
                        "row": range(N),
                        "width": lengths % 1500,
                        "height": lengths % 1400,
                        "sha256": [np.random.default_rng(i).bytes(32) for i in range(N)],
                    }
                ),
                IMAGES_SCHEMA,
            ),
        ),
    ],
    ids=["samples", "files", "captions", "views", "images"],
)
def test_lines_of_the_tables_take_no_more_than_expected_and_not_much_less(
    expected: int, measure: Callable[[Any], bytes], lengths: Any
) -> None:
    assert 0.5 * expected < len(measure(lengths)) / N <= 1.05 * expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 0}, r"images must be 1 to 1,000,000,000,000,000, got 0"),
        ({"captions_per_image": -1.0}, r"captions per image must be 0 to 1,000, got -1.0"),
        ({"captions_per_image": float("nan")}, r"captions per image must be 0 to 1,000, got nan"),
        ({"num_texts": 2_000_000}, r"texts must be 0 to 1,000,000, got 2,000,000"),
        ({"num_gpus": 0}, r"gpus must be 1 to"),
        ({"gpu": "k80"}, r"gpu 'k80' is not one of h100, .*--peak-tflops"),
        ({"peak_tflops": 0.0}, r"peak tflops must be above 0, got 0.0"),
        ({"images_per_s": float("inf")}, r"images per s must be above 0, got inf"),
        ({"texts_per_s": -1.0}, r"texts per s must be above 0, got -1.0"),
        ({"mfu": 40.0}, r"mfu must be above 0 and at most 1, got 40.0"),
        ({"image_bytes": 10**11}, r"image bytes must be 1 to 1,000,000,000"),
        ({"images_per_tar": 0}, r"images per tar must be 1 to"),
        ({"num_views": 0}, r"views must be 1 to 256, got 0"),
        ({"shard_rows": 0}, r"shard rows must be 1 to 16,777,216, got 0"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        estimated(**settings)


def test_no_captions_are_no_texts() -> None:
    found = estimated(captions_per_image=0)
    assert (found["text_units"], found["gpu_hours_texts"]) == (0, 0)


def test_the_rows_of_a_unit_are_those_that_a_build_chooses() -> None:
    assert [default_shard_rows(views) for views in (1, 2, 3, 5, 8)] == [
        *(16_384, 8192, 4096, 2048, 2048)
    ]


def test_every_number_has_a_name_of_its_own_a_line_and_a_formula() -> None:
    found = estimated(num_views=2, captions_per_image=2, num_texts=1_500_000)
    names = [each.name for each in found.quantities]
    assert len(set(names)) == len(names)
    assert all(each.formula for each in found.quantities)
    lines, values = estimate_lines(found), estimate_json(found)
    for each in found.quantities:
        assert any(each.name.replace("_", " ") in line and each.formula in line for line in lines)
        number = values[each.group.replace(" ", "_")][each.name]
        assert number == {"value": each.value, "unit": each.unit, "formula": each.formula}
