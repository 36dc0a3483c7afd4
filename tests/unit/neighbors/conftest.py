"""A cache with something to find in it, embedded without a model."""

import json
from pathlib import Path

import numpy as np
import pytest
from kit.fakes import FakeTeacher, SilentProgress, config_of, draw_image
from numpy.typing import NDArray
from PIL import Image, ImageOps

from siglip2_cache.precompute.build import build


class _OtherTeacher(FakeTeacher):
    """Finds other pictures alike than FakeTeacher does."""

    def _finish(self, rows: NDArray[np.float64]) -> NDArray[np.float32]:
        return super()._finish(rows**3)


@pytest.fixture(scope="session")
def planted(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures in units of 4, and of the first a copy, a JPEG and a mirrored one; a damaged file.

    The first is nearly symmetric. Two teachers; the second sees everything with noise of its own.
    Read it, do not change it.
    """
    root = tmp_path_factory.mktemp("planted")
    pictures = root / "corpus"
    pictures.mkdir()
    lines: list[dict[str, object]] = []
    for i in range(12):
        draw_image(i, (32, 32)).save(pictures / f"p{i:02d}.png")
        captions = [f"Picture {i}", "A picture"] if i != 7 else []
        lines.append({"image": f"p{i:02d}.png", "key": f"p{i:02d}", "caption_en": captions})
    half = draw_image(50, (16, 32))
    even = Image.new("RGB", (32, 32))
    even.paste(half, (0, 0))
    even.paste(ImageOps.mirror(half), (16, 0))
    even.putpixel((1, 1), (255, 0, 0))
    even.save(pictures / "p00.png")
    (pictures / "copy.png").write_bytes((pictures / "p00.png").read_bytes())
    even.resize((128, 128), Image.Resampling.NEAREST).save(pictures / "again.jpg", quality=90)
    ImageOps.mirror(even).save(pictures / "mirrored.png")
    (pictures / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    lines += [
        {"image": name, "key": name.partition(".")[0], "caption_de": [f"Bild {name}"]}
        for name in ("copy.png", "again.jpg", "mirrored.png", "damaged.png")
    ]
    table = pictures / "captions.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, teacher in (("first", FakeTeacher()), ("second", _OtherTeacher(noise_seed=3))):
        config = config_of(
            table, root / "cache", tiny_checkpoint, teacher_name=name, shard_rows=4, num_views=2
        )
        build(config, progress=SilentProgress(), make_teacher=lambda *_, live=teacher: live)
    return root / "cache"
