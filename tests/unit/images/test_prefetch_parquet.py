"""Images of Parquet files, read ahead of the decoders: once, in order, bounded, going on past damage."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip2_cache.images import prefetch_parquet as parquet_images
from siglip2_cache.images.image import ImageRef
from siglip2_cache.images.image_bytes import ImageLocation
from siglip2_cache.images.prefetch_parquet import RowReader, prefetch_parquet
from siglip2_cache.store.format.views import WHOLE_IMAGE


def write(path: Path, images: Sequence[bytes | None], row_group_size: int, **more: Any) -> Path:
    table = pa.table({"image": [{"bytes": image, "path": "x"} for image in images]})
    pq.write_table(table, path, row_group_size=row_group_size, **more)
    return path


def ref_of(path: Path, row: int, row_group_size: int = 4, **more: Any) -> ImageRef:
    group, index = divmod(row, row_group_size)
    place = ImageLocation(path=path, member="image.bytes", row_group=group, index=index, **more)
    return ImageRef(row, place, (WHOLE_IMAGE,))


def settled(taken: Sequence[int]) -> int:
    """How many were taken, once no more are."""
    before = -1
    while before != len(taken):
        before = len(taken)
        time.sleep(0.05)
    return before


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every start of a row group: (file, row group)."""
    starts: list[tuple[str, int]] = []
    real = parquet_images.leaf_batches

    def spy(file: Any, member: str, row_group: int, **more: Any) -> Iterator[Any]:
        starts.append((member, row_group))
        return real(file, member, row_group, **more)

    monkeypatch.setattr(parquet_images, "leaf_batches", spy)
    return starts


def test_batches_across_files_and_row_groups_get_the_bytes_of_each_row_in_one_pass(
    tmp_path: Path, opened: list[tuple[str, int]]
) -> None:
    a = write(tmp_path / "a.parquet", [b"a%d" % i for i in range(10)], 4)
    b = write(tmp_path / "b.parquet", [b"b%d" % i for i in range(5)], 4)
    refs = [*(ref_of(a, i) for i in range(10)), *(ref_of(b, i) for i in range(5))]
    batches = [(i, refs[i : i + 3]) for i in range(0, 15, 3)]
    found = list(prefetch_parquet(batches))
    assert [tag for tag, _ in found] == [0, 3, 6, 9, 12]
    assert [ref.data for _, read in found for ref in read] == [
        *(b"a%d" % i for i in range(10)), *(b"b%d" % i for i in range(5)),
    ]  # fmt: skip
    assert [group for _, group in opened] == [0, 1, 2, 0, 1]


def test_rows_that_are_not_wanted_are_passed_over_and_an_earlier_one_is_found_again(
    tmp_path: Path, opened: list[tuple[str, int]]
) -> None:
    path = write(tmp_path / "a.parquet", [b"%d" % i for i in range(12)], 4)
    refs = [ref_of(path, i) for i in (1, 3, 2, 9, 2)]
    ((_, found),) = prefetch_parquet([(None, refs)])
    assert [ref.data for ref in found] == [b"1", b"3", b"2", b"9", b"2"]
    assert [group for _, group in opened] == [0, 0, 2, 0]


def test_row_groups_read_by_turns_are_each_decoded_once(
    tmp_path: Path, opened: list[tuple[str, int]]
) -> None:
    a = write(tmp_path / "a.parquet", [b"a%d" % i for i in range(8)], 4)
    b = write(tmp_path / "b.parquet", [b"b%d" % i for i in range(4)], 4)
    rows = [(a, 0), (b, 0), (a, 4), (a, 1), (b, 2), (a, 7), (a, 3), (b, 3)]
    refs = [ref_of(path, row) for path, row in rows]
    ((_, found),) = prefetch_parquet([(None, refs)], open_groups=3)
    assert [ref.data for ref in found] == [f"{path.stem}{row}".encode() for path, row in rows]
    assert [group for _, group in opened] == [0, 0, 1]
    opened.clear()
    ((_, found),) = prefetch_parquet([(None, refs)], open_groups=2)  # one too few
    assert [ref.data for ref in found] == [f"{path.stem}{row}".encode() for path, row in rows]
    assert len(opened) > 3


