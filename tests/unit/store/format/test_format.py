"""docs/reference/format.md says what the code does, and caches of version 1 stay readable for ever.

tests/data/cache-v1 was made on the day version 1 was fixed, by

    siglip2-cache build corpus/captions.jsonl cache --teacher teacher --views 2 --shard-rows 4
        --templates templates.txt --batch-size 4 --device cpu

over five drawings, one of them a web page, and again after two more were added; the teacher was
``benchmarks/make_checkpoint.py --arch tiny-patch16-64``. tests/data/cache-v2 was made likewise of a tar
and a Parquet file, and again after another tar:

    siglip2-cache build shards=corpus/shards packed=corpus/packed cache --teacher teacher --shard-rows 4
        --batch-size 4 --device cpu

tests/data/cache-v3 was made like the first one, of other drawings and without templates, with

        --targets int8 --targets-budget 1

and tests/data/cache-v4 with

        --patch-targets 2 --patch-dims 16

and tests/data/cache-v5 with

        --views 3 --augment strong

None may ever be made anew: when a test here fails, the code is wrong.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from siglip2_cache import open_cache
from siglip2_cache.errors import FormatVersionError
from siglip2_cache.images.naflex import patch_grid
from siglip2_cache.store.format import records
from siglip2_cache.store.format.augmentation import PRESETS
from siglip2_cache.store.format.catalog import IMAGES_SCHEMA, SCHEMAS
from siglip2_cache.store.format.records import decode_record, encode_record
from siglip2_cache.store.format.shard import ArrayLayout, encode_shard
from siglip2_cache.store.format.teacher_record import Distortion
from siglip2_cache.store.format.views import ViewPolicy, draw_view, pixel_box, view_box
from siglip2_cache.store.verify.verify import verify_cache

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

ROOT = Path(__file__).parents[4]
GOLDEN = ROOT / "tests" / "data" / "cache-v1"
GOLDEN_2 = ROOT / "tests" / "data" / "cache-v2"
GOLDEN_3 = ROOT / "tests" / "data" / "cache-v3"
GOLDEN_4 = ROOT / "tests" / "data" / "cache-v4"
GOLDEN_5 = ROOT / "tests" / "data" / "cache-v5"
PAGE = (ROOT / "docs" / "reference" / "format.md").read_text()


def block(name: str) -> str:
    """The code block below ``<!-- test: name -->``."""
    found = re.search(rf"<!-- test: {name} -->\n```\w*\n(.*?)```\n", PAGE, re.DOTALL)
    assert found is not None, name
    return found[1]


# -- the page


def test_the_shard_on_the_page_is_what_we_write() -> None:
    lines = re.findall(r"^[0-9a-f]{2}:  ((?:[0-9a-f]{2} )+)", block("shard"), re.MULTILINE)
    layout = ArrayLayout(modality="text", num_rows=3, num_views=1, embed_dim=2, shard_rows=6)
    values = np.array([[1, 0], [0, 1], [-0.6, 0.8]], np.float16)
    assert encode_shard(layout, values) == bytes.fromhex("".join(lines))


def test_the_record_on_the_page_is_what_we_write_and_read() -> None:
    data = block("record").encode()
    fields = decode_record(data, where="docs/reference/format.md")
    assert encode_record(fields) == data
    lines = re.findall(r"^[0-9a-f]{2}:  ((?:[0-9a-f]{2} )+)", block("shard"), re.MULTILINE)
    shard = bytes.fromhex("".join(lines))
    [description] = fields["files"].values()
    assert description == {"num_bytes": 68, "sha256": hashlib.sha256(shard).hexdigest()}
    body, _, _ = data.rpartition(b',\n "checksum": "')
    assert f"has {len(data)} bytes" in PAGE
    assert f"covers the first {len(body)}," in PAGE


def test_the_reader_on_the_page_reads_a_cache(foreign: "ForeignCache") -> None:
    names: dict[str, Any] = {}
    exec(block("reader"), names)
    read_unit: Callable[..., Any] = names["read_unit"]
    for modality, unit, rows in (
        ("image", 1, slice(6, 12)),
        ("image", 2, slice(12, 15)),
        ("text", 2, slice(12, 15)),
    ):
        targets, rejected = read_unit(foreign.root, "tiny", modality, unit)
        np.testing.assert_array_equal(targets, foreign.targets["tiny", modality][rows])
        assert rejected == ([8, 9] if unit == 1 else [])


def test_the_view_on_the_page_is_the_one_we_draw() -> None:
    found = re.search(
        r"top (\S+), left (\S+), height (\S+), width (\S+), flip true; .* "
        r"left (\d+), top (\d+), right (\d+), bottom (\d+)\.",
        PAGE,
    )
    assert found is not None
    box = draw_view(ViewPolicy(num_views=2), "a", 1)
    assert [box.top, box.left, box.height, box.width] == [float(found[i]) for i in range(1, 5)]
    assert box.flip
    assert pixel_box(box, 640, 480) == tuple(int(found[i]) for i in range(5, 9))


def test_the_augmentation_on_the_page_is_the_one_we_draw() -> None:
    found = re.search(
        r"give brightness (\S+), contrast (\S+), saturation (\S+), hue (\S+), no\ngrayscale, no blur, "
        r"solarize (\d+)\.",
        PAGE,
    )
    assert found is not None
    policy = ViewPolicy(num_views=3, augmentation=PRESETS["strong"])
    expected = (*map(float, found.groups()[:4]), False, 0.0, int(found[5]))
    assert astuple(draw_view(policy, "a", 2).augmentation) == expected


def test_the_grids_on_the_page_are_those_we_compute() -> None:
    [line] = [line for line in PAGE.split("\n") if line.startswith("Check: P ")]
    found = re.search(r"P (\d+), M (\d+): ", line)
    assert found is not None
    patch_size, limit = int(found[1]), int(found[2])
    sizes = re.findall(r"(\d+) x (\d+) (?:\(.*?\) )?gives (\d+) (?:rows )?and (\d+)", line)
    assert len(sizes) == 4
    for height, width, rows, columns in sizes:
        grid = patch_grid(int(height), int(width), patch_size=patch_size, max_num_patches=limit)
        assert grid == (int(rows), int(columns))


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_of_every_table_is_on_the_page(table: str) -> None:
    rows = re.findall(
        r"^\| (?:`(\w+)`)? ?\| ((?:`\w+`(?:, )?)+) \| ([\w()]+)(, null)? \|", PAGE, re.M
    )
    current, found = "", {}
    for name, columns, type_, null in rows:
        current = name or current
        for column in re.findall(r"\w+", columns):
            found.setdefault(current, []).append((column, type_, bool(null)))
    names = {"float32": "float", "fixed_size_binary(32)": "fixed_size_binary[32]"}
    schema = [(f.name, str(f.type), f.nullable) for f in SCHEMAS[table]]  # type: ignore[index]
    assert [(n, names.get(t, t), null) for n, t, null in found[table]] == schema


def test_every_column_of_the_pictures_is_on_the_page() -> None:
    assert [str(field.type) for field in IMAGES_SCHEMA] == [
        "int64",
        "int32",
        "int32",
        "fixed_size_binary[32]",
    ]
    assert all(f"`{name}`" in PAGE for name in IMAGES_SCHEMA.names)


def test_the_metadata_on_the_page_is_what_we_write() -> None:
    found = re.search(r"```json\n(\{\n \"zarr_format\".*?)```", PAGE, re.DOTALL)
    assert found is not None
    layout = ArrayLayout(
        modality="image", num_rows=10, num_views=2, embed_dim=1152, shard_rows=8192
    )
    assert json.loads(found[1]) == layout.metadata()


# -- the committed cache


def test_the_golden_cache_verifies() -> None:
    report = verify_cache(open_cache(GOLDEN))
    assert report.faults == []
    assert report.num_rows == {"image": 7, "text": 14}


def test_the_golden_targets_are_what_they_were() -> None:
    cache = open_cache(GOLDEN)
    images, texts = cache.image_targets(), cache.text_targets("teacher")
    assert (images.shape, texts.shape) == ((10, 2, 64), (14, 64))
    assert images.available_rows().tolist() == [0, 1, 2, 4, 8, 9]
    assert images.read([0, 9], [0, 1])[:, :4].tolist() == [
        [0.06793212890625, -0.15576171875, 0.16650390625, -0.01306915283203125],
        [-0.08502197265625, -0.0269927978515625, 0.279541015625, -0.0007166862487792969],
    ]
    assert texts.read([13])[0, :4].tolist() == [
        *(0.023773193359375, 0.301513671875, 0.279541015625, 0.199462890625),
    ]
    rows = images.available_rows()
    assert [hashlib.sha256(images.read(rows, view).tobytes()).hexdigest() for view in (0, 1)] == [
        "2d6ffaf613f121c2f2d82da6736a25a8347b6943ca2268758f50f36c0072f1f2",
        "d1934e6693b404f9f58ce4d81811a643026ced3371617a0fd4581b635df06183",
    ]
    assert hashlib.sha256(texts.read(range(14)).tobytes()).hexdigest() == (
        "f44a70620cef87e0e7b76d1c13f68bc33b7d8f7bb2933bd1e45195ca833ea59c"
    )


def test_the_golden_catalog_is_what_it_was() -> None:
    cache = open_cache(GOLDEN)
    assert cache.samples().select("row", "key", "file", "label").collect().rows() == [
        (0, "disc", 0, "round"),
        (1, "square", 1, "angular"),
        (2, "ring", 2, "round"),
        (3, "cross", 3, "angular"),
        (4, "bar", 4, "angular"),
        (8, "dot", 5, "round"),
        (9, "frame", 6, "angular"),
    ]
    captions = cache.captions().collect()
    assert captions["kind"].null_count() == len(captions)  # the column is younger
    assert captions.drop("kind").rows() == [
        *[(row, 2 * row + i, lang) for row in range(5) for i, lang in enumerate(("en", "de"))],
        (8, 0, "en"),
        (9, 12, "en"),
        (9, 13, "de"),
    ]
    texts = cache.texts().collect()["text"].to_list()
    assert texts[:4] == ["a red disc", "rote Scheibe", "a green square", "grünes Quadrat"]
    assert cache.table("prompts").collect().rows() == [
        (10, "angular", "a drawing of something {}", None),
        (11, "round", "a drawing of something {}", None),
    ]
    assert cache.rejected().collect().rows() == [
        ("teacher", "image", 3, "cross", "not an image: it is a web page")
    ]
    assert cache.table("views").collect().rows()[-1] == (
        *(9, 1, 0.04865654185414314, 0.03403496369719505),
        *(0.5708602666854858, 0.7213668823242188, False),
    )
    pictures = pl.read_parquet(GOLDEN / "teachers/teacher/images/00002.parquet")
    assert pictures.select("row", "width", "height").rows() == [(8, 80, 48), (9, 88, 48)]


def test_the_golden_records_are_what_they_were() -> None:
    cache = open_cache(GOLDEN)
    assert cache.shard_rows == 4
    assert cache.view_policy == ViewPolicy(num_views=2)
    record = cache.teacher()
    assert (record.logit_scale, record.logit_bias) == (4.75, -16.799999237060547)
    assert (record.embed_dim, record.batch_size) == (64, {"image": 4, "text": 4})
    assert record.identity["view_code_version"] == 1
    assert cache.manifest.latest.digest == (
        "8af1cf805e10b6a15fc2faa4c18b1c8dcaa73b67010f9695542f744865e9af02"
    )


def test_the_golden_views_are_those_we_draw_today() -> None:
    cache = open_cache(GOLDEN)
    keys = dict(cache.samples().select("row", "key").collect().iter_rows())
    for row, view, *box in cache.table("views").collect().iter_rows():
        ours = draw_view(cache.view_policy, keys[row], view)
        assert (ours.top, ours.left, ours.height, ours.width, ours.flip) == tuple(box)


def test_the_golden_cache_of_version_2_is_what_it_was() -> None:
    cache = open_cache(GOLDEN_2)
    report = verify_cache(cache)
    assert (report.faults, report.num_rows) == ([], {"image": 7, "text": 7})
    places = ("key", "file", "member", "offset", "length", "row_group", "index")
    assert cache.samples().select("row", *places).collect().rows() == [
        (0, "shards/disc", 0, "disc.png", 512, 265, None, None),
        (1, "shards/page", 0, "page.png", 2560, 15, None, None),
        (2, "shards/ring", 0, "ring.png", 4608, 273, None, None),
        (3, "packed/bar", 1, "image.bytes", None, None, 0, 0),
        (4, "packed/dot", 1, "image.bytes", None, None, 0, 1),
        (5, "packed/box", 1, "image.bytes", None, None, 1, 0),
        (8, "shards/star", 2, "star.png", 512, 280, None, None),
    ]
    hashes = cache.samples().collect()["source_sha256"].to_list()
    download = [hashlib.sha256(b"download %d" % i).digest() for i in (0, 1, 2, 6)]
    assert hashes == [*download[:3], None, None, None, download[3]]
    captions = cache.captions().collect()
    assert captions["kind"].null_count() == len(captions)  # the column is younger
    assert captions.drop("kind").rows() == [
        *((0, 0, None), (1, 1, None), (2, 2, None), (3, 3, None), (3, 4, None), (4, 5, None)),
        (8, 8, None),
    ]
    assert cache.rejected().collect().rows() == [
        ("teacher", "image", 1, "shards/page", "not an image: it is a web page")
    ]
    images, texts = cache.image_targets(), cache.text_targets()
    assert [
        hashlib.sha256(targets.read(targets.available_rows()).tobytes()).hexdigest()
        for targets in (images, texts)
    ] == [
        "4a88e8bff7cdb72f0ef8c16b7dd9804db31751f89cfcd4abb89064339426ad16",
        "c7f7154156de872c6364d1def989e3bf2ed24d3d0e1a27f995b7e9cdad4c7933",
    ]
    assert cache.manifest.latest.digest == (
        "dd1eab39262ad0cef867ee59043af485fce2ddfdf04963efdf8b5105687bb4a6"
    )


def test_the_golden_cache_of_version_3_is_what_it_was() -> None:
    cache = open_cache(GOLDEN_3)
    report = verify_cache(cache)
    assert (report.faults, report.num_rows) == ([], {"image": 7, "text": 12})
    versions = [
        json.loads(path.read_text())["format_version"]
        for path in GOLDEN_3.rglob("*.json")
        if path.name != "zarr.json"
    ]
    assert sorted(set(versions)) == [2, 3]
    assert versions.count(3) == 1
    record = cache.teacher()
    assert record.encoding.name == "int8"
    assert record.distortion == Distortion(
        kl_share=0.0036556705929540025,
        largest_logit_error=0.3971732289543972,
        mean_squared_error=4.7107769262311194e-05,
        num_images=4,
        num_texts=4,
    )
    images, texts = cache.image_targets(), cache.text_targets()
    assert images.available_rows().tolist() == [0, 1, 2, 4, 8, 9]
    expected = [
        [0.1009521484375, -0.1639404296875, 0.15087890625, 0.02398681640625],
        [0.062042236328125, -0.268310546875, 0.055084228515625, -0.1331787109375],
    ]
    # Sums of float32 differ between machines by a step of float16.
    np.testing.assert_allclose(images.read([0, 9], [0, 1])[:, :4], expected, rtol=1e-3)
    expected = [-0.057769775390625, 0.26904296875, 0.188232421875, 0.06475830078125]
    np.testing.assert_allclose(texts.read([13])[0, :4], expected, rtol=1e-3)
    assert cache.manifest.latest.digest == (
        "37093ed00e0d0986e46f108be124c994e1d6c04b48b3321c175a7545eee93839"
    )


def test_the_golden_cache_of_version_4_is_what_it_was() -> None:
    cache = open_cache(GOLDEN_4)
    report = verify_cache(cache)
    assert (report.faults, report.num_rows) == ([], {"image": 7, "text": 14})
    versions = [
        json.loads(path.read_text())["format_version"]
        for path in GOLDEN_4.rglob("*.json")
        if path.name != "zarr.json"
    ]
    assert sorted(set(versions)) == [2, 4]
    assert versions.count(4) == 1
    assert cache.image_targets().available_rows().tolist() == [0, 1, 2, 4, 8, 9]
    patches = cache.patch_targets()
    assert (patches.settings.grid, patches.settings.dim, patches.settings.width) == (2, 16, 64)
    assert patches.settings.rms == 1.467945858122582
    expected = [0.1571567952632904, -0.04117192327976227, 0.19776368141174316]
    assert patches.basis[2, :3].tolist() == expected
    found = patches.read([0, 9], [0, 1])
    expected = [
        [0.2203369140625, 0.3671875, 1.224609375, 0.2203369140625],
        [1.025390625, 0.0504150390625, 2.134765625, 0.134521484375],
    ]
    assert found.values_VCP[:, 3, :4].tolist() == expected
    assert found.grids_V2.tolist() == [[2, 2], [2, 2]]
    assert cache.manifest.latest.digest == (
        "a1e4ae866e0691205985fd93fff760755e20fcfa90b07426eac81ca7398f7251"
    )


def test_the_golden_cache_of_version_5_is_what_it_was() -> None:
    cache = open_cache(GOLDEN_5)
    report = verify_cache(cache)
    assert (report.faults, report.num_rows) == ([], {"image": 7, "text": 7})
    for path in ("cache.json", "catalog/append-00001.json"):
        assert json.loads((GOLDEN_5 / path).read_text())["format_version"] == 5
    assert cache.view_policy == ViewPolicy(num_views=3, augmentation=PRESETS["strong"])
    keys = dict(cache.samples().select("row", "key").collect().iter_rows())
    views = cache.table("views").collect()
    for row, view, *values in views.iter_rows():
        assert view_box(values) == draw_view(cache.view_policy, keys[row], view)
    assert views.null_count().sum_horizontal().item() == 0
    expected = [
        [0.11273193359375, -0.08856201171875, 0.1781005859375],
        [0.10638427734375, -0.03631591796875, -0.2100830078125],
    ]
    np.testing.assert_allclose(
        cache.image_targets().read([0, 9], [1, 2])[:, :3], expected, rtol=1e-3
    )
    assert cache.manifest.latest.digest == (
        "0c1dee1d80a8d9e4d2c10cc8c9ba9b1ad2ddd8334d2799fd8203c2e830d35b19"
    )


def test_older_releases_refuse_augmented_views_by_their_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records, "READABLE_VERSIONS", (1, 2, 3, 4))
    message = r"cache\.json has format version 5, this release reads versions 1 to 4; install"
    with pytest.raises(FormatVersionError, match=message):
        open_cache(GOLDEN_5)


@pytest.mark.parametrize("root", ["golden", "foreign"])
def test_digests_are_computed_as_the_page_says(root: str, foreign_cache: Path) -> None:
    folder = GOLDEN if root == "golden" else foreign_cache
    digest = ""
    for name in ("cache.json", "catalog/append-00001.json"):
        record = json.loads((folder / name).read_text())
        files = sorted(record["files"].items())
        lines = [digest, *(f"{path} {description['sha256']}" for path, description in files)]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        assert record["digest"] == digest
