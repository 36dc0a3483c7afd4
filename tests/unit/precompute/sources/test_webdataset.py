"""WebDatasetSource: samples from tars that webdataset and others wrote, and what is wrong with them."""

import bz2
import gzip
import io
import json
import lzma
import os
import shlex
import subprocess
import tarfile
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.fakes import draw_image
from kit.privileges import open_folder, unprivileged

from siglip2_cache.errors import SettingError, SourceError
from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.images.parquet_cells import ReadError
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.planning.scan import Scanner
from siglip2_cache.precompute.sources.fields.caption_endings import parse_endings
from siglip2_cache.precompute.sources.fields.columns import TableColumns
from siglip2_cache.precompute.sources.folder import FolderSource
from siglip2_cache.precompute.sources.open import open_source
from siglip2_cache.precompute.sources.readers.tar_index import split_key
from siglip2_cache.precompute.sources.samples import Caption, Problem, Sample, Unused
from siglip2_cache.precompute.sources.webdataset import WebDatasetSource
from siglip2_cache.store.io.local import LocalStorage

Members = Sequence[tuple[str | bytes, bytes]]
SHA256 = "ab" * 32


def put_tar(
    path: Path, members: Members | Mapping[str, bytes], form: int = tarfile.PAX_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in pairs:
            info = tarfile.TarInfo(os.fsdecode(name))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def entries_of(location: Path | str) -> tuple[list[Sample], list[Problem]]:
    entries = list(open_source(location).scan())
    samples = [entry for entry in entries if isinstance(entry, Sample)]
    return samples, [entry for entry in entries if isinstance(entry, Problem)]


def samples_of(location: Path | str) -> list[Sample]:
    """Samples of a source without any problem."""
    samples, problems = entries_of(location)
    assert problems == []
    return samples


def reasons_of(location: Path | str) -> list[tuple[str, str]]:
    """Name of the file (and what else says where) and reason, of each problem."""
    return [(p.place.rpartition("/")[2], p.reason) for p in entries_of(location)[1]]


def only_sample(tmp_path: Path, members: Members | Mapping[str, bytes]) -> Sample:
    [sample] = samples_of(put_tar(tmp_path / "a.tar", members))
    return sample


def texts(sample: Sample) -> list[str]:
    return [caption.text for caption in sample.captions]


def bytes_of(root: Path, sample: Sample) -> bytes:
    return read_image_bytes(
        ImageLocation(
            path=root / sample.path,
            member=sample.member,
            offset=sample.offset,
            length=sample.length,
            file_bytes=sample.num_bytes,
        )
    )


# -- what a sample is


def test_shards_that_webdataset_wrote_give_its_keys_images_and_captions(tmp_path: Path) -> None:
    images = [draw_image(i) for i in range(7)]
    with webdataset.ShardWriter(f"{tmp_path}/%06d.tar", maxcount=3, verbose=0) as writer:
        for i, image in enumerate(images):
            told = {"caption": f"Picture {i}"}
            writer.write({"__key__": f"part/{i:03d}", "png": image, "json": told, "cls": i})
    samples = samples_of(tmp_path)
    assert [sample.key for sample in samples] == [f"part/{i:03d}" for i in range(7)]
    assert [sample.path for sample in samples] == ["000000.tar"] * 3 + ["000001.tar"] * 3 + [
        "000002.tar"
    ]
    assert [texts(sample) for sample in samples] == [[f"Picture {i}"] for i in range(7)]
    assert [sample.label for sample in samples] == [str(i) for i in range(7)]
    expected: dict[str, bytes] = {}
    for path in sorted(tmp_path.glob("*.tar")):
        with path.open("rb") as file:
            opened = [{"stream": file, "url": str(path)}]
            members = webdataset.tariterators.tar_file_expander(opened)
            grouped = webdataset.tariterators.group_by_keys(members)
            expected |= {each["__key__"]: each["png"] for each in grouped}
    assert len(expected) == 7
    assert {sample.key: bytes_of(tmp_path, sample) for sample in samples} == expected


def test_a_sample_knows_where_its_image_lies(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "in/a.tar", {"x/dog.jpg": b"pixels", "x/dog.txt": b" a dog\n"})
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    assert samples_of(path) == [
        Sample(
            key="x/dog",
            path="a.tar",
            captions=(Caption("a dog"),),
            member="x/dog.jpg",
            offset=512,
            length=6,
            num_bytes=path.stat().st_size,
            mtime_ns=1_700_000_000_123_456_789,
            place=f"{path} member 'x/dog.jpg'",
        )
    ]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.jpg", ("a", "jpg")),
        ("d.x/a.JPG", ("d.x/a", "jpg")),
        ("./a.seg.Png", ("./a", "seg.png")),
        ("../../a.jpg", ("../../a", "jpg")),
        ("/etc/a.jpg", ("/etc/a", "jpg")),
        ("d/.jpg", None),
        ("._a.jpg", None),
        ("d.x/a", None),
        ("__index__", None),
        ("__meta__/a.jpg", None),
        ("d/__a__.jpg", ("d/__a__", "jpg")),
    ],
)
def test_a_key_ends_at_the_first_dot_behind_the_last_slash(
    name: str, parts: tuple[str, str] | None
) -> None:
    expected = None if parts is None else (parts[0].encode(), parts[1].encode())
    assert split_key(name.encode()) == expected


