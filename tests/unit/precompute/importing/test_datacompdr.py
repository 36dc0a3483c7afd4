"""Samples of DataCompDR: crops, both formats of embeddings, and what is wrong with them."""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kit.embeddings import dr_sample, draw_crops, npz_bytes, pth_gz_bytes, write_tar
from kit.fakes import draw_image

from siglip2_cache.images.image import DecodedBatch, DecodedImage, ImageRef
from siglip2_cache.images.image_bytes import ImageLocation
from siglip2_cache.precompute.importing.datacompdr import DataCompDR
from siglip2_cache.precompute.importing.embeddings import FoundViews
from siglip2_cache.precompute.sources.crops import StoredViews, crop_boxes, parse_crops
from siglip2_cache.store.format.views import WHOLE_IMAGE, ViewBox, pixel_box

CROPS = draw_crops(2, 0)
IMAGES = np.array([[3.0, 0.0], [0.0, 4.0]])
TEXTS = np.array([[1.0, 0.0], [0.0, 1.0]])
SAMPLE = dr_sample("a", 0, IMAGES, TEXTS, CROPS)


def source_of(folder: Path, **changes: bytes) -> DataCompDR:
    """A tar of a good sample ``z`` and of ``a`` with other members (``npz=...``)."""
    members = dr_sample("z", 1, IMAGES, TEXTS, CROPS)
    members |= SAMPLE | {f"a.{name.replace('_', '.')}": data for name, data in changes.items()}
    if "pth_gz" in changes:
        del members["a.npz"]
    _OPENED.append(DataCompDR(folder, [write_tar(folder / "t.tar", members)]))
    return _OPENED[-1]


_OPENED: list[DataCompDR] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _OPENED:
        _OPENED.pop().close()


def views_of(source: DataCompDR, boxes: tuple[ViewBox, ...] | None = None) -> FoundViews:
    if boxes is None:
        boxes = (WHOLE_IMAGE, *crop_boxes(parse_crops(SAMPLE["a.paug.json"]), 24, 16))
    [frame] = source.images()
    places = frame.filter(pl.col("name") == "a").with_columns(at=pl.lit(0, pl.Int64))
    ref = ImageRef(0, ImageLocation(path=Path("x")), boxes)
    image = DecodedImage(width=24, height=16, sha256=b"0" * 32)
    pixels = np.zeros((1, len(boxes), 8, 8, 3), np.uint8)
    return source.views(places, DecodedBatch(None, [ref], [image], pixels))


def reason_of(source: DataCompDR, boxes: tuple[ViewBox, ...] | None = None) -> str:
    return views_of(source, boxes).reasons[0]


def test_view_0_is_the_mean_of_unit_crops_and_the_others_are_the_crops(tmp_path: Path) -> None:
    found = views_of(source_of(tmp_path))
    assert found.reasons == {}
    np.testing.assert_allclose(found.values_BKD[0], [[0.5**0.5, 0.5**0.5], [3, 0], [0, 4]])


def test_a_cache_of_whole_images_takes_the_mean_alone(tmp_path: Path) -> None:
    found = views_of(source_of(tmp_path), (WHOLE_IMAGE,))
    np.testing.assert_allclose(found.values_BKD[0], [[0.5**0.5, 0.5**0.5]])


def test_tensors_are_read_without_running_code(tmp_path: Path) -> None:
    data = pth_gz_bytes(image_emb=IMAGES, text_emb=TEXTS)
    np.testing.assert_allclose(views_of(source_of(tmp_path, pth_gz=data)).values_BKD[0, 1], [3, 0])

    class Evil:
        def __reduce__(self) -> Any:
            return (exec, ("raise SystemExit('code of a pickle was run')",))

    for evil in (pickle.dumps({"image_emb": Evil()}), b"no pickle at all"):
        source = source_of(tmp_path, pth_gz=gzip.compress(evil))
        assert reason_of(source).startswith("its pth.gz holds no tensors (")
    assert "it unpacks to more than" in reason_of(
        source_of(tmp_path, pth_gz=gzip.compress(bytes((1 << 26) + 1)))
    )


