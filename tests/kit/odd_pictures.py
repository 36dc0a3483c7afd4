"""Odd pictures: every mode, depth, transparency, orientation and animation that Pillow writes."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from siglip2_cache.images import libtiff

READ = {
    "JPEG": "jpg",
    "MPO": "mpo",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "DIB": "dib",
    "GIF": "gif",
    "TIFF": "tif",
    "AVIF": "avif",
    "JPEG2000": "jp2",
    "PPM": "ppm",
}
"""Formats that a build reads, and an ending of each."""

UNREAD = ("DDS", "EPS", "ICNS", "ICO", "MSP", "PCX", "PDF", "QOI", "SGI", "TGA", "XBM")

MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I;16B")
DEEP_MODES = ("I", "F")
_SIZE = (24, 16)
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class OddPicture:
    """A picture as bytes, and the name of its file."""

    name: str
    data: bytes


def odd_pictures() -> Iterator[OddPicture]:
    """Yield some hundred pictures whose names differ without their endings, too."""
    for format, ending in READ.items():
        for mode in (*MODES, *DEEP_MODES):
            image = _image(mode)
            yield from _saved(image, format, ending, mode, "plain")
            yield from _saved(image, format, ending, mode, "profile", icc_profile=_profile())
            for each in _transparencies(format, mode):
                name = f"clear-{each.hex() if isinstance(each, bytes) else each}".replace(" ", "")
                yield from _saved(image, format, ending, mode, name, transparency=each)
            for name, options in _options(format, mode):
                yield from _saved(image, format, ending, mode, name, **options)
        yield from _turned(format, ending)
        yield from _animated(format, ending)
    for format in UNREAD:
        yield from _saved(
            _image("1" if format in ("MSP", "XBM") else "RGB"), format, "jpg", "x", "x"
        )


def _image(mode: str) -> Image.Image:
    """A smooth picture whose first corner has one colour."""
    noise = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(_SIZE, Image.Resampling.BICUBIC)
    image.paste((0, 0, 0), (0, 0, 8, 8))
    if mode in ("P", "PA"):
        return image.quantize(8).convert(mode)
    if mode in ("RGBA", "LA"):
        alpha = Image.linear_gradient("L").resize(_SIZE)
        image.putalpha(alpha)
        return image.convert(mode)
    deep = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}
    if mode in deep:
        return Image.fromarray(
            (np.asarray(image.convert("L")).astype("f8") * 257).astype(deep[mode])
        )
    return image.convert(mode)


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _transparencies(format: str, mode: str) -> list[Any]:
    if format not in ("PNG", "GIF"):
        return []
    by_mode: dict[str, list[Any]] = {
        "1": [0, 1],
        "L": [0, 200],
        "P": [0, 3, bytes([0, 128, 255])],
        "RGB": [(0, 0, 0), (1, 2, 3)],
        "I;16": [0, 257],
    }
    return [each for each in by_mode.get(mode, []) if format == "PNG" or isinstance(each, int)]


def _options(format: str, mode: str) -> list[tuple[str, dict[str, Any]]]:
    if format == "TIFF":
        kinds = ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4", "zstd", "webp")
        return [(kind, {"compression": kind}) for kind in kinds]
    by_format: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "JPEG": [
            ("progressive", {"progressive": True}),
            ("full", {"subsampling": 0, "quality": 100}),
        ],
        "PNG": [("bits", {"bits": 2})] if mode == "P" else [],
        "WEBP": [("lossless", {"lossless": True})],
        "AVIF": [("lossless", {"quality": 100, "subsampling": "4:4:4"})],
        "JPEG2000": [("lossy", {"irreversible": True, "quality_layers": [20]})],
        "GIF": [("interlaced", {"interlace": True})],
    }
    return by_format.get(format, [])


def _turned(format: str, ending: str) -> Iterator[OddPicture]:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        for mode in ("RGB", "P", "L"):
            clear = {"transparency": 0} if (format, mode) == ("PNG", "P") else {}
            name = f"turned-{orientation}"
            yield from _saved(_image(mode), format, ending, mode, name, exif=exif, **clear)


def _animated(format: str, ending: str) -> Iterator[OddPicture]:
    for mode in ("RGB", "RGBA", "P"):
        image = _image(mode)
        more = [image.rotate(180), image.rotate(90)]
        options = {"save_all": True, "append_images": more, "duration": 10}
        yield from _saved(image, format, ending, mode, "animated", **options)


def _saved(
    image: Image.Image, format: str, ending: str, mode: str, name: str, **options: Any
) -> Iterator[OddPicture]:
    """Yield the picture, where Pillow writes such a one."""
    sink = io.BytesIO()
    try:
        with libtiff.capture_errors():  # of modes that it does not write
            image.save(sink, format, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SystemError):
        return
    stem = f"{format}-{mode}-{name}".lower().translate(str.maketrans(";(),", "____"))
    yield OddPicture(f"{stem}.{ending}", sink.getvalue())


def write_odd_pictures(folder: Path) -> list[str]:
    """Write them into a new folder; return their names."""
    folder.mkdir()
    names: list[str] = []
    for picture in odd_pictures():
        (folder / picture.name).write_bytes(picture.data)
        names.append(picture.name)
    assert len({name.rpartition(".")[0] for name in names}) == len(names)
    return names