@given(st.text(st.sampled_from("ab._/"), max_size=12).filter(lambda n: "/." not in f"/{n}"))
def test_keys_are_those_of_webdataset(name: str) -> None:
    key, ending = webdataset.tariterators.base_plus_ext(name)
    found = split_key(name.encode())
    if found is None:
        assert key is None or name.startswith("__")
    else:
        assert (found[0].decode(), found[1].decode()) == (key, ending)


@pytest.mark.parametrize(
    ("endings", "taken"),
    [
        (["png", "jpg"], "jpg"),
        (["tiff", "tif", "gif", "bmp", "webp"], "webp"),
        (["seg.jpg", "mask.png", "PNG"], "PNG"),
        (["jpeg", "png"], "jpeg"),
    ],
)
def test_of_several_images_the_preferred_one_is_taken(
    tmp_path: Path, endings: list[str], taken: str
) -> None:
    members = {f"a.{ending}": ending.encode() for ending in endings}
    [sample], problems = entries_of(put_tar(tmp_path / "a.tar", members))
    assert sample.member == f"a.{taken}"
    assert bytes_of(tmp_path, sample) == taken.encode()
    told = [p for p in problems if "more:" not in p.reason]
    assert len(told) == min(len(endings) - 1, 3)
    assert all(p.reason.endswith("not used") or "rename it" in p.reason for p in told)


def test_members_of_other_kinds_are_passed_by_without_a_word(tmp_path: Path) -> None:
    members = {
        "__index__": b"i",
        "a.npy": b"n",
        "a.jpg": b"j",
        "a.pyd": b"p",
        "b.npy": b"n",
        "README": b"r",
        "._a.jpg": b"m",
    }
    assert only_sample(tmp_path, members).member == "a.jpg"


def test_members_that_do_not_follow_each_other_are_one_sample(tmp_path: Path) -> None:
    members = [
        *((f"{i}.txt", f"text {i}".encode()) for i in range(50)),
        *((f"{i}.jpg", f"image {i}".encode()) for i in reversed(range(50))),
        *((f"{i}.cls", str(i % 7).encode()) for i in range(50)),
    ]
    samples = samples_of(put_tar(tmp_path / "a.tar", members))
    assert [sample.key for sample in samples] == [str(i) for i in range(50)]
    for i, sample in enumerate(samples):
        assert bytes_of(tmp_path, sample) == f"image {i}".encode()
        assert texts(sample) == [f"text {i}"]
        assert sample.label == str(i % 7)


def test_names_that_need_long_headers_are_read_in_place(tmp_path: Path) -> None:
    names = ["f/" * 140 + "a.jpg", "\u00e9" * 60 + ".jpg", "\U0001f600.jpg", "x" * 99 + ".jpg"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = put_tar(tmp_path / f"{form}.tar", {name: name.encode() for name in names}, form)
        samples = samples_of(path)
        assert [sample.member for sample in samples] == names
        assert [bytes_of(tmp_path, sample).decode() for sample in samples] == names


def test_a_member_name_that_leads_outside_is_only_a_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"outside")
    name = f"{tmp_path}/x.jpg"
    path = put_tar(tmp_path / "in/a.tar", {"../x.jpg": b"one", name: b"two"})
    samples = samples_of(path)
    assert [sample.key for sample in samples] == ["../x", name.removesuffix(".jpg")]
    assert [bytes_of(path.parent, sample) for sample in samples] == [b"one", b"two"]


# -- captions, labels


