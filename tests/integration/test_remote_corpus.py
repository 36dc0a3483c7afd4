"""Builds of a corpus in an S3, also one that fails: the cache is the one that files of a disk give."""

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import webdataset
from kit.fakes import FakeFactory, SilentProgress, config_of, draw_image
from kit.patience import PATIENCE_S, wait_until

from siglip2_cache.errors import StorageError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.ranks import find_rank
from siglip2_cache.precompute.sources import open_source
from siglip2_cache.precompute.verify_live import verify_live
from siglip2_cache.store.cache import Cache, open_cache
from siglip2_cache.store.io import requests

if TYPE_CHECKING:
    from kit.s3 import S3

from kit.s3 import SECRET, Fault

COCO = Path(__file__).parents[3] / "shared" / "data" / "coco288"
NUM_IMAGES = 24


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A table of images, and the same samples in three tars."""
    root = tmp_path / "corpus"
    (root / "images").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i in range(NUM_IMAGES):
        draw_image(i).save(root / "images" / f"{i}.png")
        captions = [f"Picture {i}", f"one of {i // 3}"]
        rows.append({"image": f"images/{i}.png", "key": f"k{i:03d}", "captions": captions})
    return with_shards(root, rows, 3)


def with_shards(root: Path, rows: list[dict[str, Any]], num_shards: int) -> Path:
    (root / "captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for shard, part in enumerate(np.array_split(np.arange(len(rows)), num_shards)):
        with webdataset.TarWriter(str(root / f"{shard:02d}.tar")) as sink:
            for row in (rows[i] for i in part):
                image = root / row["image"]
                data = {image.suffix[1:]: image.read_bytes()}
                told = {"caption": row["captions"]}
                sink.write({"__key__": row["key"], **data, "json": told})
    return root


def upload(s3: "S3", corpus: Path) -> str:
    for file in sorted(corpus.rglob("*")):
        if file.is_file():
            s3.write(f"c/{file.relative_to(corpus).as_posix()}", file.read_bytes())
    s3.forget()
    return f"{s3.url}/c"


def made(source: str, cache: Path, checkpoint: Path, **settings: Any) -> Cache:
    settings.setdefault("shard_rows", 8)
    config = config_of(source, cache, checkpoint, num_views=2, **settings)
    summary = build(config, progress=SilentProgress(), make_teacher=FakeFactory())
    assert summary.num_rejected == 0, summary
    return open_cache(cache)


def targets_of(cache: Cache) -> dict[str, bytes]:
    """Every file with targets, and of what bytes they were made."""
    files = (p for p in (cache.root / "teachers").rglob("*") if p.is_file())  # type: ignore[union-attr]
    wanted = (p for p in files if p.suffix == ".parquet" or p.parent.parent.name == "c")
    found = {p.relative_to(cache.root).as_posix(): p.read_bytes() for p in wanted}
    assert len(found) >= 6
    return found


def same_targets(ours: Cache, theirs: Cache) -> None:
    found, wanted = targets_of(ours), targets_of(theirs)
    assert found.keys() == wanted.keys()
    assert all(found[path] == wanted[path] for path in wanted)


@pytest.mark.parametrize("name", ["captions.jsonl", "{00..02}.tar"])
def test_a_cache_of_a_corpus_in_s3_is_the_one_of_a_disk(
    corpus: Path, tmp_path: Path, tiny_checkpoint: Path, s3: "S3", name: str
) -> None:
    url = upload(s3, corpus)
    ours = made(f"{url}/{name}", tmp_path / "ours", tiny_checkpoint, decode_workers=1)
    theirs = made(f"{corpus}/{name}", tmp_path / "theirs", tiny_checkpoint)
    same_targets(ours, theirs)
    counts = s3.counts()
    if name == "captions.jsonl":  # one request for an image's size, one for its bytes
        assert counts["get"] == NUM_IMAGES
        assert counts["get-range"] == 2
        assert counts["head"] < NUM_IMAGES + 8
    else:  # a piece of each tar, an image with its header
        assert counts["get-range"] == NUM_IMAGES + 3
        assert counts["head"] < 16
    assert counts["list"] < 4
    records = [p.read_bytes() for p in (tmp_path / "ours").rglob("*") if p.is_file()]
    assert not any(SECRET.encode() in data for data in records)
    again = len(s3.requests())
    made(f"{url}/{name}", tmp_path / "ours", tiny_checkpoint)
    assert len(s3.requests()) - again < 12  # nothing changed: the images are not asked about


def test_an_s3_that_throttles_and_cuts_rejects_nothing(
    corpus: Path, tmp_path: Path, tiny_checkpoint: Path, s3: "S3"
) -> None:
    url = upload(s3, corpus)
    s3.inject(
        Fault("slow-down", every=5),
        Fault("cut-answer", ("get", "get-range"), every=7),
        Fault("internal-error", ("list",), times=1),
    )
    ours = made(f"{url}/*.tar", tmp_path / "ours", tiny_checkpoint)
    theirs = made(f"{corpus}/*.tar", tmp_path / "theirs", tiny_checkpoint)
    same_targets(ours, theirs)
    assert sum(request.fault is not None for request in s3.requests()) > 5


@pytest.mark.slow  # s3fs tries on for some seconds; tests/unit/decoding has the same on other objects
def test_an_s3_that_goes_away_ends_the_build_and_the_same_command_goes_on(
    corpus: Path,
    tmp_path: Path,
    tiny_checkpoint: Path,
    s3: "S3",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = upload(s3, corpus)
    monkeypatch.setattr(requests, "_WAITS_S", ())
    s3.inject(Fault("internal-error", ("get", "get-range"), key="*/20.png"))
    with pytest.raises(
        StorageError, match=r"20\.png is unreachable: .*run the\s+same command again"
    ):
        made(f"{url}/captions.jsonl", tmp_path / "ours", tiny_checkpoint, decode_workers=1)
    s3.inject()
    ours = made(f"{url}/captions.jsonl", tmp_path / "ours", tiny_checkpoint)
    theirs = made(f"{corpus}/captions.jsonl", tmp_path / "theirs", tiny_checkpoint)
    same_targets(ours, theirs)


def test_an_image_that_may_not_be_read_is_rejected_with_its_reason(
    corpus: Path, tmp_path: Path, tiny_checkpoint: Path, s3: "S3"
) -> None:
    url = upload(s3, corpus)
    s3.inject(Fault("access-denied", ("get", "get-range"), key="*/7.png"))
    config = config_of(f"{url}/captions.jsonl", tmp_path / "c", tiny_checkpoint)
    build(config, progress=SilentProgress(), make_teacher=FakeFactory())
    rejected = open_cache(tmp_path / "c").rejected().collect()
    assert rejected.select("key", "reason").rows() == [
        ("k007", "cannot be read: the store denies access")
    ]


def test_six_hundred_members_are_planned_in_a_few_requests(tmp_path: Path, s3: "S3") -> None:
    (tmp_path / "w").mkdir()
    with webdataset.TarWriter(str(tmp_path / "w" / "0.tar")) as sink:
        for i in range(300):
            sink.write({"__key__": f"{i}", "jpg": b"x" * 20_000, "txt": f"caption {i}"})
    url = upload(s3, tmp_path / "w")
    s3.inject(Fault("delay", seconds=0.02))
    source = open_source(url)
    s3.forget()
    assert len(list(source.scan())) == 300
    assert s3.counts().total() < 10
    assert s3.counts()["get-range"] <= 2


def test_a_corpus_that_moved_into_s3_is_found_there(
    corpus: Path, tmp_path: Path, tiny_checkpoint: Path, s3: "S3"
) -> None:
    url = upload(s3, corpus)
    made(f"{corpus}/captions.jsonl", tmp_path / "c", tiny_checkpoint)
    os.rename(corpus, tmp_path / "elsewhere")
    moved = open_cache(tmp_path / "c", corpus_roots={str(corpus): url})
    found = verify_live(moved, 8, checkpoint=str(tiny_checkpoint), make_teacher=FakeFactory())
    assert found.faults == []
    assert found.cosines["image"].count == 16


def test_shares_of_a_build_help_to_plan(
    corpus: Path, tmp_path: Path, tiny_checkpoint: Path, s3: "S3"
) -> None:
    url = upload(s3, corpus)
    errors: list[BaseException] = []

    def run(share: str) -> None:
        config = config_of(
            f"{url}/*.tar",
            tmp_path / "ours",
            tiny_checkpoint,
            num_views=2,
            shard_rows=8,
            rank=find_rank(share, {}),
            plan_timeout_s=PATIENCE_S,
        )
        try:
            build(config, progress=SilentProgress(), make_teacher=FakeFactory())
        except BaseException as error:
            errors.append(error)

    helper = threading.Thread(target=run, args=("1/2",))
    helper.start()
    kept = tmp_path / "ours" / "catalog"
    wait_until(lambda: any(kept.glob("scan-*.partial")), "the share that waits to scan something")
    run("0/2")
    helper.join(PATIENCE_S)
    assert errors == []
    theirs = made(f"{corpus}/*.tar", tmp_path / "theirs", tiny_checkpoint)
    same_targets(open_cache(tmp_path / "ours"), theirs)
    gets = [r.key for r in s3.requests("get", "get-range") if r.num_bytes_out > 2000]
    assert gets.count("c/01.tar") < gets.count("c/00.tar") + 9


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_dir(), reason="needs the photographs of shared/data/coco288")
@pytest.mark.parametrize("name", ["captions.jsonl", "*.tar"])
def test_photographs_give_one_cache_by_any_way(
    tmp_path: Path, tiny_checkpoint: Path, s3: "S3", name: str
) -> None:
    rows = [json.loads(line) for line in (COCO / "captions.jsonl").read_text().splitlines()]
    corpus = tmp_path / "coco288"
    corpus.mkdir()
    os.symlink(COCO / "images", corpus / "images")
    with_shards(corpus, rows, 4)
    for row in rows:
        s3.write(f"c/{row['image']}", (corpus / row["image"]).read_bytes())
    url = upload(s3, corpus)
    theirs = made(f"{corpus}/{name}", tmp_path / "theirs", tiny_checkpoint, shard_rows=64)
    ours = made(f"{url}/{name}", tmp_path / "s3", tiny_checkpoint, shard_rows=64, decode_workers=2)
    same_targets(ours, theirs)
    two = made(f"{url}/{name}", tmp_path / "two", tiny_checkpoint, shard_rows=64, workers=2)
    same_targets(two, theirs)
