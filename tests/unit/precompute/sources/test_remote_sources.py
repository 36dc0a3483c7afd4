"""A corpus in an object store: the same samples as from a disk, in few requests."""

import csv
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from kit.fakes import draw_image
from kit.memory_bucket import MemoryBucket, memory_bucket
from kit.s3 import S3

from siglip2_cache.errors import SettingError, SourceError, StorageError
from siglip2_cache.images.image_bytes import ImageLocation, read_image_bytes
from siglip2_cache.precompute.planning import scan as scan_module
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.planning.plan import make_plan
from siglip2_cache.precompute.planning.scan import Scanner
from siglip2_cache.precompute.planning.source_names import name_sources
from siglip2_cache.precompute.sources import CorpusPart, Problem, Sample, open_source
from siglip2_cache.precompute.sources.listing import sizes_and_times
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.io import range_file, requests
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.io.location import Location, join

NOT_COMPARED = ["mtime_ns", "place"]


def picture(number: int) -> bytes:
    sink = io.BytesIO()
    draw_image(number).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def bucket() -> Iterator[MemoryBucket]:
    with memory_bucket() as made:
        yield made


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Images in a folder and a sub-folder, texts beside them, tables that name them."""
    root = tmp_path / "corpus"
    (root / "images" / "cats").mkdir(parents=True)
    rows = []
    for i in range(6):
        name = f"images/cats/{i}.png" if i % 2 else f"images/{i}.png"
        (root / name).write_bytes(picture(i))
        (root / name).with_suffix(".txt").write_text(f"a caption of {i}")
        rows.append({"image": name, "key": f"k{i}", "captions": [f"picture {i}", "a picture"]})
    rows.append({"image": "images/gone.png", "key": "gone", "captions": []})
    (root / "captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "{odd\n")
    with (root / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows([row["image"], f"picture of {row['key']}"] for row in rows)
    pl.DataFrame({"image": [row["image"] for row in rows]}).write_parquet(root / "captions.parquet")
    return root


def write_shards(folder: Path, num_shards: int, num_images: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(num_shards):
        with webdataset.TarWriter(str(folder / f"{shard:03d}.tar")) as sink:
            for i in range(num_images):
                number = shard * num_images + i
                caption = f"picture {number}"
                sink.write(
                    {
                        "__key__": f"s{number:05d}",
                        "png": picture(number),
                        "txt": caption,
                        "json": {"caption": [caption, "a picture"], "sha256": "ab" * 32},
                    }
                )
    return folder


def write_packed(folder: Path) -> Path:
    """Parquet files with images inside, as datasets writes them; one row has a path instead."""
    folder.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number in range(2):
        cells = [{"bytes": picture(10 * number + i), "path": None} for i in range(5)]
        cells[3] = {"bytes": None, "path": "beside.png"}
        texts = [f"row {i} of {number}" for i in range(5)]
        table = pa.table({"image": pa.array(cells, image), "caption": texts})
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    (folder / "beside.png").write_bytes(picture(99))
    return folder


def frame_of(location: str | Path) -> pl.DataFrame:
    source = open_source(location)
    return pl.concat(Scanner(LocalStorage(Path("/nonexistent")), keeps=False).frames(source))


def same_frames(local: Path | str, remote: str) -> pl.DataFrame:
    """The frame of a remote corpus, which must be that of the local one."""
    ours, theirs = frame_of(remote), frame_of(local)
    assert ours.drop(NOT_COMPARED).equals(theirs.drop(NOT_COMPARED))
    return ours


def read_all(location: str) -> list[bytes]:
    source = open_source(location)
    return [
        read_image_bytes(
            ImageLocation(
                path=join(source.root, item.path),
                member=item.member,
                offset=item.offset,
                length=item.length,
                row_group=item.row_group,
                index=item.index,
                file_bytes=item.num_bytes,
            )
        )
        for item in source.scan()
        if isinstance(item, Sample) and item.num_bytes is not None
    ]


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv", "captions.parquet"])
def test_a_table_gives_the_same_samples(corpus: Path, bucket: MemoryBucket, name: str) -> None:
    url = bucket.put_folder(corpus, "coco")
    frame = same_frames(corpus / name, f"{url}/{name}")
    assert frame["num_bytes"].null_count() >= 1  # the image that is gone
    assert frame.filter(pl.col("reason").is_null())["mtime_ns"].null_count() == 1
    assert read_all(f"{url}/{name}")[0] == picture(0)


def test_sizes_of_a_tables_images_are_asked_many_at_a_time_and_nothing_is_listed(
    bucket: MemoryBucket,
) -> None:
    rows = [{"image": f"{i}.png", "caption": "c"} for i in range(200)]
    for row in rows[:150]:
        bucket.put(f"t/{row['image']}", b"x" * int(row["image"].removesuffix(".png") or 0))
    url = bucket.put("t/t.jsonl", "\n".join(map(json.dumps, rows)))
    meeting = threading.Barrier(8)

    def before(method: str, path: str) -> None:
        if path.endswith(tuple(f"/{i}.png" for i in range(8))):
            meeting.wait(5)  # passes only if eight of them are asked at once

    bucket.before = before
    samples = [item for item in open_source(url).scan() if isinstance(item, Sample)]
    assert [s.num_bytes for s in samples] == [*range(150), *[None] * 50]
    assert bucket.requests["ls"] == 0
    assert bucket.requests["info"] < 210


def test_a_row_may_name_its_image_by_url_or_above_the_table(bucket: MemoryBucket) -> None:
    bucket.put("a/x.png", b"12")
    bucket.put("b/y.png", b"123")
    paths = [f"{bucket.url}/a/x.png", "../a/x.png", "y.png", "/data/y.png", "s3://other/y.png"]
    paths += ["../../z.png", "y#1.png"]
    url = bucket.put("b/t.jsonl", "\n".join(json.dumps({"image": path}) for path in paths))
    entries = list(open_source(url).scan())
    samples = [e for e in entries if isinstance(e, Sample)]
    assert [(s.path, s.num_bytes) for s in samples] == [
        ("../a/x.png", 2),
        ("../a/x.png", 2),
        ("y.png", 3),
        ("y#1.png", None),
    ]
    assert [e.reason for e in entries if isinstance(e, Problem)] == [
        f"the image path is absolute, expected one below {bucket.url}/b: '/data/y.png'",
        f"the image lies elsewhere, expected one below {bucket.url}/: 's3://other/y.png'",
        "the path leads out of the bucket: '../../z.png'",
    ]


def test_a_folder_gives_the_same_samples_and_sizes_come_with_its_listing(
    corpus: Path, bucket: MemoryBucket
) -> None:
    url = bucket.put_folder(corpus / "images", "i")
    frame = same_frames(corpus / "images", url)
    assert frame["label"].drop_nulls().to_list() == ["cats"] * 3
    source = open_source(url)
    bucket.requests.clear()
    assert len(list(source.scan())) == 6
    assert bucket.requests == {"ls": 2, "cat_file": 6}  # two folders, a caption file each


def test_a_folders_fingerprint_changes_with_a_size(corpus: Path, bucket: MemoryBucket) -> None:
    url = bucket.put_folder(corpus / "images", "i")
    before = open_source(url).fingerprint()
    assert open_source(url).fingerprint() == before
    bucket.put("i/0.txt", "another caption")
    assert open_source(url).fingerprint() != before


@pytest.mark.parametrize("names", ["", "/000.tar", "/*.tar", "/{000..002}.tar", "/**/*.tar"])
def test_tars_give_the_same_samples(tmp_path: Path, bucket: MemoryBucket, names: str) -> None:
    folder = write_shards(tmp_path / "w", 3, 4)
    url = bucket.put_folder(folder, "data/w")
    frame = same_frames(f"{folder}{names}", f"{url}{names}")
    assert frame.height == (4 if names == "/000.tar" else 12)
    assert read_all(f"{url}{names}")[:4] == [picture(i) for i in range(4)]


def test_a_glob_lists_no_folder_that_it_does_not_need(bucket: MemoryBucket) -> None:
    for name in ("a/1/x.tar", "a/2/x.tar", "a/2/.y.tar", "a/.h/x.tar", "b/c/d.tar", "a/z.txt"):
        bucket.put(name, b"")
    bucket.requests.clear()
    source = open_source(f"{bucket.url}/a/*/*.tar")
    assert str(source.root) == f"{bucket.url}/a"
    assert [piece.name for piece in source.parts()] == ["1/x.tar", "2/x.tar"]
    assert bucket.requests["ls"] == 3  # a, a/1, a/2
    with pytest.raises(SourceError, match=r"no file matches .*/a/\*\.tar"):
        open_source(f"{bucket.url}/a/*.tar")


def test_six_hundred_members_are_planned_in_a_few_requests(
    tmp_path: Path, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_file, "PIECE_BYTES", 1 << 16)
    folder = write_shards(tmp_path / "w", 1, 200)  # an image and two texts each
    url = bucket.put_folder(folder)
    source = open_source(url)
    bucket.requests.clear()
    samples = list(source.scan())
    assert len(samples) == 200
    assert all(isinstance(s, Sample) and len(s.captions) == 2 for s in samples)
    # Each byte once: the texts are taken on the way.
    num_pieces = -(-(folder / "000.tar").stat().st_size // (1 << 16))
    assert bucket.requests["cat_file"] == num_pieces > 9
    assert bucket.requests.total() - num_pieces <= 5


def test_texts_too_many_to_keep_are_read_again(
    tmp_path: Path, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from siglip2_cache.precompute.sources import tar_samples

    folder = write_shards(tmp_path / "w", 1, 40)
    url = bucket.put_folder(folder)
    monkeypatch.setattr(tar_samples, "_KEPT_BYTES", 300)
    monkeypatch.setattr(range_file, "PIECE_BYTES", 8192)
    bucket.requests.clear()
    same_frames(folder, url)
    assert bucket.requests["cat_file"] < 60  # 240 KB twice, in pieces of 8


def test_each_archive_is_asked_for_its_size_once_or_with_the_folder(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("k.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    for i in range(40):
        bucket.put(f"w/{i:03d}.tar", (tmp_path / "a.tar").read_bytes())
    source = open_source(f"{bucket.url}/w")
    bucket.requests.clear()
    assert len(list(source.parts())) == 40
    assert bucket.requests["info"] <= 2


def test_parquet_files_with_images_give_the_same_samples(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    folder = write_packed(tmp_path / "p")
    url = bucket.put_folder(folder, "p")
    frame = same_frames(folder, url)
    assert frame.filter(pl.col("path") == "beside.png").height == 2
    same_frames(folder / "0.parquet", f"{url}/0.parquet")
    assert read_all(f"{url}/0.parquet")[:3] == [picture(i) for i in range(3)]


def test_of_images_inside_parquet_files_the_plan_reads_none(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    data = [bytes([i]) * 500_000 for i in range(8)]
    table = pa.table({"image": pa.array(data, pa.binary()), "caption": [f"c{i}" for i in range(8)]})
    pq.write_table(table, tmp_path / "p.parquet", row_group_size=2, compression="none")
    url = bucket.put("p.parquet", (tmp_path / "p.parquet").read_bytes())
    num_bytes = 0
    real = requests.read_bytes

    def counted(location: Location, start: int = 0, length: int | None = None) -> bytes:
        nonlocal num_bytes
        found = real(location, start, length)
        num_bytes += len(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_file, "read_bytes", counted)
        assert sum(isinstance(item, Sample) for item in open_source(url).scan()) == 8
    assert 0 < num_bytes < 1_000_000


def test_what_img2dataset_wrote_as_files_gives_the_same_samples(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    for shard in ("00000", "00001"):
        (tmp_path / "i" / shard).mkdir(parents=True)
        for i in range(3):
            stem = tmp_path / "i" / shard / f"{shard}{i:04d}"
            stem.with_suffix(".png").write_bytes(picture(i))
            stem.with_suffix(".txt").write_text(f"caption {shard} {i}")
        (tmp_path / "i" / f"{shard}_stats.json").write_text("{}")
    url = bucket.put_folder(tmp_path / "i", "i")
    assert open_source(url).kind == "img2dataset"
    assert same_frames(tmp_path / "i", url).height == 6


def test_a_saved_dataset_is_refused_in_one_line(bucket: MemoryBucket) -> None:
    bucket.put("d/state.json", "{}")
    bucket.put("d/data-00000.arrow", b"")
    with pytest.raises(SourceError, match=r"was saved by datasets .* write it as Parquet"):
        open_source(f"{bucket.url}/d")


def test_where_nothing_is_the_location_is_named(bucket: MemoryBucket) -> None:
    with pytest.raises(SourceError, match=rf"there is no {bucket.url}/gone"):
        open_source(f"{bucket.url}/gone")


@pytest.mark.parametrize("form", ["{}", "coco={}"])
@pytest.mark.parametrize("url", ["s3://id:secret@b/c", "gs://token@b/c/*.tar", "az://b/c?sig=abc"])
def test_a_source_with_credentials_is_refused_without_showing_them(form: str, url: str) -> None:
    with pytest.raises(SettingError) as raised:
        name_sources(PlanConfig(sources=(form.format(url),)), None)
    assert not {"secret", "token", "abc"} & set(str(raised.value).replace("=", " ").split())


def plan(cache: Path, *sources: str, **options: dict[str, str]) -> Cache:
    make_plan(PlanConfig(sources=sources, **options), LocalStorage(cache))
    return Cache(cache, corpus_roots={})


def test_the_catalog_is_the_same_but_for_where_it_is(
    corpus: Path, tmp_path: Path, bucket: MemoryBucket
) -> None:
    url = bucket.put_folder(corpus, "coco")
    ours = plan(tmp_path / "ours", f"coco={url}/captions.jsonl")
    theirs = plan(tmp_path / "theirs", f"coco={corpus}/captions.jsonl")
    for table in ("samples", "captions", "texts"):
        assert ours.table(table).collect().equals(theirs.table(table).collect())
    files, others = ours.table("files").collect(), theirs.table("files").collect()
    assert files.drop("mtime_ns").equals(others.drop("mtime_ns"))
    assert ours.sources["coco"].location == f"{url}/captions.jsonl"
    assert str(ours.corpus_root("coco")) == url


def test_a_corpus_moves_into_a_store_and_back(
    corpus: Path, tmp_path: Path, bucket: MemoryBucket
) -> None:
    url = bucket.put_folder(corpus, "coco")
    plan(tmp_path / "cache", f"{corpus}/captions.jsonl")
    there = {str(corpus): url}
    moved = Cache(tmp_path / "cache", corpus_roots=there)
    assert str(moved.corpus_root("")) == url
    cache = plan(tmp_path / "cache", f"{url}/captions.jsonl", corpus_roots=there)
    assert cache.num_samples == 7
    assert cache.sources[""].root == url
    back = {url: str(corpus)}
    assert Cache(tmp_path / "cache", corpus_roots=back).corpus_root("") == corpus
    cache = plan(tmp_path / "cache", f"{corpus}/captions.jsonl", corpus_roots=back)
    assert cache.num_samples == 7


def test_a_killed_plan_of_tars_goes_on_with_the_piece_it_was_at(
    tmp_path: Path, bucket: MemoryBucket
) -> None:
    url = bucket.put_folder(write_shards(tmp_path / "w", 12, 2), "w")
    cache = tmp_path / "cache"
    source = open_source(url)

    def fails(method: str, path: str) -> None:
        if method == "cat_file" and path.endswith("011.tar"):
            raise StorageError("away")

    bucket.before = fails
    with pytest.raises(StorageError, match="away"):
        list(Scanner(LocalStorage(cache), keeps=True).frames(source))
    bucket.before = lambda method, path: None
    bucket.requests.clear()
    frames = pl.concat(Scanner(LocalStorage(cache), keeps=True).frames(source))
    assert frames["key"].to_list() == [f"s{i:05d}" for i in range(24)]
    assert bucket.requests["cat_file"] == 1  # of the one that was not scanned


def test_shares_that_wait_scan_for_the_one_that_plans(tmp_path: Path, bucket: MemoryBucket) -> None:
    url = bucket.put_folder(write_shards(tmp_path / "w", 6, 2), "w")
    source, files = open_source(url), LocalStorage(tmp_path / "cache")
    for index in (1, 2):
        assert len(list(Scanner(files, keeps=True).scan_slice(source, index, 3))) == 2
    bucket.requests.clear()
    frames = pl.concat(Scanner(files, keeps=True).frames(source))
    assert frames["key"].to_list() == [f"s{i:05d}" for i in range(12)]
    assert bucket.requests["cat_file"] == 2  # 000 and 003: its own


def test_a_dry_run_scans_a_piece_of_many_frames_once(
    tmp_path: Path, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "SCAN_ROWS", 3)
    url = bucket.put_folder(write_shards(tmp_path / "w", 2, 10), "w")
    source, scanned = open_source(url), list[str]()
    real = Scanner._scan_and_keep

    def scan_and_keep(self: Scanner, piece: CorpusPart, digest: str) -> Iterator[pl.DataFrame]:
        scanned.append(piece.name)
        return real(self, piece, digest)

    monkeypatch.setattr(Scanner, "_scan_and_keep", scan_and_keep)
    frames = list(Scanner(LocalStorage(tmp_path / "cache"), keeps=False).frames(source))
    assert pl.concat(frames)["key"].to_list() == [f"s{i:05d}" for i in range(20)]
    assert max(frame.height for frame in frames) == 3
    assert sorted(scanned) == ["000.tar", "001.tar"]
    assert not (tmp_path / "cache").exists()


def test_a_store_that_is_away_ends_the_plan(
    tmp_path: Path, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_WAITS_S", ())
    url = bucket.put_folder(write_packed(tmp_path / "p"), "p")
    tars = bucket.put_folder(write_shards(tmp_path / "w", 2, 2), "w")

    def fails(method: str, path: str) -> None:
        if method == "cat_file":
            raise ConnectionResetError("connection reset")

    for location in (url, tars):
        source = open_source(location)
        bucket.before = fails
        with pytest.raises(StorageError, match=r"connection reset.*run the same command again"):
            list(source.scan())
        bucket.before = lambda method, path: None


def test_many_files_of_a_folder_that_is_not_there_have_no_size(bucket: MemoryBucket) -> None:
    there = bucket.put("there/00.tar", b"123")
    missing = [f"{bucket.url}/missing/{i:02}.tar" for i in range(20)]
    facts = list(sizes_and_times([*missing, there]))
    assert facts[:20] == [(None, None)] * 20
    assert facts[20][0] == 3


def test_objects_below_two_slashes_are_a_problem_and_a_mark_of_a_folder_is_none(s3: S3) -> None:
    for key in ("c/a.png", "c//b.png", "c/d/", "c/d/e.png", "c/f//g.png"):
        s3.write(key, b"" if key.endswith("/") else picture(0))
    found = list(open_source(f"{s3.url}/c").scan())
    assert [entry.key for entry in found if isinstance(entry, Sample)] == ["a", "d/e"]
    problems = [(e.place.removeprefix(s3.url), e.reason) for e in found if isinstance(e, Problem)]
    reason = "objects whose keys have two slashes here cannot be listed; copy them to other keys"
    assert problems == [("/c//", reason), ("/c/f//", reason)]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_below_two_slashes_are_a_problem(s3: S3, tmp_path: Path, kind: str) -> None:
    if kind == "tar":
        with tarfile.open(tmp_path / "s", "w") as tar:
            tar.addfile(tarfile.TarInfo("a.png"))
    else:
        pq.write_table(pa.table({"image": [picture(0)]}), tmp_path / "s")
    for key in (f"c/0.{kind}", f"c//1.{kind}"):
        s3.write(key, (tmp_path / "s").read_bytes())
    found = list(open_source(f"{s3.url}/c").scan())
    assert sum(isinstance(item, Sample) for item in found) == 1
    [problem] = [item for item in found if isinstance(item, Problem)]
    assert problem.place == f"{s3.url}/c//"
    assert problem.reason.startswith("objects whose keys have two slashes here cannot be listed")