@pytest.mark.parametrize(
    ("members", "captions", "label"),
    [
        ({"txt": b" two\nlines \n"}, ["two\nlines"], None),
        ({"txt": b"\xef\xbb\xbfwith a mark"}, ["with a mark"], None),
        ({"txt": b"  \n"}, [], None),
        ({"json": b'{"caption": "of json"}', "txt": b"of txt"}, ["of json"], None),
        ({"json": b'["one", "two"]', "txt": b"of txt"}, ["one", "two"], None),
        ({"json": b'{"caption": null}', "txt": b"of txt"}, ["of txt"], None),
        ({"json": b'{"title": "of title"}', "txt": b"of txt"}, ["of txt"], None),
        ({"json": b'{"title": "of title"}', "txt": b" "}, ["of title"], None),
        ({"json": b'{"title": "IMG_0042"}'}, [], None),
        ({"text": b"of text"}, ["of text"], None),
        ({"caption": b"of caption", "cap": b"no"}, ["of caption"], None),
        ({"jpg.txt": b"of jpg", "png.txt": b"no"}, ["of jpg"], None),
        ({"png.txt": b"of another"}, [], None),
        ({"caption.txt": b"of both"}, ["of both"], None),
        ({"json": b'{"width": 3}', "txt": b"of txt"}, ["of txt"], None),
        ({"json": b'{"width": 3}', "cls": b"7"}, [], "7"),
        ({"json": b'{"label": 3}', "txt": b"of txt"}, ["of txt"], "3"),
        ({"json": b'{"label": "cat"}', "cls": b"dog\n"}, [], "dog"),
        ({"json": b'{"label": "cat"}', "cls": b" "}, [], "cat"),
        ({"JSON": b'{"de": "ein Hund"}'}, ["ein Hund"], None),
    ],
)
def test_captions_come_from_json_else_txt_and_the_label_from_cls_else_json(
    tmp_path: Path, members: dict[str, bytes], captions: list[str], label: str | None
) -> None:
    sample = only_sample(tmp_path, {"a.jpg": b"j", **{f"a.{e}": d for e, d in members.items()}})
    assert texts(sample) == captions
    assert sample.label == label


def scanned_by_endings(path: Path, *endings: str) -> list[list[str]]:
    source = open_source(path, caption_endings=parse_endings(endings))
    return [texts(each) for each in source.scan() if isinstance(each, Sample)]


def test_members_whose_ending_is_told_are_captions_and_no_others(tmp_path: Path) -> None:
    members = {"a.jpg": b"j", "a.txt": b"no", "a.blip": b"of blip", "a.syn.json": b'["one"]'}
    path = put_tar(tmp_path / "a.tar", members)
    assert scanned_by_endings(path, ".blip", "syn.json") == [["of blip", "one"]]
    assert scanned_by_endings(path, "syn.json") == [["one"]]


def test_members_of_text_that_nobody_reads_are_counted_by_ending(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(3):
        members |= {f"{i}.jpg": b"j", f"{i}.blip": b"a dog runs", f"{i}.npy": b"\x93NUMPY\0"}
    members["0.txt"] = b"one caption of three"
    samples, [note] = entries_of(put_tar(tmp_path / "a.tar", members))
    assert len(samples) == 3
    assert isinstance(note, Unused)
    assert (note.count, note.reason) == (3, "members ending in .blip that hold text, beside images")
    assert note.remedy == "--caption-ending .blip uses them as captions"


def test_members_without_a_letter_are_no_captions_unless_their_ending_is_told(
    tmp_path: Path,
) -> None:
    members = {"a.jpg": b"j", "a.txt": b"0 0.5 0.5 0.1 1e-5\n", "b.jpg": b"j", "b.txt": b"12"}
    path = put_tar(tmp_path / "a.tar", members)
    samples, [note] = entries_of(path)
    assert [texts(sample) for sample in samples] == [[], []]
    assert isinstance(note, Unused)
    reason = "members ending in .txt without a letter, such as labels of YOLO"
    assert (note.place, note.count, note.reason) == (f"{path} member 'a.txt'", 2, reason)
    assert scanned_by_endings(path, "txt") == [["0 0.5 0.5 0.1 1e-5"], ["12"]]


def test_accents_of_a_key_may_be_written_in_two_ways(tmp_path: Path) -> None:
    composed, apart = "K\u00e4fer", "Ka\u0308fer"
    sample = only_sample(tmp_path, {f"{composed}.jpg": b"j", f"{apart}.txt": b"a beetle"})
    assert (sample.key, texts(sample)) == (composed, ["a beetle"])
    members = {
        f"{name}.{e}": f"text {i}".encode()
        for i, name in enumerate([composed, apart])
        for e in ("jpg", "txt")
    }
    samples = samples_of(put_tar(tmp_path / "b.tar", members))
    assert [(each.key, texts(each)) for each in samples] == [
        (composed, ["text 0"]),
        (apart, ["text 1"]),
    ]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (SHA256, bytes.fromhex(SHA256)),
        (SHA256.upper(), bytes.fromhex(SHA256)),
        (None, None),
        (SHA256[:-1] + "g", None),
        (SHA256[:-2], None),
        (7, None),
    ],
)
def test_the_sha256_of_the_source_is_kept(
    tmp_path: Path, told: object, expected: bytes | None
) -> None:
    entry = json.dumps({"caption": "c", "sha256": told}).encode()
    assert only_sample(tmp_path, {"a.jpg": b"j", "a.json": entry}).source_sha256 == expected