def test_captions_are_numbered_as_text_emb_has_them(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    [frame] = source.texts()
    lines = frame.select("name", "item").rows()
    assert lines[2:] == [("web caption 0", 0), ("made caption 0 1", 1)]
    np.testing.assert_allclose(source.vectors("text", frame)[2:], TEXTS)
    apart = npz_bytes(image_emb=IMAGES, text_emb=TEXTS[:1], syn_text_emb=TEXTS[1:])
    source = source_of(tmp_path, npz=apart)  # as scripts/gen.py writes them
    np.testing.assert_allclose(source.vectors("text", next(source.texts()))[2:], TEXTS)
    few = source_of(tmp_path, npz=npz_bytes(image_emb=IMAGES, text_emb=TEXTS[:1]))
    assert np.isnan(few.vectors("text", next(few.texts()))[3]).all()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"npz": b"PK"}, "its npz cannot be read as arrays", id="not a zip"),
        pytest.param(
            {"npz": npz_bytes(text_emb=TEXTS)}, "its npz has no image_emb", id="no image_emb"
        ),
        pytest.param(
            {"npz": npz_bytes(image_emb=np.ones(2))}, "image_emb of its npz is not", id="one row"
        ),
        pytest.param(
            {"npz": npz_bytes(image_emb=np.ones((2, 3)), text_emb=np.ones((1, 3)))},
            "its embeddings have width 3, not 2",
            id="another width",
        ),
        pytest.param(
            {"npz": npz_bytes(image_emb=IMAGES[:1], text_emb=TEXTS)},
            "it has 1 embeddings of its 2 crops",
            id="too few",
        ),
        pytest.param({"paug_json": b"{}"}, "its paug.json has no list param_aug", id="no crops"),
        pytest.param(
            {"paug_json": json.dumps({"param_aug": CROPS[:1]}).encode()},
            "its paug.json has 1 of 2 crops",
            id="one crop",
        ),
        pytest.param(
            {"paug_json": json.dumps({"param_aug": draw_crops(2, 9)}).encode()},
            "it has other views in the cache than the crops of its paug.json",
            id="other crops",
        ),
    ],
)
def test_a_sample_that_cannot_be_used_has_a_reason(
    tmp_path: Path, changes: dict[str, bytes], reason: str
) -> None:
    assert reason_of(source_of(tmp_path, **changes)).startswith(reason)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image_emb.npy", bytes((1 << 26) + 1))
    assert "bytes of arrays, at most" in reason_of(source_of(tmp_path, npz=out.getvalue()))


def test_crops_in_pixels_come_back_from_the_stored_fractions() -> None:
    random = np.random.default_rng(0)
    for width, height in ((640, 427), (1, 1), (5000, 3), (24, 16)):
        for _ in range(50):
            h, w = int(random.integers(1, height + 1)), int(random.integers(1, width + 1))
            top, left = (
                int(random.integers(0, height - h + 1)),
                int(random.integers(0, width - w + 1)),
            )
            entry = [[top, left, h, w], True, [[0, 0.0]]]
            [crop] = parse_crops(json.dumps({"param_aug": [entry]}).encode())
            [box] = crop_boxes([crop], width, height)
            assert pixel_box(box, width, height) == (left, top, left + w, top + h)
            assert (box.flip, crop.is_changed) == (True, False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"param_aug": 3}',
        '{"param_aug": [[[0, 0, 0, 5]]]}',
        '{"param_aug": [[[0, 0, 1]]]}',
        '{"param_aug": [[[0, 0, 1.5, 5]]]}',
        '{"param_aug": [[[-1, 0, 1, 5]]]}',
        "[" * 100_000,
    ],
)
def test_hostile_crops_are_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match=r"its paug\.json has no list param_aug of crops"):
        parse_crops(text.encode())


def test_a_crop_beyond_the_image_is_a_reason() -> None:
    crops = parse_crops(b'{"param_aug": [[[0, 0, 16, 25], null]]}')
    with pytest.raises(
        ValueError, match=r"crop 0 of its paug\.json reaches beyond its 24 x 16 pixels"
    ):
        crop_boxes(crops, 24, 16)


def test_planned_views_are_the_crops_and_whole_images_where_there_are_none(tmp_path: Path) -> None:
    turned = io.BytesIO()
    picture = draw_image(0)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(turned, "JPEG", exif=exif)
    members = SAMPLE | {"b.png": SAMPLE["a.png"], "b.txt": b"no crops"}
    members |= {"c.jpg": turned.getvalue(), "c.paug.json": SAMPLE["a.paug.json"]}
    write_tar(tmp_path / "t.tar", members)
    from siglip2_cache.precompute.sources.tar_samples import tar_samples

    lines = [
        (row, "t.tar", each.member, each.offset, each.length)
        for row, each in enumerate(tar_samples(tmp_path / "t.tar", "t.tar"))
        if hasattr(each, "member")
    ]
    samples = pl.DataFrame(lines, ["row", "path", "member", "offset", "length"], orient="row")
    views = StoredViews(tmp_path)
    found = pl.concat([views.read(part, 3) for part in samples.iter_slices(2)])
    assert found.select("row", "view").rows() == [(r, v) for r in range(3) for v in range(3)]
    boxes = [ViewBox(*line) for line in found.drop("row", "view").rows()]
    assert boxes[1:3] == crop_boxes(parse_crops(SAMPLE["a.paug.json"]), 24, 16)
    assert [boxes[i] for i in (0, 3, 4, 5, 6, 7, 8)] == [WHOLE_IMAGE] * 7
