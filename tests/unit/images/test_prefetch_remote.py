"""Images in object stores: fetched many at a time by whoever decodes; what is wrong with one and all."""

import io
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.fakes import draw_image
from kit.memory_bucket import MemoryBucket, memory_bucket
from kit.patience import PATIENCE_S
from upath import UPath

from siglip2_cache.errors import StorageError
from siglip2_cache.images.decoder import Decoder
from siglip2_cache.images.image import ImageRef, PixelFormat
from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.images.parquet_cells import ReadError
from siglip2_cache.images.prefetch_remote import prefetch_remote, strip_location
from siglip2_cache.siglip import SquashRecipe
from siglip2_cache.store.format.views import WHOLE_IMAGE
from siglip2_cache.store.io import requests
from siglip2_cache.store.io.location import parse_location


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBucket]:
    monkeypatch.setattr(requests, "_WAITS_S", (0.01, 0.01))
    with memory_bucket() as made:
        yield made


def picture(number: int) -> bytes:
    sink = io.BytesIO()
    draw_image(number).save(sink, "PNG")
    return sink.getvalue()


def ref_of(row: int, url: str, **place: int | str) -> ImageRef:
    return ImageRef(row, ImageLocation(path=parse_location(url), **place), (WHOLE_IMAGE,))  # type: ignore[arg-type]


def batches_of(refs: Sequence[ImageRef], size: int) -> list[tuple[int, list[ImageRef]]]:
    return [(i, list(refs[i : i + size])) for i in range(0, len(refs), size)]


def test_batches_come_in_order_with_bytes_read_many_at_a_time(bucket: MemoryBucket) -> None:
    refs = [ref_of(i, bucket.put(f"{i}.png", b"%d" % i)) for i in range(40)]
    meeting = threading.Barrier(20)
    bucket.before = lambda method, path: meeting.wait(5) and None  # passes for twenty at once
    found = list(prefetch_remote(batches_of(refs, 10)))
    assert [tag for tag, _ in found] == [0, 10, 20, 30]
    assert [ref.data for _, part in found for ref in part] == [b"%d" % i for i in range(40)]
    assert bucket.requests == {"cat_file": 40}  # one request an image, none to ask for its size


def test_no_more_bytes_are_under_way_than_allowed(bucket: MemoryBucket) -> None:
    refs = [ref_of(i, bucket.put(f"{i}", b"x" * 100), file_bytes=100) for i in range(20)]
    taken = 0

    def source() -> Iterator[tuple[int, list[ImageRef]]]:
        nonlocal taken
        for batch in batches_of(refs, 1):
            taken += 1
            yield batch

    for number, _ in enumerate(prefetch_remote(source(), max_bytes=300)):
        assert taken <= number + 4


