"""Reading an image's bytes where they lie: whole files, members of archives, rows of Parquet files."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.images.parquet_cells import ReadError
from siglip2_cache.images.tar_header import BLOCK, parse_header


def write_tar(path: Path, members: dict[str, bytes], format_: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=format_) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def places_in(path: Path) -> dict[str, ImageLocation]:
    with tarfile.open(path) as tar:
        return {
            m.name: ImageLocation(path=path, member=m.name, offset=m.offset_data, length=m.size)
            for m in tar
        }


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"0123456789")
    assert read_image_bytes(ImageLocation(path=path)) == b"0123456789"


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_member_of_an_archive_is_read_in_place(tmp_path: Path, format_: int) -> None:
    long = "/".join(["a-folder-of-some-length"] * 8)
    members = {"a.jpg": b"first", "dir/b.0.jpg": b"x" * 700, "c.jpg": b"last"}
    if format_ != tarfile.USTAR_FORMAT:
        members |= {f"{long}/{'n' * 120}.jpg": b"long", "Ünïcödé/猫.jpg": b"cat"}
    else:
        members[f"{long[:140]}/d.jpg"] = b"in two fields"
    write_tar(tmp_path / "a.tar", members, format_)
    found = places_in(tmp_path / "a.tar")
    assert {name: read_image_bytes(place) for name, place in found.items()} == members


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"b.jpg": b"second"}, id="another name"),
        pytest.param({"a.jpg": b"longer than before"}, id="another size"),
        pytest.param({"longer.txt": b"x" * 600, "a.jpg": b"second"}, id="another place"),
    ],
)
def test_an_archive_written_anew_gives_no_bytes_of_another_member(
    tmp_path: Path, changed: dict[str, bytes]
) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"a.jpg": b"first!", "z.jpg": b"end"})
    place = places_in(path)["a.jpg"]
    write_tar(path, changed)
    with pytest.raises(
        ReadError, match=r"archive changed .* byte 512 is not the start of 'a\.jpg' with 6 bytes"
    ):
        read_image_bytes(place)


def test_an_archive_that_grew_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"a.jpg": b"first"})
    place = places_in(path)["a.jpg"]
    write_tar(path, {"a.jpg": b"first", "b.jpg": b"second"})
    assert read_image_bytes(place) == b"first"


def test_a_part_of_a_file_of_another_size_than_planned_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(b"0123456789")
    place = ImageLocation(path=path, offset=2, length=3, file_bytes=10)
    assert read_image_bytes(place) == b"234"
    path.write_bytes(b"01234567890")
    with pytest.raises(ReadError, match="changed since it was planned: 11 bytes, it had 10"):
        read_image_bytes(place)


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_row_of_a_parquet_file_is_read(tmp_path: Path, is_nested: bool) -> None:
    path = tmp_path / "a.parquet"
    images = [b"%d" % i * (i + 1) for i in range(10)]
    cells = [{"bytes": i, "path": "x.jpg"} for i in images] if is_nested else images
    pq.write_table(pa.table({"jpg": cells, "other": range(10)}), path, row_group_size=4)
    member = "jpg.bytes" if is_nested else "jpg"
    for i, image in enumerate(images):
        place = ImageLocation(path=path, member=member, row_group=i // 4, index=i % 4)
        assert read_image_bytes(place) == image
    with pytest.raises(ReadError, match="the row no longer exists"):
        read_image_bytes(ImageLocation(path=path, member=member, row_group=2, index=2))
    with pytest.raises(ReadError, match="the row no longer exists"):
        read_image_bytes(ImageLocation(path=path, member=member, row_group=3, index=0))


def test_a_row_without_bytes_is_empty(tmp_path: Path) -> None:
    cells = pa.array([None, {"bytes": None}], pa.struct({"bytes": pa.binary()}))
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    for index in (0, 1):
        place = ImageLocation(
            path=tmp_path / "a.parquet", member="image.bytes", row_group=0, index=index
        )
        with pytest.raises(ReadError, match="empty: 0 bytes"):
            read_image_bytes(place)


def test_what_is_no_parquet_file_any_more_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    place = ImageLocation(path=tmp_path / "a.parquet", member="image", row_group=0, index=0)
    with pytest.raises(ReadError, match="cannot be read as Parquet: "):
        read_image_bytes(place)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "empty: 0 bytes"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "image")
    with pytest.raises(ReadError) as caught:
        read_image_bytes(ImageLocation(path=tmp_path / "image"))
    assert str(caught.value) == message


def test_a_missing_file_with_a_backslash_in_its_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReadError) as caught:
        read_image_bytes(ImageLocation(path=tmp_path / "images\\a.jpg"))
    assert str(caught.value) == "no such file; its path has a backslash, write / between folders"


def test_a_part_that_ends_with_the_file_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(ReadError, match="truncated: 2 bytes, 5 were planned"):
        read_image_bytes(ImageLocation(path=tmp_path / "a", offset=1, length=5))


def test_a_file_below_a_file_is_no_such_file_but_says_so(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(ReadError, match="cannot be read: Not a directory"):
        read_image_bytes(ImageLocation(path=tmp_path / "a" / "b"))


# -- headers


def test_a_block_that_is_no_header_is_none() -> None:
    assert parse_header(b"") is None
    assert parse_header(bytes(BLOCK)) is None
    assert parse_header(b"\xff" * BLOCK) is None


def test_one_flipped_bit_makes_a_header_none() -> None:
    member = tarfile.TarInfo("a.jpg")
    member.size = 5
    block = member.tobuf()
    found = parse_header(block)
    assert found is not None
    assert (found.name, found.size, found.kind) == (b"a.jpg", 5, b"0")
    for position in range(0, BLOCK, 7):
        flipped = bytearray(block)
        flipped[position] ^= 4
        assert parse_header(bytes(flipped)) != found


def test_a_size_of_many_gigabytes_is_read() -> None:
    member = tarfile.TarInfo("a.jpg")
    member.size = 2**40
    found = parse_header(member.tobuf(format=tarfile.GNU_FORMAT))
    assert found is not None
    assert found.size == 2**40


def test_a_member_of_many_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    member = tarfile.TarInfo("a.jpg")
    member.size = 2**33
    with path.open("wb") as file:
        file.write(member.tobuf(format=tarfile.GNU_FORMAT))
        file.truncate(BLOCK + member.size)  # sparse: it takes no room
    place = ImageLocation(path=path, member="a.jpg", offset=BLOCK, length=member.size)
    with pytest.raises(ReadError, match="too large: 8,589,934,592 bytes, the limit is"):
        read_image_bytes(place)
