"""A build over odd pictures agrees with the checkpoint's own processor on each, or names why not."""

import io
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.commands import run
from kit.odd_pictures import UNREAD, write_odd_pictures
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
from transformers.image_utils import load_image

from siglip2_cache import open_cache

HIGH_BYTE = re.compile(r"^(png|tiff|jpeg2000)-i_16b?-|^ppm-(i_16b?|i)-")
"""16-bit gray: Pillow's own way to RGB clips it to white, and transformers takes that."""

NO_RANGE = re.compile(r"^tiff-[if]-|^ppm-f-")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher with a processor that says do_convert_rgb."""
    folder = tmp_path_factory.mktemp("white") / "tiny"
    shutil.copytree(tiny_checkpoint, folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_convert_rgb": True}))
    return folder


def test_every_odd_picture_has_the_embedding_of_the_checkpoints_own_processor_or_a_reason(
    checkpoint: Path, tmp_path: Path
) -> None:
    names = write_odd_pictures(tmp_path / "corpus")
    assert len(names) > 500
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    done = run("build", corpus, cache, "--teacher", checkpoint, "--threads", 1)
    assert done.returncode == 0, done.stderr
    noise = [line for line in done.stderr.splitlines() if re.match(r"\w*: ", line)]
    assert noise == []  # of libtiff
    ours, reasons = embeddings_and_reasons(cache)
    assert len(ours) + len(reasons) == len(names)
    theirs = pipeline_embeddings(checkpoint, corpus, sorted(ours), names)
    others = {key for key in ours if key not in theirs or not is_equal(ours[key], theirs[key])}
    assert others == {key for key in ours if HIGH_BYTE.match(key)}
    for key in reasons:
        format = key.split("-")[0].upper()
        no_range = r"pixels of mode [IF] \(32 bits a channel\) have no defined range"
        expected = (
            no_range if NO_RANGE.match(key) else r"not an image: |.* unsupported format; convert"
        )
        assert format in UNREAD or NO_RANGE.match(key), (key, reasons[key])
        assert re.match(expected, reasons[key]), (key, reasons[key])


def embeddings_and_reasons(cache: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    opened = open_cache(cache)
    [name] = opened.teachers
    keys = dict(opened.samples().select("row", "key").collect().iter_rows())
    [unit] = opened.commits(name).units_of("image").values()
    reasons = {keys[row]: reason for row, reason in unit.rejected.items()}
    rows = [row for row, key in sorted(keys.items()) if key not in reasons]
    values = np.asarray(opened.image_targets().read(np.array(rows)), np.float64)
    return {keys[row]: value for row, value in zip(rows, values, strict=True)}, reasons


def pipeline_embeddings(
    checkpoint: Path, corpus: Path, keys: list[str], names: list[str]
) -> dict[str, NDArray[Any]]:
    """Of each picture that transformers can process: load_image, its processor, its model."""
    import torch

    processor = AutoImageProcessor.from_pretrained(checkpoint)
    by_key = {name.rpartition(".")[0]: name for name in names}
    pixels: dict[str, Any] = {}
    for key in keys:
        try:
            with warnings.catch_warnings(action="ignore"):
                # From bytes: of a path, Pillow 13 maps an uncompressed gray or palette TIFF into
                # memory and takes the sides of one that lies on its side for each other.
                data = io.BytesIO((corpus / by_key[key]).read_bytes())
                image: Image.Image = load_image(Image.open(data))
                pixels[key] = processor(image, return_tensors="pt")["pixel_values"][0]
        except (TypeError, ValueError):
            continue
    model = AutoModel.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        found = model.get_image_features(pixel_values=torch.stack(list(pixels.values())))
    rows = getattr(found, "pooler_output", found).double()
    unit_rows = (rows / rows.norm(dim=-1, keepdim=True)).numpy()
    return dict(zip(pixels, unit_rows, strict=True))


def is_equal(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Whether two unit rows differ by the rounding to float16 alone."""
    return bool(1 - ours @ theirs / np.linalg.norm(ours) < 1e-6)
