"""Whatever is wrong with a corpus is one row of ``rejected``, one problem or one line; the rest is built."""

import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from kit.commands import error_line, run
from kit.fakes import (
    FakeTeacher,
    SilentProgress,
    config_of,
    draw_image,
    write_folder_corpus,
    write_table_corpus,
)
from kit.privileges import GIVE_UP_PRIVILEGES, can_give_up_privileges
from kit.reference import Reference, distance
from numpy.typing import NDArray
from PIL import Image, ImageCms

from siglip2_cache import open_cache
from siglip2_cache.errors import BuildError
from siglip2_cache.precompute.build import build
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format import records

Command = Callable[..., tuple[int, str, str]]

PLAIN = draw_image(1, (64, 48))
OTHER = draw_image(2, (64, 48))

TEXTS = {
    "10,000 characters": "a very long caption " * 500,
    "control characters": "bell \x07, escape \x1b[31m, NUL \0, tab \t, DEL \x7f, C1 \x9b",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽",
    "right to left": "\u202bميناء עברית\u202c \u200fABC",  # noqa: RUF001
    "combining": "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343",
    "composed": "\u00e9",
    "decomposed": "e\u0301",
    "line separators": "one\u2028two\u2029three\x85four\x0bfive\rsix",
    "byte order mark": "\ufeffmarked",
    "noncharacters": "\ufffe \uffff \U0010ffff \ue000",
}
"""Captions that are kept as they are, by what is odd about them."""

KEYS = {
    "slashes": "a/b//c/",
    "a leading slash": "/etc/passwd",
    "dots": "..",
    "dots between slashes": "../../x",
    "dots in the middle": "a.b..c.jpg.png",
    "300 characters": "k" * 300,
    "unicode": "Häfen/夜明け/🏳️‍🌈",
    "a newline": "line\nbreak\r\nand\u2028more",
    "control characters": "\x1b[2Jgone\x00\x07",
    "right to left": "\u202egnp.exe",
    "a blank": "two words",
}
"""Keys that are kept as they are, by what is odd about them."""


# -- the corpus


def png_of(width: int, height: int, *, depth: int, color: int, raw: bytes) -> bytes:
    """A PNG made by hand."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_pictures(folder: Path) -> dict[str, Image.Image]:
    """Write every odd kind of picture that can be read; return what each shows, by key."""
    shown: dict[str, Image.Image] = {}

    def save(name: str, picture: Image.Image, shows: Image.Image, **options: Any) -> None:
        picture.save(folder / name, **options)
        shown[name.rpartition(".")[0]] = shows

    gray, colours = PLAIN.convert("L"), PLAIN.quantize(16)
    rgba, la = PLAIN.copy(), gray.copy()
    rgba.putalpha(draw_image(3, (64, 48)).convert("L"))
    la.putalpha(draw_image(3, (64, 48)).convert("L"))
    sixteen = Image.fromarray(np.asarray(gray).astype(np.uint16) * 256 + 77)
    cmyk = PLAIN.convert("CMYK")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    save("plain.png", PLAIN, PLAIN)
    save("gray.png", gray, gray.convert("RGB"))
    save("palette.png", colours, colours.convert("RGB"))
    save("palette-clear.png", colours, colours.convert("RGB"), transparency=bytes(range(16)))
    save("rgba.png", rgba, PLAIN)
    save("gray-alpha.png", la, gray.convert("RGB"))
    save("sixteen.png", sixteen, gray.convert("RGB"))
    save("sixteen.tif", sixteen, gray.convert("RGB"))
    (folder / "sixteen.tif").rename(folder / "sixteen-tif.tif")
    shown["sixteen-tif"] = shown["sixteen"]
    save("cmyk.tif", cmyk, cmyk.convert("RGB"))
    save("icc.png", PLAIN, PLAIN, icc_profile=swapped)
    save("one-bit.png", gray.convert("1"), gray.convert("1").convert("RGB"))
    save("animated.gif", colours, colours.convert("RGB"), save_all=True, append_images=[OTHER])
    more = {"save_all": True, "append_images": [OTHER]}
    save("animated-webp.webp", PLAIN, PLAIN, lossless=True, **more)
    save(
        "one-pixel.png",
        Image.new("RGB", (1, 1), (9, 99, 199)),
        Image.new("RGB", (1, 1), (9, 99, 199)),
    )
    tall = draw_image(4, (4, 4000)).crop((0, 0, 1, 4000))
    save("tall.png", tall, tall)
    save(
        "wide.png",
        tall.transpose(Image.Transpose.ROTATE_90),
        tall.transpose(Image.Transpose.ROTATE_90),
    )
    rows = (np.asarray(PLAIN).astype(np.uint16) * 256 + 55).astype(">u2")
    deep = b"".join(b"\0" + row.tobytes() for row in rows)
    (folder / "deep.png").write_bytes(png_of(64, 48, depth=16, color=2, raw=deep))
    shown["deep"] = PLAIN
    return shown


def write_orientations(folder: Path) -> None:
    """Write PLAIN in all eight orientations, without loss and as JPEG; EXIF says which way is up."""
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, method in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = PLAIN if method is None else PLAIN.transpose(method)
        turned.save(folder / f"exif{orientation}.png", exif=exif)
        turned.save(folder / f"exif{orientation}-jpeg.jpg", exif=exif, quality=95, subsampling=0)


CUTS = {"jpg": (1, 2, 3, 10, 40, 160, 400, 0.5, 0.9), "png": (1, 4, 8, 12, 20, 33, 50, 0.5, 0.9)}


def write_torn(folder: Path) -> list[str]:
    """Write a JPEG and a PNG cut at many lengths, most in the header; return their keys."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    keys: list[str] = []
    for ending, cuts in CUTS.items():
        noise.save(folder / f"whole.{ending}")
        data = (folder / f"whole.{ending}").read_bytes()
        (folder / f"whole.{ending}").unlink()
        for cut in cuts:
            length = cut if isinstance(cut, int) else int(len(data) * cut)
            (folder / f"torn-{ending}-{length}.{ending}").write_bytes(data[:length])
            keys.append(f"torn-{ending}-{length}")
    return keys