def test_a_member_is_read_with_its_header_in_one_request(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.png", b"first"), ("b.png", b"second")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    url = bucket.put("a.tar", (tmp_path / "a.tar").read_bytes())
    place = ImageLocation(path=parse_location(url), member="b.png", offset=1536, length=6)
    assert read_image_bytes(place) == b"second"
    assert bucket.requests == {"cat_file": 1}
    with pytest.raises(ReadError, match=r"the archive changed .* start of 'c\.png' with 6 bytes"):
        read_image_bytes(replace(place, member="c.png"))
    bucket.put("a.tar", (tmp_path / "a.tar").read_bytes()[:1540])
    with pytest.raises(ReadError, match="truncated: 4 bytes, 6 were planned"):
        read_image_bytes(place)


def test_images_of_a_part_are_read_in_one_request_while_it_is_among_the_last(
    bucket: MemoryBucket,
) -> None:
    parts = [(0, 30), (30, 60), (60, 90)]
    url = bucket.put("a.bin", b"".join(b"%03d" % i for i in range(30)))
    refs = [
        replace(ref_of(i, url, offset=3 * i, length=3, file_bytes=90), part=parts[i // 10])
        for i in (0, 10, 1, 11, 2, 20, 3, 12)
    ]
    found = [ref for _, part in prefetch_remote(batches_of(refs, 2), open_parts=2) for ref in part]
    assert [ref.data for ref in found] == [b"%03d" % ref.row for ref in refs]
    assert bucket.requests["cat_file"] == 4  # the second part was dropped for the third


def test_what_is_wrong_with_one_image_is_its_reason(bucket: MemoryBucket) -> None:
    def denied(method: str, path: str) -> None:
        if path.endswith("secret"):
            raise PermissionError("Forbidden")

    bucket.before = denied
    refs = [
        ref_of(0, bucket.put("secret", b"1")),
        ref_of(1, f"{bucket.url}/gone"),
        ref_of(2, bucket.put("empty", b"")),
        ref_of(3, bucket.put("huge", b"1"), file_bytes=2**40),
        ref_of(4, bucket.put("part", b"12345"), offset=1, length=2, file_bytes=9),
    ]
    [(_, found)] = prefetch_remote([(None, refs)])
    assert [ref.fault for ref in found] == [
        "cannot be read: the store denies access",
        "no such file",
        "empty: 0 bytes",
        f"too large: {2**40:,} bytes, the limit is {2**31:,}",
        "the file changed since it was planned: 5 bytes, it had 9",
    ]


def test_a_store_that_is_away_for_a_moment_rejects_nothing(bucket: MemoryBucket) -> None:
    failed: set[str] = set()

    def once(method: str, path: str) -> None:
        if path not in failed:
            failed.add(path)
            raise OSError(16, "SlowDown")

    refs = [ref_of(i, bucket.put(f"{i}", b"x")) for i in range(10)]
    bucket.before = once
    [(_, found)] = prefetch_remote([(None, refs)])
    assert {ref.data for ref in found} == {b"x"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_store_that_stays_away_ends_the_decoding(bucket: MemoryBucket, num_workers: int) -> None:
    refs = [ref_of(i, bucket.put(f"{i}.png", picture(i))) for i in range(8)]

    def away(method: str, path: str) -> None:
        if path.endswith("5.png"):
            raise ConnectionResetError("reset")

    bucket.before = away
    form = PixelFormat(num_views=1, recipe=SQUASH)
    decoder = Decoder(form, batch_images=4, num_workers=num_workers, timeout_s=PATIENCE_S)
    with pytest.raises(StorageError, match=r"5\.png is unreachable: reset"):
        list(decoder.decode(batches_of(refs, 4)))


SQUASH = SquashRecipe(size=(16, 16), resample=2)


def test_a_decoder_sees_the_same_pixels_and_its_clock_does_not_run_while_a_store_is_waited_for(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
        bucket.put(f"{i}.png", picture(i))

    def slow(method: str, path: str) -> None:
        if path.endswith("3.png"):
            time.sleep(2.5)  # longer than a decoder waits for an image

    bucket.before = slow
    ours = [ref_of(i, f"{bucket.url}/{i}.png") for i in range(6)]
    theirs = [ref_of(i, str(tmp_path / f"{i}.png")) for i in range(6)]
    form = PixelFormat(num_views=1, recipe=SQUASH)
    remote = Decoder(form, batch_images=3, num_workers=1, timeout_s=2)
    local = Decoder(form, batch_images=3, num_workers=0, timeout_s=PATIENCE_S)
    expected = [batch.pixels.copy() for batch in local.decode(batches_of(theirs, 3))]
    found = [
        (b.pixels.copy(), [i.reason for i in b.images]) for b in remote.decode(batches_of(ours, 3))
    ]
    for (pixels, reasons), wanted in zip(found, expected, strict=True):
        assert reasons == [None] * 3
        assert (pixels == wanted).all()


def test_a_decoding_process_is_told_no_place_of_a_store(bucket: MemoryBucket) -> None:
    ref = ref_of(0, bucket.put("x", b"1"))
    [(_, [read])] = prefetch_remote([(None, [ref])])
    assert isinstance(read.location.path, UPath)
    assert strip_location(read).location.path == Path()
    assert strip_location(read).data == b"1"
    here = ref_of(0, "/data/x.png")
    assert strip_location(here) is here


def test_rows_of_parquet_files_are_read_row_group_by_row_group(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    data = [bytes([65 + i]) * 1000 for i in range(12)]
    pq.write_table(
        pa.table({"image": pa.array(data, pa.binary())}), tmp_path / "p", row_group_size=4
    )
    url = bucket.put("p.parquet", (tmp_path / "p").read_bytes())
    size = (tmp_path / "p").stat().st_size
    refs = [
        ref_of(i, url, member="image", row_group=i // 4, index=i % 4, file_bytes=size)
        for i in range(12)
    ]
    form = PixelFormat(num_views=1, recipe=SQUASH)
    decoder = Decoder(form, batch_images=4, num_workers=0, timeout_s=PATIENCE_S)
    bucket.requests.clear()
    batches = list(decoder.decode(batches_of(refs, 4)))
    assert bucket.requests["cat_file"] <= 4
    reasons = {image.reason for batch in batches for image in batch.images}
    assert reasons == {f'not an image: it is text, "{chr(65 + i) * 40}"' for i in range(12)}
    [(_, [gone])] = [
        (None, [replace(refs[0], location=replace(refs[0].location, file_bytes=size + 1))])
    ]
    with pytest.raises(ReadError, match="the file changed since it was planned"):
        read_image_bytes(gone.location)


def test_an_image_that_grew_since_it_was_planned_is_read_whole(bucket: MemoryBucket) -> None:
    place = ImageLocation(path=parse_location(bucket.put("x", b"12345")), file_bytes=3)
    assert read_image_bytes(place) == b"12345"
    assert read_image_bytes(replace(place, file_bytes=5)) == b"12345"
    assert read_image_bytes(replace(place, file_bytes=9)) == b"12345"
    assert read_image_bytes(replace(place, file_bytes=None)) == b"12345"
