"""Decoding in worker processes: the same pixels in the same order, whatever a file does to a worker."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.fakes import draw_image
from kit.patience import PATIENCE_S, wait_until
from numpy.typing import NDArray
from PIL import Image

from siglip2_cache.errors import BuildError
from siglip2_cache.images.decoder import Decoder
from siglip2_cache.images.image import DecodedImage, ImageRef, PixelFormat
from siglip2_cache.images.image_bytes import ImageLocation
from siglip2_cache.images.main_module import hide_main_module
from siglip2_cache.siglip import SquashRecipe
from siglip2_cache.store.format.views import ViewPolicy, draw_view

SIZE = (8, 8)
BILINEAR = 2
Batch = tuple[Any, list[ImageRef], list[DecodedImage], NDArray[np.uint8]]


def refs_of(paths: Sequence[Path], num_views: int = 1) -> list[ImageRef]:
    policy = ViewPolicy(num_views=num_views)
    boxes = [tuple(draw_view(policy, path.name, v) for v in range(num_views)) for path in paths]
    return [
        ImageRef(i, ImageLocation(path=p), b)
        for i, (p, b) in enumerate(zip(paths, boxes, strict=True))
    ]


def draw_images(folder: Path, count: int) -> list[Path]:
    """Images of very different sizes, so that workers end out of order."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        draw_image(i, (400, 300) if i % 5 == 0 else (24, 16)).save(path)
    return paths


def cut(refs: Sequence[ImageRef], size: int) -> list[tuple[Any, list[ImageRef]]]:
    return [(f"from {i}", list(refs[i : i + size])) for i in range(0, len(refs), size)]


def decoder(
    num_workers: int, *, num_views: int = 1, batch_images: int = 5, timeout_s: float = PATIENCE_S
) -> Decoder:
    recipe = SquashRecipe(size=SIZE, resample=BILINEAR)
    form = PixelFormat(num_views=num_views, recipe=recipe)
    return Decoder(form, batch_images=batch_images, num_workers=num_workers, timeout_s=timeout_s)


def decode_all(decoder: Decoder, batches: Sequence[tuple[Any, Sequence[ImageRef]]]) -> list[Batch]:
    """Everything that a decoder yields, copied; times, which differ, are left out."""
    return [
        (
            batch.tag,
            list(batch.refs),
            [replace(image, read_s=0.0, decode_s=0.0) for image in batch.images],
            batch.pixels.copy(),
        )
        for batch in decoder.decode(batches)
    ]