def write_unreadable(folder: Path) -> None:
    """Write what is called a picture and is none, or leads nowhere."""
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "postscript.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    )
    (folder / "text.png").write_text("not a picture")
    # 225 million pixels in 27 kB; as RGB they are 675 MB.
    bomb = png_of(15_000, 15_000, depth=1, color=0, raw=bytes(15_000 * 1876))
    (folder / "bomb.png").write_bytes(bomb)
    with open(folder / "huge.jpg", "wb") as file:
        file.truncate(10**12)
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "loop").symlink_to(".")
    (folder / "folder.jpg").mkdir()
    PLAIN.save(folder / "folder.jpg" / "inside.png")
    os.mkfifo(folder / "pipe.jpg")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
    os.chdir(here)
    PLAIN.save(folder / "locked.png")
    (folder / "closed").mkdir()
    PLAIN.save(folder / "closed" / "behind.png")
    (folder / "locked.png").chmod(0)
    (folder / "closed").chmod(0)


def write_table(folder: Path) -> Path:
    """Write a table of every odd text and key, each of a copy of one picture, beside broken lines."""
    folder.mkdir()
    lines: list[str | bytes] = [
        *(
            json.dumps({"image": "plain.png", "key": f"text {name}", "caption": text})
            for name, text in TEXTS.items()
        ),
        *(
            json.dumps({"image": "plain.png", "key": key, "caption": f"key {name}"})
            for name, key in KEYS.items()
        ),
        '{"image": "plain.png", "key": "lone", "captions": ["good", "\\ud800 lone", "\\udfff\\ud800"]}',
        b'{"image": "plain.png", "key": "latin", "caption": "caf\xe9"}',
        '{"image": "plain.png", "key": "blank", "captions": ["", "  \\t\\n\\u2028 ", " kept "]}',
        '{"image": "plain.png", "key": "\\ud800"}',
        '{"image": "plain.png", "key": ["list"]}',
        '{"image": "a\\u0000b.png", "key": "nul path"}',
        '{"image": "../../../../../../nowhere/x.png", "key": "outside"}',
        '{"image": "/dev/zero", "key": "endless"}',
        '{"image": "plain.png", "key": "torn line',
    ]
    written = [line if isinstance(line, bytes) else line.encode() for line in lines]
    for i in range(len(lines)):
        PLAIN.save(folder / f"{i}.png")
        written[i] = written[i].replace(b"plain.png", b"%d.png" % i)
    table = folder / "table.jsonl"
    table.write_bytes(b"\n".join(written) + b"\n")
    return table