def test_no_more_files_are_open_than_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[pq.ParquetFile] = []
    real = parquet_images.open_rows

    def spy(place: ImageLocation) -> Any:
        files.append(real(place))
        return files[-1]

    monkeypatch.setattr(parquet_images, "open_rows", spy)
    reader = RowReader(open_groups=2)
    for i in range(5):
        reader.read(ref_of(write(tmp_path / f"{i}.parquet", [b"0", b"1"], 1), 1, 1))
        assert sum(not file.closed for file in files) <= 2
    assert len(files) == 5
    reader.close()
    assert all(file.closed for file in files)


def test_a_row_asked_for_again_at_once_is_not_decoded_again(
    tmp_path: Path, opened: list[tuple[str, int]]
) -> None:
    path = write(tmp_path / "a.parquet", [b"0", None, b"2", b"3"], 4)
    refs = [ref_of(path, row) for row in (0, 0, 1, 1, 3, 3, 3)]
    ((_, found),) = prefetch_parquet([(None, refs)])
    assert [ref.data for ref in found] == [b"0", b"0", None, None, b"3", b"3", b"3"]
    assert [ref.fault for ref in found[2:4]] == ["empty: 0 bytes"] * 2
    assert len(opened) == 1


def test_images_elsewhere_are_left_to_the_workers_and_need_no_thread(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"0", b"1"], 4)
    plain = ImageRef(7, ImageLocation(path=tmp_path / "gone.jpg"), (WHOLE_IMAGE,))
    before = threading.active_count()
    ready = prefetch_parquet([(0, [plain]), (1, [plain, ref_of(path, 1)])])
    assert next(ready) == (0, [plain])
    assert threading.active_count() == before
    assert next(ready)[1][0] == plain
    ready.close()
    assert threading.active_count() == before


def test_no_more_is_read_ahead_than_was_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"x" * 1000 for _ in range(40)], 40)
    taken: list[int] = []

    def batches() -> Iterator[tuple[int, list[ImageRef]]]:
        for i in range(20):
            taken.append(i)
            yield i, [ref_of(path, 2 * i, 40), ref_of(path, 2 * i + 1, 40)]

    ready = prefetch_parquet(batches(), max_bytes=6000)
    next(ready)
    assert settled(taken) <= 5  # one handed over, three waiting, one read that waits for room
    assert len(list(ready)) == 19


def test_batches_that_carry_no_bytes_are_not_taken_far_ahead(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"0"], 4)
    plain = ImageRef(7, ImageLocation(path=tmp_path / "gone.jpg"), (WHOLE_IMAGE,))
    taken: list[int] = []

    def batches() -> Iterator[tuple[int, list[ImageRef]]]:
        for i in range(1001):
            taken.append(i)
            yield i, [plain if i else ref_of(path, 0)]

    ready = prefetch_parquet(batches())
    next(ready)
    assert settled(taken) <= 6  # one handed over, four waiting, one that waits for room
    assert [tag for tag, _ in ready] == list(range(1, 1001))


def test_one_batch_larger_than_the_limit_goes_through(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"x" * 1000 for _ in range(8)], 4)
    batches = [(i, [ref_of(path, i)]) for i in range(8)]
    assert len(list(prefetch_parquet(batches, max_bytes=10))) == 8


def test_a_large_row_group_is_never_whole_in_memory(tmp_path: Path) -> None:
    num, size = 256, 1 << 18
    images = [bytes([i]) * size for i in range(num)]
    path = write(
        tmp_path / "a.parquet", images, num, compression="none", use_dictionary=False,
        data_page_size=1 << 20, write_batch_size=4,
    )  # fmt: skip
    del images
    rows = RowReader()
    before = pa.total_allocated_bytes()
    peak = 0
    for i in range(num):
        data = rows.read(ref_of(path, i, num)).data
        assert data is not None
        assert data[:1] == bytes([i])
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < num * size / 3  # 64 MB lie in the row group


def test_a_damaged_row_group_costs_its_rows_and_the_next_is_read(tmp_path: Path) -> None:
    images = [os.urandom(100) for _ in range(30)]
    path = write(tmp_path / "a.parquet", images, 10, compression="gzip", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 20] = b"\xff" * 20  # the header of a page
    path.write_bytes(data)
    ((_, found),) = prefetch_parquet([(None, [ref_of(path, i, 10) for i in range(30)])])
    assert [ref.row for ref in found if ref.fault is None] == [*range(10), *range(20, 30)]
    assert [ref.data for ref in found[20:]] == images[20:]
    reasons = {ref.fault for ref in found[10:20]}
    assert len(reasons) == 1
    assert str(reasons.pop()).startswith("row group 1 is damaged: ")