def assert_equal(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    assert [batch[:3] for batch in found] == [batch[:3] for batch in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[3], theirs[3])


def workers_of(pid: int | None = None) -> list[psutil.Process]:
    """The decoding processes: children of the fork server, which is our child."""
    parent = psutil.Process(pid)
    found: list[psutil.Process] = []
    for process in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            if process.ppid() != parent.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# --- the same pixels in the same order -------------------------------------------------------


@pytest.mark.parametrize("num_views", [1, 3])
def test_workers_give_the_same_in_the_same_order_as_no_workers(
    tmp_path: Path, num_views: int
) -> None:
    paths = draw_images(tmp_path / "images", 43)
    paths[7].write_bytes(b"<html>not found</html>")
    paths[11].write_bytes(paths[10].read_bytes()[:2000])
    paths[12].unlink()
    paths[13].write_bytes(b"")
    batches = cut(refs_of(paths, num_views), 5)
    expected = decode_all(decoder(0, num_views=num_views), batches)
    found = decode_all(decoder(3, num_views=num_views), batches)
    assert_equal(found, expected)
    assert [batch[0] for batch in found] == [f"from {i}" for i in range(0, 43, 5)]
    assert found[0][3].shape == (5, num_views, *SIZE, 3)
    reasons = [image.reason for batch in found for image in batch[2]]
    assert reasons[7] == "not an image: it is a web page"
    assert reasons[11] is not None
    assert reasons[12:14] == ["no such file", "empty: 0 bytes"]
    assert sum(reason is not None for reason in reasons) == 4
    pixels = np.concatenate([batch[3] for batch in found])
    assert not pixels[[7, 11, 12, 13]].any()
    others = np.delete(pixels, [7, 11, 12, 13], axis=0)
    assert others.any(axis=(2, 3, 4)).all()


def test_a_slot_used_again_shows_nothing_of_what_it_held(tmp_path: Path) -> None:
    white = tmp_path / "white.png"
    draw_image(0).point(lambda _: 255).save(white)
    missing = tmp_path / "missing.png"
    refs = refs_of([*[white] * 20, *[missing] * 20])
    pixels = np.concatenate(
        [batch[3] for batch in decode_all(decoder(2, batch_images=4), cut(refs, 4))]
    )
    assert (pixels[:20] == 255).all()
    assert not pixels[20:].any()


def test_an_image_may_be_a_piece_of_a_file(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "images", 2)
    pieces = [path.read_bytes() for path in paths]
    pack = tmp_path / "pack.bin"
    pack.write_bytes(b"head" + b"".join(pieces))
    offset = 4 + len(pieces[0])
    whole = refs_of([pack])[0]
    place = replace(whole.location, offset=offset, length=len(pieces[1]))
    ref = replace(whole, location=place)
    short = replace(whole, location=replace(place, length=len(pieces[1]) + 9))
    for num_workers in (0, 1):
        [batch] = decode_all(decoder(num_workers), [(None, [ref, short])])
        [expected] = decode_all(decoder(0), [(None, refs_of(paths[1:]))])
        np.testing.assert_array_equal(batch[3][0], expected[3][0])
        assert batch[2][0] == expected[2][0]
        assert batch[2][1].reason == (
            f"truncated: {len(pieces[1])} bytes, {len(pieces[1]) + 9} were planned"
        )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_may_be_smaller_than_the_largest_or_empty(tmp_path: Path, num_workers: int) -> None:
    refs = refs_of(draw_images(tmp_path / "images", 3))
    batches = [("none", []), ("one", refs[:1]), ("two", refs[1:]), ("none", [])]
    found = decode_all(decoder(num_workers, batch_images=100), batches)
    assert [(batch[0], len(batch[2]), len(batch[3])) for batch in found] == [
        *(("none", 0, 0), ("one", 1, 1), ("two", 2, 2), ("none", 0, 0))
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_batches_give_no_batches(num_workers: int) -> None:
    assert decode_all(decoder(num_workers), []) == []


def test_batches_are_taken_only_a_few_ahead(tmp_path: Path) -> None:
    [ref] = refs_of(draw_images(tmp_path / "images", 1))
    taken: list[int] = []

    def batches() -> Iterator[tuple[int, list[ImageRef]]]:
        for i in range(100):
            taken.append(i)
            yield i, [ref]

    with contextlib.closing(decoder(1).decode(batches())) as decoded:  # type: ignore[type-var]
        for i, batch in enumerate(decoded):
            assert batch.tag == i
            assert len(taken) <= i + 5
            if i == 10:
                break


# --- files that kill or hold a worker --------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A file that nobody writes: whoever opens it waits for ever."""
    path = tmp_path / "fifo.png"
    os.mkfifo(path)
    return path


def open_when_there_is_a_reader(fifo: Path) -> int:
    """Return a descriptor to write; as long as nothing is written the reader goes on waiting."""
    writer: list[int] = []

    def is_open() -> bool:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads
            writer.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writer)

    wait_until(is_open, f"somebody to read {fifo}")
    return writer[0]


class Killer(threading.Thread):
    """Kills whoever reads a FIFO, a number of times; before the last time it puts a file in its place."""

    def __init__(self, fifo: Path, times: int, *, mended: Path | None = None) -> None:
        super().__init__(daemon=True)
        self._fifo, self._times, self._mended = fifo, times, mended
        self.killed: set[int] = set()
        self.start()

    def run(self) -> None:
        while len(self.killed) < self._times:
            writer = open_when_there_is_a_reader(self._fifo)
            wait_until(self._readers, "the reader to be among the workers")
            readers = self._readers()
            if self._mended is not None and len(self.killed) + len(readers) >= self._times:
                os.replace(self._mended, self._fifo)
            for pid in readers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.killed |= readers
            os.close(writer)  # at once: the next reader is to wait again

    def _readers(self) -> set[int]:
        """Return the workers that hold the FIFO; those we killed may take a moment to let go."""
        pids = {process.pid for process in workers_of()} - self.killed
        return {pid for pid in pids if str(self._fifo) in open_files(pid)}


def open_files(pid: int) -> set[str]:
    with contextlib.suppress(OSError):
        return {os.readlink(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
    return set()


def with_one_replaced(paths: Sequence[Path], position: int, by: Path) -> list[Path]:
    return [*paths[:position], by, *paths[position + 1 :]]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_image_on_which_workers_die_is_rejected_and_every_other_is_decoded(
    tmp_path: Path, fifo: Path, num_workers: int
) -> None:
    paths = draw_images(tmp_path / "images", 18)
    expected = decode_all(decoder(0), cut(refs_of(paths), 5))
    killer = Killer(fifo, times=2)
    found = decode_all(decoder(num_workers), cut(refs_of(with_one_replaced(paths, 7, fifo)), 5))
    assert len(killer.killed) == 2
    reason = "the decoder process crashed on it twice (signal 9)"
    assert_one_rejected(found, expected, 7, reason)


def test_a_worker_that_dies_once_costs_no_image(tmp_path: Path, fifo: Path) -> None:
    paths = draw_images(tmp_path / "images", 9)
    expected = decode_all(decoder(0), cut(refs_of(paths), 5))
    whole = tmp_path / "whole.png"  # what was unlucky once can be read the second time
    whole.write_bytes(paths[2].read_bytes())
    killer = Killer(fifo, times=1, mended=whole)
    found = decode_all(decoder(1), cut(refs_of(with_one_replaced(paths, 2, fifo)), 5))
    killer.join()
    assert [batch[2] for batch in found] == [batch[2] for batch in expected]


@pytest.mark.parametrize("position", [5, 6], ids=["first of its task", "second of its task"])
def test_an_image_that_takes_too_long_is_rejected_and_the_build_goes_on(
    tmp_path: Path, fifo: Path, position: int
) -> None:
    paths = draw_images(tmp_path / "images", 18)
    expected = decode_all(decoder(0), cut(refs_of(paths), 5))
    started = time.monotonic()
    found = decode_all(
        decoder(2, timeout_s=1.5), cut(refs_of(with_one_replaced(paths, position, fifo)), 5)
    )
    assert time.monotonic() - started >= 1.5
    assert_one_rejected(
        found, expected, position, "took longer than 1.5 s to read and decode, twice"
    )


def assert_one_rejected(
    found: Sequence[Batch], expected: Sequence[Batch], position: int, reason: str
) -> None:
    """All as expected, in order, but for one image, which has a reason and no pixels."""
    batch, place = divmod(position, 5)
    assert found[batch][2][place] == DecodedImage(reason=reason)
    assert not found[batch][3][place].any()
    found[batch][2][place] = expected[batch][2][place]
    found[batch][3][place] = expected[batch][3][place]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[2] == theirs[2]
        np.testing.assert_array_equal(ours[3], theirs[3])


# --- rows of Parquet files, whose bytes are sent to the workers ---------------------------------


def rows_of(paths: Sequence[Path], parquet: Path) -> list[ImageRef]:
    """The same images as rows of a Parquet file of small row groups."""
    pq.write_table(pa.table({"jpg": [p.read_bytes() for p in paths]}), parquet, row_group_size=4)
    places = [
        ImageLocation(path=parquet, member="jpg", row_group=i // 4, index=i % 4)
        for i in range(len(paths))
    ]
    return [replace(r, location=p) for r, p in zip(refs_of(paths), places, strict=True)]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_rows_of_a_parquet_file_give_the_pixels_of_plain_files(
    tmp_path: Path, num_workers: int
) -> None:
    paths = draw_images(tmp_path / "images", 18)
    expected = decode_all(decoder(0), cut(refs_of(paths), 5))
    found = decode_all(decoder(num_workers), cut(rows_of(paths, tmp_path / "a.parquet"), 5))
    assert [batch[2] for batch in found] == [batch[2] for batch in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[3], theirs[3])


def test_a_worker_that_dies_costs_no_row_that_was_sent_with_its_image(
    tmp_path: Path, fifo: Path
) -> None:
    paths = draw_images(tmp_path / "images", 18)
    expected = decode_all(decoder(0), cut(refs_of(paths), 5))
    rows = rows_of(paths, tmp_path / "a.parquet")
    rows[6] = replace(rows[6], location=ImageLocation(path=fifo))  # second of its task
    killer = Killer(fifo, times=2)
    found = decode_all(decoder(1), cut(rows, 5))
    assert len(killer.killed) == 2
    assert_one_rejected(found, expected, 6, "the decoder process crashed on it twice (signal 9)")


def test_a_worker_that_takes_nothing_is_replaced(tmp_path: Path) -> None:
    paths = draw_images(tmp_path / "images", 40)
    for path in paths:  # more than a pipe holds
        Image.effect_noise((400, 400), 100).save(path)
    expected = decode_all(decoder(0), cut(refs_of(paths), 2))
    stopped: list[psutil.Process] = []

    def batches() -> Iterator[tuple[Any, Sequence[ImageRef]]]:
        for i, batch in enumerate(cut(rows_of(paths, tmp_path / "a.parquet"), 2)):
            if (
                i == 12
            ):  # more than are taken ahead: the worker has decoded some, and waits for more
                stopped.extend(workers_of())
                stopped[0].suspend()
            yield batch

    found = decode_all(decoder(1, timeout_s=1.5), batches())  # type: ignore[arg-type]
    assert stopped
    assert [batch[2] for batch in found] == [batch[2] for batch in expected]


# --- nothing stays behind --------------------------------------------------------------------


def test_closing_early_leaves_no_process_no_file_and_no_descriptor(
    tmp_path: Path, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = with_one_replaced(draw_images(tmp_path / "images", 30), 8, fifo)
    batches = cut(refs_of(paths), 5)
    list(decoder(1).decode(batches[:1]))  # the fork server stays for the next
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    num_descriptors, num_threads = psutil.Process().num_fds(), threading.active_count()
    for _ in range(2):
        decoded = decoder(2).decode(iter(batches))
        next(decoded)
        processes = workers_of()
        assert len(processes) == 2
        assert not any("/dev/shm" in m.path for p in processes for m in p.memory_maps())
        decoded.close()  # type: ignore[attr-defined]
        wait_until(lambda: workers_of() == [], "the workers to end")
    del decoded
    assert threading.active_count() == num_threads
    assert psutil.Process().num_fds() == num_descriptors
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_decoder_that_is_used_up_leaves_no_process_either(tmp_path: Path) -> None:
    decode_all(decoder(2), cut(refs_of(draw_images(tmp_path / "images", 7)), 5))
    wait_until(lambda: workers_of() == [], "the workers to end")


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


DECODE_FOR_EVER = """
import sys, itertools
from pathlib import Path
from siglip2_cache.images.decoder import Decoder
from siglip2_cache.images.main_module import hide_main_module
from siglip2_cache.images.image import ImageRef, PixelFormat
from siglip2_cache.siglip import SquashRecipe
from siglip2_cache.images.image_bytes import ImageLocation
from siglip2_cache.store.format.views import WHOLE_IMAGE

def main():
    refs = [ImageRef(i, ImageLocation(path=Path(p)), (WHOLE_IMAGE,)) for i, p in enumerate(sys.argv[1:])]
    form = PixelFormat(num_views=1, recipe=SquashRecipe(size=(8, 8), resample=2))
    decoder = Decoder(form, batch_images=len(refs), num_workers=2, timeout_s=1e6)
    for batch in decoder.decode((i, refs) for i in itertools.count()):
        if batch.tag == 0:
            print("decoding", *(m for m in ("torch", "transformers") if m in sys.modules), flush=True)

START
main()
"""
"""Without the guard that multiprocessing asks of scripts: workers must not import it."""


@contextlib.contextmanager
def decoding(tmp_path: Path, paths: Sequence[Path], start: str = "pass") -> Iterator[Any]:
    """A process of its own that decodes these images over and over."""
    script, errors = tmp_path / "script.py", tmp_path / "errors.txt"
    script.write_text(DECODE_FOR_EVER.replace("START", start))
    with (
        # Of its own, and short: sockets in it have names of 107 bytes at most.
        tempfile.TemporaryDirectory() as temporary,
        errors.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, script, *paths],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "TMPDIR": temporary},
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def test_a_build_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    with decoding(tmp_path, draw_images(tmp_path / "images", 8)) as process:
        assert process.stdout.readline() == "decoding\n"
        left = psutil.Process(process.pid).children(recursive=True)
        assert len(workers_of(process.pid)) == 2
        process.kill()
        wait_until(lambda: not any(map(is_alive, left)), "workers and the fork server to end")


def test_a_build_that_is_killed_takes_a_worker_along_that_hangs_on_a_file(
    tmp_path: Path, fifo: Path
) -> None:
    with decoding(tmp_path, [fifo]) as process:
        writer = open_when_there_is_a_reader(fifo)
        left = psutil.Process(process.pid).children(recursive=True)
        assert len(left) >= 3
        process.kill()
        wait_until(lambda: not any(map(is_alive, left)), "the worker that hangs to end")
        os.close(writer)


def test_workers_that_cannot_start_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os\ndef work(*_):\n    os._exit(3)\n")
    start = (
        "from siglip2_cache.images import decode_pool; import dying; decode_pool.work = dying.work"
    )
    with decoding(tmp_path, draw_images(tmp_path / "images", 1), start) as process:
        assert process.wait(PATIENCE_S) == 1
    last = (tmp_path / "errors.txt").read_text().splitlines()[-1]
    assert last.endswith(
        "decode workers die as they start (exit code 3); "
        "--decode-workers 0 decodes in the main process"
    )
    assert BuildError.__name__ in last


class Probe:
    """In place of a path: unpickled, in the worker, it writes down what the worker has imported."""

    def __init__(self, path: Path, report: Path) -> None:
        self._path, self._report = path, report

    def __reduce__(self) -> Any:
        write = f"__import__('pathlib').Path({str(self._report)!r}).write_text"
        path = f"__import__('pathlib').Path({str(self._path)!r})"
        return eval, (f"({write}('\\n'.join(__import__('sys').modules)), {path})[1]",)


def test_workers_import_nothing_heavy(tmp_path: Path) -> None:
    import torch  # noqa: F401 - the build has imported it: a forked worker would have it too

    [path] = draw_images(tmp_path / "images", 1)
    [ref] = refs_of([path])
    probe: Any = Probe(path, tmp_path / "modules.txt")
    [batch] = decode_all(decoder(1), [(None, [replace(ref, location=ImageLocation(path=probe))])])
    assert batch[2][0].reason is None
    modules = (tmp_path / "modules.txt").read_text().split("\n")
    assert "siglip2_cache.images.decode_worker" in modules
    assert {"torch", "transformers", "polars", "pyarrow", "zarr"} & set(modules) == set()


def test_workers_that_hang_as_they_start_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text("import time\ndef work(*_):\n    time.sleep(1e6)\n")
    start = (
        "from siglip2_cache.images import decode_pool; import hanging; "
        "decode_pool.work = hanging.work; decode_pool._START_TIMEOUT_S = 0.1"
    )
    with decoding(tmp_path, draw_images(tmp_path / "images", 1), start) as process:
        assert process.wait(PATIENCE_S) == 1
    last = (tmp_path / "errors.txt").read_text().splitlines()[-1]
    assert last.endswith(
        "decode workers do not start within 0.1 s; --decode-workers 0 decodes in the main process"
    )


def test_one_thread_at_a_time_hides_the_main_module() -> None:
    main, order = sys.modules["__main__"], []
    is_coming = threading.Event()

    def other() -> None:
        is_coming.set()
        with hide_main_module():
            order.append("the other is in")

    thread = threading.Thread(target=other)
    with hide_main_module():
        thread.start()
        is_coming.wait()
        thread.join(0.05)  # without a lock it would be in, and give back a stand-in for the script
        order.append("the first is out")
    thread.join()
    assert order == ["the first is out", "the other is in"]
    assert sys.modules["__main__"] is main