# -- the build


@dataclass(frozen=True)
class Built:
    """One cache of every fault; read it, do not change it."""

    corpus: Path
    table: Path
    root: Path
    shown: dict[str, Image.Image]
    torn: list[str]
    was_locked: bool
    """Whether the process that built it could be kept from reading what permissions forbid."""

    stdout: str
    stderr: str
    embeddings: dict[str, NDArray[np.float16]]
    """By key, of the images that were not rejected."""

    reasons: dict[str, str]
    """By key, of the images that were rejected."""

    problems: dict[str, str]
    """By place, relative to the folder of both sources."""

    @property
    def cache(self) -> Cache:
        return open_cache(self.root)


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """Of a short name, for messages are cut."""
    return short_path


@pytest.fixture(scope="module")
def built(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Everything above in one folder and one table, built once by the command line."""
    folder = tmp_path_factory.mktemp("ugly")
    corpus, root = folder / "corpus", folder / "cache"
    corpus.mkdir()
    shown, torn = write_pictures(corpus), write_torn(corpus)
    write_orientations(corpus)
    write_unreadable(corpus)
    table = write_table(folder / "table")
    was_locked = can_give_up_privileges(corpus / "closed")
    sizes = ["--shard-rows", 32, "--batch-size", 16, "--decode-workers", 1, "--device", "cpu"]
    result = run(
        *("build", f"c={corpus}", f"t={table}", root, "--teacher", tiny_checkpoint, *sizes),
        before=GIVE_UP_PRIVILEGES if was_locked else "",
    )
    (corpus / "closed").chmod(0o700)
    assert result.returncode == 0, result.stderr
    cache = open_cache(root)
    keys = dict(cache.samples().select("row", "key").collect().iter_rows())
    rows = cache.image_targets().available_rows()
    values = cache.image_targets().read(rows)
    rejected = cache.rejected().filter(modality="image").select("key", "reason").collect()
    problems = cache.table("problems").select("place", "reason").collect()
    return Built(
        corpus,
        table,
        root,
        shown,
        torn,
        was_locked,
        result.stdout,
        result.stderr,
        {keys[int(row)]: value for row, value in zip(rows, values, strict=True)},
        dict(rejected.iter_rows()),
        {place.removeprefix(f"{folder}/"): reason for place, reason in problems.iter_rows()},
    )


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(tiny_checkpoint)


# -- pictures that can be read


def test_every_kind_of_picture_has_the_embedding_of_what_it_shows(
    built: Built, reference: Reference
) -> None:
    assert len(built.shown) == 17
    for key, picture in built.shown.items():
        assert distance(reference.image(picture), built.embeddings[f"c/{key}"]) < 1e-5, key


def test_all_eight_orientations_are_the_upright_picture(built: Built) -> None:
    upright = built.embeddings["c/plain"]
    for orientation in range(1, 9):
        assert distance(upright, built.embeddings[f"c/exif{orientation}"]) < 1e-5, orientation
        as_jpeg = built.embeddings[f"c/exif{orientation}-jpeg"]
        assert distance(upright, as_jpeg) < 0.01, orientation


def test_the_measure_would_see_a_picture_that_is_not_turned_or_another_frame(
    built: Built, reference: Reference
) -> None:
    upright = built.embeddings["c/plain"]
    for method in Image.Transpose:
        assert distance(upright, reference.image(PLAIN.transpose(method))) > 0.02, method
    assert distance(upright, reference.image(OTHER)) > 0.02


# -- pictures that cannot


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("c/empty", "empty: 0 bytes"),
        ("c/page", "not an image: it is a web page"),
        ("c/postscript", "PostScript: unsupported format; convert it to JPEG, PNG or WebP"),
        ("c/text", 'not an image: it is text, "not a picture"'),
        ("c/dangling", "no such file"),
        ("c/itself", "cannot be read: Too many levels of symbolic links"),
        ("c/huge", "too large: 1,000,000,000,000 bytes, the limit is 2,147,483,648"),
        ("t/outside", "no such file"),
        ("t/endless", "not a regular file"),
    ],
)
def test_what_is_no_picture_is_rejected_with_the_reason(
    built: Built, key: str, reason: str
) -> None:
    assert built.reasons[key] == reason


def test_torn_pictures_are_rejected_wherever_they_end(built: Built) -> None:
    assert len(built.torn) == 18
    for key in built.torn:
        assert built.reasons[f"c/{key}"].startswith(("damaged image: ", "not an image: ")), key


def test_a_decompression_bomb_is_rejected_before_it_fills_the_memory(built: Built) -> None:
    reason = built.reasons["c/bomb"]
    assert reason.startswith("too large: Image size (225000000 pixels) exceeds limit of ")
    program = """
import resource, sys
from siglip2_cache.images.pixels import PixelError, decode_rgb
whole, bomb = (open(path, "rb").read() for path in sys.argv[1:])
decode_rgb(whole)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_rgb(bomb)
except PixelError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    pictures = [str(built.corpus / name) for name in ("plain.png", "bomb.png")]
    command = [sys.executable, "-c", program, *pictures]
    grown = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert grown * (1 if sys.platform == "darwin" else 1024) < 30e6  # the pixels would be 675e6


def test_a_file_that_may_not_be_read_is_rejected_and_a_folder_is_a_problem(built: Built) -> None:
    if not built.was_locked:
        pytest.skip("this user reads everything, and cannot give up the privilege")
    assert built.reasons["c/locked"] == "cannot be read: Permission denied"
    assert built.problems["corpus/closed"] == "the folder cannot be read (Permission denied)"


def test_what_is_no_file_is_a_problem_and_a_folder_named_like_a_picture_is_a_folder(
    built: Built,
) -> None:
    assert built.problems["corpus/pipe.jpg"] == "not a regular file"
    assert built.problems["corpus/socket.jpg"] == "not a regular file"
    assert built.problems["corpus/loop"] == "a link to a folder that holds it; not followed"
    inside, plain = built.embeddings["c/folder.jpg/inside"], built.embeddings["c/plain"]
    assert distance(inside, plain) < 1e-5


def test_nothing_else_was_rejected_or_left_out(built: Built) -> None:
    table = set(KEYS.values()) | {f"text {name}" for name in TEXTS} | {"lone", "blank"}
    exif = {f"exif{i}{kind}" for i in range(1, 9) for kind in ("", "-jpeg")}
    embedded = {f"c/{key}" for key in (*built.shown, *exif, "folder.jpg/inside")}
    rejected = {f"c/{key}" for key in (*built.torn, "empty", "page", "postscript", "text", "bomb")}
    rejected |= {"c/huge", "c/dangling", "c/itself", "t/outside", "t/endless"}
    if built.was_locked:
        rejected |= {"c/locked"}
    else:
        embedded |= {"c/locked", "c/closed/behind"}
    assert set(built.embeddings) == embedded | {f"t/{key}" for key in table}
    assert set(built.reasons) == rejected
    assert "Traceback" not in built.stderr


def test_verify_finds_no_fault_in_a_cache_of_bad_input(built: Built, command: Command) -> None:
    status, out, err = command("verify", built.root)
    assert (status, err) == (0, "")
    assert out.endswith("verified: no fault\n")


# -- texts


def test_odd_texts_come_back_byte_for_byte_in_any_reader(built: Built) -> None:
    parts = sorted((built.root / "catalog").glob("texts-*.parquet"))
    by_pyarrow = [text for part in parts for text in pq.read_table(part)["text"].to_pylist()]
    by_polars = pl.concat([pl.read_parquet(part) for part in parts])["text"].to_list()
    assert by_polars == by_pyarrow
    for name, text in TEXTS.items():
        assert text.strip() in by_pyarrow, name
    assert {"good", "kept"} < set(by_pyarrow)
    assert len(by_pyarrow) == len(TEXTS) + len(KEYS) + 2  # é composed and decomposed are two


def test_odd_texts_have_the_embedding_of_a_plain_forward(
    built: Built, reference: Reference
) -> None:
    texts = built.cache.texts().collect()
    stored = built.cache.text_targets().read(texts["text_row"].to_numpy())
    for text, row in zip(texts["text"], stored, strict=True):
        assert distance(reference.text(text), row) < 1e-5, text


def test_what_is_no_text_is_a_problem_and_the_captions_beside_it_stay(built: Built) -> None:
    line = len(TEXTS) + len(KEYS) + 1
    reasons = built.cache.table("problems").select("place", "reason").collect()
    of_lone = reasons.filter(pl.col("place") == f"{built.table} line {line}")["reason"].to_list()
    assert of_lone == [
        r"a caption is not valid Unicode text: '\ud800 lone'",
        r"a caption is not valid Unicode text: '\udfff\ud800'",
    ]
    place = "table/table.jsonl line"
    assert built.problems[f"{place} {line + 1}"].startswith("not UTF-8; ")
    assert built.problems[f"{place} {line + 3}"] == r"the key is not valid Unicode text: '\ud800'"
    assert built.problems[f"{place} {line + 4}"] == "the key is a list, expected text"
    assert built.problems[f"{place} {line + 5}"] == r"the image path holds a NUL byte: 'a\x00b.png'"
    assert built.problems[f"{place} {line + 8}"].startswith("malformed JSON (unterminated string")
    assert len(built.problems) == 6 + 3 + built.was_locked


# -- keys, and showing them


def test_odd_keys_are_kept_as_they_are_and_never_become_paths(built: Built) -> None:
    keys = set(built.cache.samples().select("key").collect()["key"])
    for name, key in KEYS.items():
        assert f"t/{key}" in keys, name
    outside = built.cache.samples().filter(pl.col("key") == "t/../../x").collect()
    assert outside.height == 1
    for path in built.root.rglob("*"):
        assert path.name.isprintable()
        assert path.name != "x"


def test_info_lists_every_rejected_row_and_every_problem(built: Built, command: Command) -> None:
    status, out, err = command("info", built.root, "--rejected")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    rejected = [line for line in lines if line.startswith("rejected ")]
    problems = [line for line in lines if line.startswith("problem  ")]
    row = built.cache.samples().filter(pl.col("key") == "c/empty").collect()["row"][0]
    assert f"rejected   tiny image {row} c/empty: empty: 0 bytes" in rejected
    assert f"problem    {built.corpus}/pipe.jpg: not a regular file" in problems
    assert len(rejected) == len(built.reasons)
    assert len(problems) == built.cache.table("problems").collect().height
    again = f"siglip2-cache info {built.root} --rejected lists them all"
    assert built.stdout.count(f"... {again}\n") == 2
    _, short, _ = command("info", built.root)
    assert [line for line in lines if line not in short.splitlines()] == rejected + problems


def test_info_as_json_lists_them_too(built: Built, command: Command) -> None:
    status, out, _ = command("info", built.root, "--rejected", "--json")
    found = json.loads(out)
    assert status == 0
    assert {r["key"]: r["reason"] for r in found["rejected_rows"]} == built.reasons
    assert {r["teacher"] for r in found["rejected_rows"]} == {"tiny"}
    assert {r["modality"] for r in found["rejected_rows"]} == {"image"}
    assert found["problems"] == len(found["problem_rows"])
    assert set(found["problem_rows"][0]) == {"source", "place", "key", "reason"}
    assert "rejected_rows" not in json.loads(command("info", built.root, "--json")[1])


def test_control_characters_of_keys_and_places_never_reach_the_terminal(
    tiny_checkpoint: Path, tmp_path: Path, command: Command, fake_teacher: None
) -> None:
    odd = "\x1b[2Jgone\nerror: \u202egnp\x9b"
    corpus = tmp_path / odd
    write_folder_corpus(corpus, 1)
    (corpus / f"{odd}.png").write_bytes(b"no picture")
    (corpus / f"{odd}.json").write_bytes(b"{")
    status, out, err = command("build", corpus, tmp_path / "cache", *teacher_of(tiny_checkpoint))
    shown = r"\x1b[2Jgone\nerror: \u202egnp\x9b"
    assert status == 0
    assert f"           {shown}: not an image: " in out
    assert f"           {tmp_path}/{shown}/{shown}.json: malformed JSON" in out
    _, listed, _ = command("info", tmp_path / "cache", "--rejected")
    assert f"rejected   tiny image 0 {shown}: not an image: " in listed
    _, as_json, _ = command("info", tmp_path / "cache", "--rejected", "--json")
    assert json.loads(as_json)["rejected_rows"][0]["key"] == odd
    for said in (out, err, listed, as_json):
        assert all(line.isprintable() for line in said.split("\n")), said


# -- one line for what is refused as a whole


@pytest.fixture
def fake_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command ``build`` work with a teacher that needs no model."""
    with_fake = partial(build, make_teacher=lambda *_: FakeTeacher(image_size=(64, 64)))
    monkeypatch.setattr("siglip2_cache.precompute.build.build", with_fake)


def teacher_of(checkpoint: Path) -> tuple[object, ...]:
    return ("--teacher", checkpoint, "--device", "cpu", "--decode-workers", 0)


@pytest.fixture
def refused(tiny_checkpoint: Path, command: Command, fake_teacher: None) -> Callable[..., str]:
    """Run a build that is refused; return its one line."""

    def call(*arguments: object) -> str:
        return error_line(*command("build", *teacher_of(tiny_checkpoint), *arguments))

    return call


def test_a_key_given_twice_names_both_places(tmp_path: Path, refused: Callable[..., str]) -> None:
    lines: list[dict[str, Any]] = [{"image": f"{i}.png", "key": "same"} for i in range(2)]
    one = write_table_corpus(tmp_path / "one", lines)
    assert refused(one, tmp_path / "cache").startswith(
        f"key 'same' is given twice, at {one} line 1 and at {one} line 2; keys must be unique in a "
    )
    two = write_table_corpus(tmp_path / "two", [{"image": "a.png", "key": "b/c"}])
    folder = write_folder_corpus(tmp_path / "x" / "b", 0)
    draw_image(0).save(folder / "c.png")
    # A namespace and a key that together are another's key.
    message = refused(f"n={two}", f"n={folder.parent}", tmp_path / "cache")
    assert message.startswith(
        f"two sources have the name 'n': {two} and {folder.parent}; give this "
    )
    assert not (tmp_path / "cache" / "cache.json").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.jsonl", b"", "is empty; expected a row for each image"),
        ("t.csv", b"image,caption\n", "has no rows below its column names"),
        ("t.tsv", b"\n\n", "is empty; expected a row for each image"),
        ("t.jsonl", b"\xff\xfe{\0", "has no readable row (line 1: malformed JSON"),
        ("t.jsonl", b'{"x": 1}\n', "has no column of images, it has 'x'; expected one named image"),
        ("t.parquet", b"PAR1", "cannot be read as Parquet ("),
    ],
)
def test_a_table_that_is_no_table_is_one_line(
    tmp_path: Path, refused: Callable[..., str], name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    line = refused(tmp_path / name, tmp_path / "cache")
    assert line.startswith(f"{tmp_path / name} {message}")
    assert not (tmp_path / "cache").exists()


def test_a_table_that_is_a_folder_an_empty_folder_and_another_schema_are_one_line(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "t.jsonl").mkdir()
    assert refused(tmp_path / "t.jsonl", tmp_path / "c").startswith(f"{tmp_path}/t.jsonl holds no ")
    pl.DataFrame({"a": [1], "b": [[2.5]]}).write_parquet(tmp_path / "t.parquet")
    assert refused(tmp_path / "t.parquet", tmp_path / "c").startswith(
        f"{tmp_path}/t.parquet has no column of images, it has 'a', 'b'; expected one named image, "
    )
    pl.DataFrame({"image": [1]}).write_parquet(tmp_path / "t.parquet")
    assert "column 'image' holds int64, expected " in refused(
        tmp_path / "t.parquet", tmp_path / "c"
    )


def test_a_source_in_the_cache_or_given_twice_through_a_link_is_one_line(
    tmp_path: Path, refused: Callable[..., str], command: Command, tiny_checkpoint: Path
) -> None:
    corpus, cache = write_folder_corpus(tmp_path / "corpus", 2), tmp_path / "cache"
    assert command("build", corpus, cache, *teacher_of(tiny_checkpoint))[0] == 0
    inside = write_folder_corpus(cache / "inside", 1)
    for place in (inside, cache):
        assert refused(f"x={place}", cache).startswith(
            f"the source {place} is in the folder of the cache, {cache}, which must hold nothing else"
        )
    (tmp_path / "link").symlink_to(corpus)
    message = refused(corpus, tmp_path / "link", tmp_path / "new")
    assert message == f"the source {tmp_path}/link was given twice"


def test_typed_nonsense_is_one_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    corpus, cache = write_folder_corpus(tmp_path / "corpus", 1), tmp_path / "cache"
    cases: list[tuple[tuple[object, ...], str]] = [
        (("", cache), "a source is empty; give a folder or a table of images"),
        (("a=", cache), "a source is empty; give a folder or a table of images"),
        (("~nobody-here/x", cache), "there is no "),
        (("{a,b}" * 30 + ".jsonl", cache), "names more than 1,000,000 files; write fewer braces"),
        ((corpus, cache, "--batch-size", "9" * 5000), "batch size must be 1 to 65,536, got 9999"),
        (
            (corpus, cache, "--batch-size", "٣"),
            "batch size must be auto or a whole number, got '٣'",
        ),
        (
            (corpus, cache, "--decode-workers", 10**9),
            "decode workers must be 0 to 1,024, got 10000",
        ),
        (
            (corpus, cache, "--teacher-name", ""),
            "teacher name '' cannot be a folder name; use letters, ",
        ),
        (
            (corpus, cache, "--teacher-name", "a\n"),
            r"teacher name 'a\n' cannot be a folder name; use",
        ),
        ((corpus, cache, "--corpus-root", "\0=\0"), r"corpus root '\x00=\x00' is not OLD=NEW"),
        ((corpus, cache, "--view-min-area", "nan"), "view min area must be above 0 and at most 1"),
        ((corpus, cache, "--sample-timeout", "nan"), "sample timeout must be above 0 s, got nan"),
        ((corpus, cache, "--shard-rows", 2**70), "shard rows must be 1 to 16,777,216, got 11805"),
        ((corpus, tmp_path / ("c" * 300)), ": File name too long"),
        ((corpus, "/dev/null/c"), ": Not a directory"),
        (
            (corpus, cache, "--teacher", "~nobody-here/x"),
            "is neither a folder nor a hub id such as",
        ),
    ]
    for arguments, message in cases:
        assert message in refused(*arguments), arguments


# -- what changes or vanishes


def swapping(change: Callable[[], object]) -> Callable[..., FakeTeacher]:
    """Return a maker of teachers that first changes the corpus: it is called after the plan."""

    def make(*_: object) -> FakeTeacher:
        change()
        return FakeTeacher(image_size=(64, 64))

    return make


def test_an_image_that_changes_between_plan_and_read_is_embedded_as_it_was_read(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    image = corpus / "img001.png"
    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint)
    build(
        config,
        progress=SilentProgress(),
        make_teacher=swapping(lambda: draw_image(77).save(image)),
    )
    seen = pl.read_parquet(tmp_path / "cache" / "teachers/tiny/images/00000.parquet")
    assert seen["sha256"][1] == hashlib.sha256(image.read_bytes()).digest()
    assert open_cache(tmp_path / "cache").rejected().collect().height == 0


def test_an_image_that_becomes_a_folder_or_goes_between_plan_and_read_is_rejected(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)

    def change() -> None:
        (corpus / "img000.png").unlink()
        (corpus / "img001.png").unlink()
        (corpus / "img001.png").mkdir()

    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint)
    build(config, progress=SilentProgress(), make_teacher=swapping(change))
    rejected = open_cache(tmp_path / "cache").rejected().select("key", "reason").collect()
    assert rejected.rows() == [
        ("img000", "no such file"),
        ("img001", "cannot be read: Is a directory"),
    ]


def test_a_source_that_vanishes_is_one_line_whenever_it_does(
    tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str], command: Command
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint)
    make_teacher = swapping(lambda: corpus.rename(tmp_path / "away"))
    with pytest.raises(BuildError, match=r"every image was rejected .*--corpus-root OLD=NEW"):
        build(config, progress=SilentProgress(), make_teacher=make_teacher)
    line = refused(corpus, tmp_path / "cache")
    assert line.startswith(f"there is no {corpus}; expected a folder of images or of shards")
    (tmp_path / "away").rename(corpus)
    again = ("build", *teacher_of(tiny_checkpoint), "--retry-rejected", corpus, tmp_path / "cache")
    status, out, _ = command(*again)
    assert status == 0
    assert "rejected   none\n" in out


def test_images_that_change_or_go_between_two_builds_are_named_and_keep_their_rows(
    tiny_checkpoint: Path, tmp_path: Path, command: Command, fake_teacher: None
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 3)
    again = ("build", *teacher_of(tiny_checkpoint), corpus, tmp_path / "cache")
    assert command(*again)[0] == 0
    draw_image(9, (40, 40)).save(corpus / "img001.png")
    (corpus / "img002.png").unlink()
    status, out, _ = command(*again)
    assert status == 0
    assert "gone       1 samples are no longer in the corpus and keep their rows: img002\n" in out
    assert "changed    the files of 1 samples changed in size or time since they " in out
    assert command("verify", tmp_path / "cache")[0] == 0


# -- a damaged cache


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(corpus, cache) of two generations and every kind of file, built with the fake teacher."""
    folder = tmp_path_factory.mktemp("finished")
    corpus, cache = write_folder_corpus(folder / "corpus", 3), folder / "cache"
    (folder / "templates.txt").write_text("a photo of {}\n")
    (folder / "labels.txt").write_text("dog\n")
    prompts = {"templates": folder / "templates.txt", "labels": folder / "labels.txt"}
    for _ in range(2):
        config = config_of(corpus, cache, tiny_checkpoint, num_views=2, shard_rows=2, **prompts)
        make = swapping(lambda: None)
        build(config, progress=SilentProgress(), make_teacher=make)
        write_folder_corpus(corpus, 2, first=5)
        (corpus / "torn.jpg").write_bytes(b"torn")
        (corpus / "img005.json").write_text("{")
        shutil.copy(corpus / "img005.json", corpus / "img000.json.bad")
    return corpus, cache


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        make_a_folder,
        pytest.param(lambda path: path.write_bytes(b""), id="emptied"),
        pytest.param(lambda path: path.write_bytes(b"\xff\0{[garbage"), id="garbage"),
        pytest.param(lambda path: path.unlink(), id="removed"),
    ],
)
@pytest.mark.parametrize(
    "is_every",
    [
        pytest.param(False, id="one of a kind"),
        pytest.param(True, id="every file", marks=pytest.mark.slow),
    ],
)
def test_damage_to_any_file_of_a_cache_is_found_by_verify_and_a_traceback_by_no_command(
    damage: Callable[[Path], None],
    is_every: bool,
    finished: tuple[Path, Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    command: Command,
    fake_teacher: None,
) -> None:
    corpus, cache = finished
    files = sorted(path.relative_to(cache) for path in cache.rglob("*") if path.is_file())
    kinds = {re.sub(r"[0-9]+", "N", path.as_posix()): path for path in files}
    assert len(kinds) == 18, kinds
    for i, path in enumerate(files if is_every else kinds.values()):
        copy = shutil.copytree(cache, tmp_path / str(i))
        damage(copy / path)
        status, out, err = command("verify", copy)
        assert status == 1, path
        # Of a record that is gone nothing is left but what it named, or that a unit is to be made.
        is_record = path.suffix == ".json" and path.name != "zarr.json"
        if (copy / path).is_file() or not is_record:
            assert path.name in out + err, path
        if err:
            error_line(status, out, err)
        for arguments in (
            ("info", copy, "--rejected"),
            ("build", *teacher_of(tiny_checkpoint), corpus, copy),
        ):
            status, out, err = command(*arguments)
            if status:
                error_line(status, out, err)


def test_a_cache_of_a_future_version_is_one_line_for_every_command(
    finished: tuple[Path, Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, cache = finished
    for i, path in enumerate(
        ("cache.json", "catalog/append-00001.json", "teachers/tiny/teacher.json")
    ):
        copy = shutil.copytree(cache, tmp_path / str(i))
        fields = json.loads((copy / path).read_bytes())
        del fields["checksum"], fields["format_version"]
        monkeypatch.setattr(records, "FORMAT_VERSION", 99)
        (copy / path).write_bytes(records.encode_record(fields))
        monkeypatch.undo()
        for arguments in (
            ("info", copy),
            ("verify", copy),
            ("build", *teacher_of(tiny_checkpoint), corpus, copy),
        ):
            line = error_line(*command(*arguments))
            assert line == (
                f"{copy}/{path} has format version 99, this release reads versions 1 to 5; "
                "install the siglip2-cache that wrote it"
            )