def test_files_that_changed_or_vanished_cost_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"0", None, b"2"], 4)
    size = path.stat().st_size
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no more")
    refs = [
        ref_of(path, 0, file_bytes=size),
        ref_of(path, 1),
        ref_of(path, 3),
        ref_of(tmp_path / "b.parquet", 0),
        ref_of(tmp_path / "gone.parquet", 0),
        ref_of(tmp_path / "gone.parquet", 1),
        ref_of(path, 2, file_bytes=size),
    ]
    ((_, found),) = prefetch_parquet([(None, refs)])
    assert (found[0].data, found[-1].data) == (b"0", b"2")
    assert found[1].fault == "empty: 0 bytes"
    assert found[2].fault == "the file changed since it was planned: the row no longer exists"
    assert str(found[3].fault).startswith("cannot be read as Parquet: ")
    assert [ref.fault for ref in found[4:6]] == ["no such file"] * 2
    ((_, (changed,)),) = prefetch_parquet([(None, [ref_of(path, 0, file_bytes=1)])])
    assert changed.fault == f"the file changed since it was planned: {size} bytes, it had 1"


def test_a_file_written_anew_is_read_for_the_rows_that_were_planned_since(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"0", b"1", b"2"], 4)
    size = path.stat().st_size
    sizes = [size - 1, size, size, size - 1, size]
    refs = [ref_of(path, i % 3, file_bytes=planned) for i, planned in enumerate(sizes)]
    ((_, found),) = prefetch_parquet([(None, refs)])
    assert [ref.data for ref in found] == [None, b"1", b"2", None, b"1"]
    reason = f"the file changed since it was planned: {size} bytes, it had {size - 1}"
    assert [ref.fault for ref in found] == [reason, None, None, reason, None]


def test_every_row_of_a_column_that_is_gone_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"other": [b"%d" % i for i in range(8)]}), path, row_group_size=4)
    ((_, found),) = prefetch_parquet([(None, [ref_of(path, i) for i in (0, 1, 3, 5, 6)])])
    reason = "the file changed since it was planned: no column 'image.bytes'"
    assert [ref.fault for ref in found] == [reason] * 5


def test_what_the_batches_raise_is_raised_after_the_batches_before(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"0"], 4)

    def batches() -> Iterator[tuple[int, list[ImageRef]]]:
        yield 0, [ref_of(path, 0)]
        raise RuntimeError("the catalog is damaged")

    ready = prefetch_parquet(batches())
    assert next(ready)[0] == 0
    with pytest.raises(RuntimeError, match="the catalog is damaged"):
        next(ready)


def test_stopping_early_ends_the_thread(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [b"x" * 1000 for _ in range(400)], 4)
    before = threading.active_count()
    ready = prefetch_parquet([(i, [ref_of(path, i)]) for i in range(400)], max_bytes=2000)
    next(ready)
    assert threading.active_count() == before + 1
    ready.close()
    assert threading.active_count() == before


def test_a_flipped_bit_is_seen_where_the_file_has_checksums(tmp_path: Path) -> None:
    images = [b"%d" % i * 50 for i in range(8)]
    path = write(
        tmp_path / "a.parquet", images, 4, use_dictionary=False, compression="none",
        write_page_checksum=True,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    data[data.find(images[5]) + 7] ^= 1
    path.write_bytes(data)
    ((_, found),) = prefetch_parquet([(None, [ref_of(path, i) for i in range(8)])])
    assert [ref.data for ref in found] == [*images[:4], *[None] * 4]


def test_a_row_of_several_images_has_one_reason_each_time_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [[b"1"], [b"2", b"3"], [b"4"]]}), path)
    member = "image.list.element"
    rows = RowReader()
    refs = [
        ImageRef(i, ImageLocation(path=path, member=member, row_group=0, index=i), (WHOLE_IMAGE,))
        for i in (0, 1, 1, 2)
    ]
    read = [rows.read(ref) for ref in refs]
    reason = "its row holds 2 images, expected one; write a row for each"
    assert [ref.data for ref in read] == [b"1", None, None, b"4"]
    assert [ref.fault for ref in read] == [None, reason, reason, None]
    rows.close()