@pytest.mark.parametrize(
    ("ending", "data", "reason"),
    [
        ("json", b"{", "malformed JSON (expecting property name enclosed in double quotes"),
        ("json", b'{"caption": 3}', "a caption is a number, expected text"),
        ("json", b'{"width": 3}', "no caption among 'width'"),
        ("json", b"\xff", "not UTF-8; save it as UTF-8"),
        ("json", b'{"label": [1], "caption": "c"}', "the label is a list, expected text"),
        ("txt", b"\xff\xfea\0", "not UTF-8 (it looks like UTF-16); save it as UTF-8"),
        ("txt", b"caf\xe9", "not UTF-8; save it as UTF-8"),
        ("cls", b"\xff", "not UTF-8; save it as UTF-8"),
    ],
)
def test_a_text_that_is_no_use_is_a_problem_and_its_image_a_sample(
    tmp_path: Path, ending: str, data: bytes, reason: str
) -> None:
    path = put_tar(tmp_path / "a.tar", {"a.jpg": b"j", f"a.{ending}": data})
    [sample], [problem] = entries_of(path)
    assert sample.key == problem.key == "a"
    assert problem.place == f"{path} member 'a.{ending}'"
    assert problem.reason.startswith(reason)


def test_a_text_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "a.tar", {"a.jpg": b"j", "a.txt": bytes(2**24 + 1)})
    assert reasons_of(path) == [("a.tar member 'a.txt'", "larger than 16,777,216 bytes")]


# -- what is wrong with a tar


def test_what_ails_every_sample_is_said_in_few_lines(tmp_path: Path) -> None:
    members = {f"{i:03d}.{e}": d for i in range(100) for e, d in (("jpg", b"j"), ("json", b"{"))}
    members |= {f"x{i:03d}.txt": b"t" for i in range(1004)}
    samples, problems = entries_of(put_tar(tmp_path / "a.tar", members))
    assert len(samples) == 100
    assert len(problems) == 8
    assert [p.reason for p in problems if p.place.endswith("a.tar")] == [
        "97 more: its .json is unusable, or a part of it",
        "1,001 more: there is no image to it",
    ]


def test_a_member_that_comes_twice_counts_once_and_is_a_problem(tmp_path: Path) -> None:
    members = [("a.jpg", b"one"), ("b.jpg", b"b"), ("a.jpg", b"two"), ("a.JPG", b"three")]
    samples, problems = entries_of(put_tar(tmp_path / "a.tar", members))
    assert [bytes_of(tmp_path, sample) for sample in samples] == [b"one", b"b"]
    assert [(p.place.rpartition(" ")[2], p.reason) for p in problems] == [
        ("'a.jpg'", "its sample has such a member already; the first is taken"),
        ("'a.JPG'", "its sample has such a member already; the first is taken"),
    ]


def test_images_that_are_not_used_are_told_three_of_each_kind_and_the_rest_counted(
    tmp_path: Path,
) -> None:
    members = {f"{i}.{ending}": b"x" for i in range(6) for ending in ("png", "jpg")}
    members |= {"0.webp": b"w"} | {f"photo.{i}.JPG": b"p" for i in range(5)}
    samples, problems = entries_of(put_tar(tmp_path / "a.tar", members))
    assert [sample.member for sample in samples] == [f"{i}.jpg" for i in range(6)]
    second = "a second image of its sample, not used"
    dotted = (
        "an image with a dot in its name before the ending, where WebDataset ends the key: not used; "
        "rename it unless it is a mask or the like"
    )
    assert [(p.place.removeprefix(str(tmp_path)), p.reason, p.key) for p in problems] == [
        *((f"/a.tar member 'photo.{i}.JPG'", dotted, None) for i in range(3)),
        ("/a.tar member '0.png'", second, "0"),
        ("/a.tar member '0.webp'", second, "0"),
        ("/a.tar member '1.png'", second, "1"),
        ("/a.tar", f"2 more: {dotted}", None),
        ("/a.tar", f"4 more: {second}", None),
    ]


def test_a_tar_of_dotted_images_alone_says_so(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "a.tar", {"photo.1.jpg": b"1", "photo.2.jpg": b"2"})
    first, second, lack = (reason for _, reason in reasons_of(path))
    assert first == second
    assert first.startswith("an image with a dot in its name before the ending")
    assert lack.startswith("no image among its 2 members; expected KEY.jpg, ")


def test_captions_without_an_image_are_a_problem_with_their_key(tmp_path: Path) -> None:
    path = put_tar(
        tmp_path / "a.tar", {"a.jpg": b"j", "b.json": b"{}", "b.txt": b"b", "c.npy": b"n"}
    )
    [problem] = entries_of(path)[1]
    assert problem == Problem(
        place=f"{path} member 'b.json'", reason="there is no image to it", key="b"
    )


def test_a_name_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "a.tar", [(b"\xe9.jpg", b"j"), ("b.jpg", b"b")], tarfile.GNU_FORMAT)
    assert reasons_of(path) == [("a.tar member '\\\\xe9.jpg'", "the member's name is not UTF-8")]


def test_links_that_are_named_like_images_are_counted(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "a.tar", {"a.jpg": b"j"})
    with tarfile.open(path, "a") as tar:
        for i, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]):
            for name in (f"{i}.jpg", f"{i}.npy"):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "a.jpg"
                tar.addfile(info)
    samples, [problem] = entries_of(path)
    assert len(samples) == 1
    assert problem.reason == "members that are no files: 2 of kind link and 1 of kind device"


def test_what_precedes_a_cut_is_used_and_the_cut_is_named(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "a.tar", {f"{i}.jpg": b"j" * 600 for i in range(4)})
    path.write_bytes(path.read_bytes()[: 3 * 1536 + 700])
    samples, [problem] = entries_of(path)
    assert [sample.key for sample in samples] == ["0", "1", "2"]
    assert problem.place == str(path)
    assert problem.reason == (
        "it is cut at byte 5,308, in the middle of '3.jpg', which would end at byte 5,720; "
        "3 images before that are used"
    )


TWO = [("0.jpg", b"0"), ("0.txt", b"zero"), ("1.jpg", b"1"), ("1.txt", b"one")]
ONE_TEXT = 6 * 512  # where the header of 1.txt begins, of headers without any before them
LEFT_OUT = "; its last sample '1' may lack members and is left out; 1 images before that are used"


@pytest.mark.parametrize("ending", ["txt", "JSON", "npy"])
def test_a_sample_with_a_member_that_is_cut_off_is_left_out_until_the_tar_is_whole(
    tmp_path: Path, ending: str
) -> None:
    members = [*TWO[:3], (f"1.{ending}", b'"text"' + b" " * 600)]
    path = put_tar(tmp_path / "a.tar", members)
    whole = path.read_bytes()
    path.write_bytes(whole[: ONE_TEXT + 512 + 20])
    [sample], [problem] = entries_of(path)
    assert sample.key == "0"
    assert problem == Problem(
        place=str(path),
        reason=f"it is cut at byte 3,604, in the middle of '1.{ending}', which would end at byte "
        f"4,190{LEFT_OUT}",
        key="1",
    )
    path.write_bytes(whole)
    assert [sample.key for sample in samples_of(path)] == ["0", "1"]


LONG_NAMED = [*TWO[:3], ("1." + "x" * 101, b"other")]  # its name needs a header of its own
PLAIN, PAX, GNU = tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT


@pytest.mark.parametrize(
    ("form", "num_bytes", "reason"),
    [
        (PLAIN, ONE_TEXT + 1, "it is cut in the middle of a header, at byte 3,073"),
        (PLAIN, ONE_TEXT + 511, "it is cut in the middle of a header, at byte 3,583"),
        (PAX, ONE_TEXT + 100, "it is cut in the middle of a header, at byte 3,172"),
        (PAX, ONE_TEXT + 512, "it is cut at byte 3,584, in the middle of an extended header"),
        (GNU, ONE_TEXT + 600, "it is cut at byte 3,672, in the middle of an extended header"),
        (
            PAX,
            ONE_TEXT + 1024,
            "it is cut at byte 4,096, after the name of a member that is missing",
        ),
        (
            GNU,
            ONE_TEXT + 1024,
            "it is cut at byte 4,096, after the name of a member that is missing",
        ),
        (GNU, ONE_TEXT + 1100, "it is cut in the middle of a header, at byte 4,172"),
        (PLAIN, ONE_TEXT - 1, "it has no end mark at byte 3,071 and may be cut"),
    ],
)
def test_of_a_tar_that_is_cut_in_what_precedes_a_member_the_last_sample_is_left_out(
    tmp_path: Path, form: int, num_bytes: int, reason: str
) -> None:
    path = put_tar(tmp_path / "a.tar", TWO if form == PLAIN else LONG_NAMED, form)
    path.write_bytes(path.read_bytes()[:num_bytes])
    [sample], [problem] = entries_of(path)
    assert sample.key == "0"
    assert problem.key == "1"
    assert problem.reason.startswith(reason)
    assert problem.reason.endswith(LEFT_OUT)


@pytest.mark.parametrize(
    ("at", "wrong", "reason"),
    [
        (ONE_TEXT, b"x", "it is damaged at byte 3,072, where a header should stand"),
        (ONE_TEXT, bytes(512), "there is more data after its end mark, from byte 3,584 on"),
    ],
)
def test_of_a_tar_that_is_damaged_at_a_header_the_last_sample_is_left_out(
    tmp_path: Path, at: int, wrong: bytes, reason: str
) -> None:
    path = put_tar(tmp_path / "a.tar", TWO)
    data = bytearray(path.read_bytes())
    data[at : at + len(wrong)] = wrong
    path.write_bytes(data)
    [sample], [problem] = entries_of(path)
    assert sample.key == "0"
    assert problem.reason.startswith(reason)
    assert problem.reason.endswith(LEFT_OUT)


@pytest.mark.parametrize(
    ("more", "reason"), [(0, "it has no end mark"), (7, "it has no whole end mark")]
)
def test_of_a_tar_that_lacks_only_its_end_mark_every_sample_is_used(
    tmp_path: Path, more: int, reason: str
) -> None:
    path = put_tar(tmp_path / "a.tar", TWO)
    path.write_bytes(path.read_bytes()[: 8 * 512 + more])
    samples, [problem] = entries_of(path)
    assert [sample.key for sample in samples] == ["0", "1"]
    assert problem.reason.startswith(reason)
    assert problem.reason.endswith("may be cut; 2 images before that are used")
    assert problem.key is None


def test_a_sample_is_whole_where_a_member_of_another_follows_before_the_fault(
    tmp_path: Path,
) -> None:
    path = put_tar(tmp_path / "a.tar", [*TWO, ("2.npy", b"n"), ("3.npy", b"n")])
    path.write_bytes(path.read_bytes()[: 10 * 512 + 100])
    samples, [problem] = entries_of(path)
    assert [sample.key for sample in samples] == ["0", "1"]
    assert problem.reason == (
        "it is cut in the middle of a header, at byte 5,220; 2 images before that are used"
    )


def test_a_last_sample_whose_image_is_behind_the_fault_is_left_out_too(tmp_path: Path) -> None:
    path = put_tar(tmp_path / "a.tar", [*TWO[:2], ("1.cls", b"1"), ("1.jpg", b"1")])
    path.write_bytes(path.read_bytes()[: ONE_TEXT + 5])
    [sample], [problem] = entries_of(path)
    assert sample.key == "0"
    assert problem.reason.endswith(LEFT_OUT)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({}, "no image among its 0 members; expected KEY.jpg, KEY.jpeg, KEY.png, KEY.webp"),
        ({"a.npy": b"n", "b": b"b"}, "no image among its 2 members; expected KEY.jpg"),
    ],
)
def test_a_tar_without_images_says_what_it_lacks(
    tmp_path: Path, members: dict[str, bytes], reason: str
) -> None:
    [(place, found)] = reasons_of(put_tar(tmp_path / "a.tar", members))
    assert place == "a.tar"
    assert reason in found


@pytest.fixture(scope="module")
def whole_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar with some of everything, and room to write another beside it."""
    members = [
        *(("a.jpg", b"jpg"), ("b.png", b"png"), ("a.json", b'{"caption": "c", "label": 1}')),
        *(("f/" * 60 + "c.jpg", b"long"), ("\u00e9.webp", b"webp"), ("b.txt", b"text")),
        *(("b.cls", b"4"), ("d.txt", b"no image"), ("e.npy", b"other")),
    ]
    return put_tar(tmp_path_factory.mktemp("whole") / "whole.tar", members)


@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 10**6), st.one_of(st.sampled_from(b"\0/.gL5"), st.integers(0, 255))
        )
    ),
    cut=st.integers(0, 20_000),
)
@settings(max_examples=150, deadline=None)
def test_whatever_is_damaged_a_scan_ends_and_what_it_gives_can_be_stored_and_read(
    whole_tar: Path, edits: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(whole_tar.read_bytes())
    for position, byte in edits:
        data[position % len(data)] = byte
    path = whole_tar.with_name("damaged.tar")
    path.write_bytes(data[:cut] if cut < len(data) else data)
    scanner = Scanner(LocalStorage(path.parent), keeps=False)
    refusals: list[str] = []
    try:
        for frame in scanner.frames(WebDatasetSource(path, files=(path,))):
            frame.write_ipc(io.BytesIO())
    except SourceError as error:  # damage that looks like a compressed file
        refusals.append(str(error))
    assert all("is compressed" in refusal for refusal in refusals)
    samples = [] if refusals else list(open_source(path).scan())
    for sample in samples:
        if isinstance(sample, Sample) and sample.length:
            reason = None
            try:
                assert len(bytes_of(path.parent, sample)) == sample.length
            except ReadError as error:  # another name in an extended header than in the plain one
                reason = str(error)
            assert reason is None or "changed since it was planned" in reason


# -- which tars


def put_shards(root: Path, *names: str) -> Path:
    for name in names:
        put_tar(root / name, {f"{Path(name).stem}.jpg": name.encode()})
    return root


@pytest.mark.parametrize(
    ("location", "root", "paths"),
    [
        ("s/001.tar", "s", ["001.tar"]),
        ("s", "s", ["000.tar", "001.tar", "002.TAR"]),
        ("s/*.tar", "s", ["000.tar", "001.tar"]),
        ("s/{001..001}.tar", "s", ["001.tar"]),
        ("{t,s}/00*.tar", ".", ["t/009.tar", "s/000.tar", "s/001.tar"]),
        ("**/00[019].tar", ".", ["s/000.tar", "s/001.tar", "t/009.tar"]),
    ],
)
def test_a_source_is_a_tar_a_folder_or_a_pattern_of_tars(
    tmp_path: Path, location: str, root: str, paths: list[str]
) -> None:
    put_shards(tmp_path, "s/001.tar", "s/000.tar", "s/002.TAR", "t/009.tar")
    source = open_source(tmp_path / location)
    assert isinstance(source, WebDatasetSource)
    assert source.kind == "webdataset"
    assert source.root == (tmp_path / root)
    assert [piece.name for piece in source.parts()] == paths
    assert [sample.path for sample in samples_of(tmp_path / location)] == paths
    assert [Path(p).stem for p in paths] == [s.key for s in samples_of(tmp_path / location)]


def test_a_missing_shard_that_braces_spell_out_is_a_problem(tmp_path: Path) -> None:
    put_shards(tmp_path, "000.tar", "002.tar")
    samples, problems = entries_of(tmp_path / "{000..002}.tar")
    assert [sample.key for sample in samples] == ["000", "002"]
    assert problems == [Problem(place=f"{tmp_path}/001.tar", reason="no such file")]


def test_a_folder_of_images_stays_one_and_names_the_tars_in_it(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar", "sub/b.tar.gz")
    (tmp_path / "x.jpg").write_bytes(b"j")
    assert isinstance(open_source(tmp_path), FolderSource)
    samples, problems = entries_of(tmp_path)
    assert [sample.path for sample in samples] == ["x.jpg"]
    reason = "an archive in a folder of images is not read; name it as a source of its own"
    assert problems == [
        Problem(place=f"{tmp_path}/{name}", reason=reason) for name in ("a.tar", "sub/b.tar.gz")
    ]


def test_sub_folders_beside_tars_are_named(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar")
    for name in ("val", "_tmp", ".git", "extra"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    (tmp_path / "empty").mkdir()
    [problem] = entries_of(tmp_path)[1]
    assert problem.place == str(tmp_path)
    assert problem.reason.startswith("its sub-folders extra, val are not read")


def test_a_cache_beside_tars_is_not_named_at_any_time_of_its_life(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar")
    before = open_source(tmp_path).fingerprint()
    cache = tmp_path / "cache"
    cache.mkdir()
    fingerprints = {before, open_source(tmp_path).fingerprint()}
    (cache / "catalog").mkdir()
    fingerprints.add(open_source(tmp_path).fingerprint())
    (cache / "cache.json.0123456789ab.partial").touch()
    fingerprints.add(open_source(tmp_path).fingerprint())
    (cache / "cache.json").touch()
    (cache / "teachers").mkdir()
    fingerprints.add(open_source(tmp_path).fingerprint())
    assert fingerprints == {before}
    (cache / "cache.json").unlink()
    assert open_source(tmp_path).fingerprint() != before


def test_a_cache_in_the_corpus_adds_no_generation(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar")
    config = PlanConfig(sources=(str(tmp_path),))
    files = LocalStorage(tmp_path / "cache")
    assert make_plan(config, files).was_scanned
    assert not make_plan(config, files).was_scanned
    assert entries_of(tmp_path)[1] == []


def test_a_folder_whose_tars_lie_deeper_says_which_pattern_finds_them(tmp_path: Path) -> None:
    put_shards(tmp_path, "train/a.tar", "val/b.tar")
    with pytest.raises(SourceError, match=rf"name its 2 archives: '{tmp_path}/\*\*/\*.tar'"):
        entries_of(tmp_path)
    assert len(samples_of(f"{tmp_path}/**/*.tar")) == 2


def test_a_tar_and_a_table_in_one_pattern_are_refused(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar")
    (tmp_path / "a.csv").touch()
    with pytest.raises(SourceError, match="names files of several kinds"):
        open_source(tmp_path / "a.*")


def test_columns_are_refused(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar")
    for location in (tmp_path, tmp_path / "a.tar", tmp_path / "*.tar"):
        with pytest.raises(SettingError, match="columns are for tables"):
            open_source(location, columns=TableColumns(key="id"))


def test_a_tar_that_may_not_be_read_is_a_problem_until_it_may() -> None:
    with open_folder() as root:
        put_shards(root, "a.tar", "b.tar")
        (root / "a.tar").chmod(0)
        with unprivileged(root):
            before = open_source(root).fingerprint()
            assert reasons_of(root) == [("a.tar", "it cannot be read (Permission denied)")]
            assert [sample.key for sample in entries_of(root)[0]] == ["b"]
        (root / "a.tar").chmod(0o644)
        with unprivileged(root):
            assert open_source(root).fingerprint() != before
            assert [sample.key for sample in samples_of(root)] == ["a", "b"]


def test_what_is_no_file_is_a_problem(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar")
    (tmp_path / "b.tar").mkdir()
    os.mkfifo(tmp_path / "c.tar")
    (tmp_path / "d.tar").symlink_to("nowhere")
    (tmp_path / "e.tar").symlink_to("e.tar")
    assert reasons_of(tmp_path / "{a,b,c,d}.tar") == [
        *(("b.tar", "not a regular file"), ("c.tar", "not a regular file")),
        ("d.tar", "no such file"),
    ]
    with pytest.raises(SourceError, match=r"e\.tar cannot be read \(Too many levels"):
        entries_of(tmp_path)


# -- compressed

PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a b.tar.gz", "gunzip -k 'DIR/a b.tar.gz'"),
        ("a.tgz", "gunzip -k DIR/a.tgz"),
        ("a.TAR.BZ2", "bunzip2 -k DIR/a.TAR.BZ2"),
        ("a.tar.xz", "unxz -k DIR/a.tar.xz"),
        ("a.tar.zst", "zstd -d DIR/a.tar.zst"),
        ("a.tar.lz4", "lz4 -d DIR/a.tar.lz4"),
    ],
)
def test_a_compressed_tar_is_refused_with_the_command_that_unpacks_it(
    tmp_path: Path, name: str, command: str
) -> None:
    put_shards(tmp_path, "whole.tar")
    (tmp_path / name).touch()
    for location in (tmp_path / name, tmp_path, tmp_path / "*a*"):
        with pytest.raises(SourceError) as refused:
            open_source(location)
        assert str(refused.value) == (
            f"{tmp_path}/{name} is compressed, so single images in it cannot be read; "
            f"unpack it: {command.replace('DIR', str(tmp_path))}"
        )


@pytest.mark.parametrize("form", PACK)
def test_a_tar_that_is_compressed_whatever_its_name_is_refused(tmp_path: Path, form: str) -> None:
    put_shards(tmp_path, "0.tar")
    path = put_tar(tmp_path / "a b.tar", {"a.jpg": b"j"})
    path.write_bytes(PACK[form](path.read_bytes()))
    with pytest.raises(SourceError, match="is compressed, so single images") as refused:
        entries_of(tmp_path)
    command = str(refused.value).partition("unpack it: ")[2]
    assert shlex.quote(f"{path}.{form}") in command
    subprocess.run(command, shell=True, check=True)
    if form != "bz2":  # its program may keep the packed one beside it: -k
        (tmp_path / f"a b.tar.{form}").unlink(missing_ok=True)
    assert [sample.key for sample in samples_of(tmp_path)] == ["0", "a"]


def test_a_compressed_tar_that_is_there_unpacked_is_passed_over(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar", "b.tar")
    for name in ("a.tar.gz", "b.tgz"):
        (tmp_path / name).touch()
    assert [sample.path for sample in samples_of(tmp_path)] == ["a.tar", "b.tar"]


# -- fingerprints


def test_the_fingerprint_changes_with_size_time_and_names_and_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shards(tmp_path, "a.tar", "b.tar")

    def fingerprint() -> str:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", None)
            return open_source(tmp_path).fingerprint()

    seen = {fingerprint(), fingerprint()}
    assert len(seen) == 1
    os.utime(tmp_path / "a.tar", ns=(7, 7))
    seen.add(fingerprint())
    (tmp_path / "b.tar").rename(tmp_path / "c.tar")
    seen.add(fingerprint())
    put_tar(tmp_path / "a.tar", {"a.jpg": bytes(20_000)})
    os.utime(tmp_path / "a.tar", ns=(7, 7))
    seen.add(fingerprint())
    assert len(seen) == 4


def test_a_piece_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    put_shards(tmp_path, "a.tar", "b.tar")
    before = [piece.fingerprint for piece in open_source(tmp_path).parts()]
    os.utime(tmp_path / "b.tar", ns=(7, 7))
    after = [piece.fingerprint for piece in open_source(tmp_path).parts()]
    assert before[0] == after[0]
    assert before[1] != after[1]


# -- size


def test_a_member_takes_little_memory(tmp_path: Path) -> None:
    num_samples = 10_000
    path = put_tar(
        tmp_path / "a.tar",
        {f"{i:09d}.{e}": b"t" for i in range(num_samples) for e in ("jpg", "txt")},
        tarfile.USTAR_FORMAT,
    )
    source = open_source(path)
    tracemalloc.start()
    num_found = sum(isinstance(entry, Sample) for entry in source.scan())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_found == num_samples
    assert peak < 200 * 2 * num_samples  # bytes a member
