"""Imported targets: joined, checked, trained on, looked at, killed and exported again."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit import processes, run_import
from kit.commands import error_line
from kit.embeddings import draw_crops, pairs, unit, write_clip_retrieval, write_datacompdr
from kit.fakes import FakeTeacher, SilentProgress, config_of, tree_of, write_folder_corpus
from kit.trainings import Listening, train_of

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.images.catalog_refs import image_refs
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.importing.config import EmbeddingColumns, ImportConfig, ImportSummary
from siglip2_cache.precompute.importing.run import import_targets
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.store.convert import convert_cache
from siglip2_cache.store.format.views import pixel_box
from siglip2_cache.store.io.location import parse_location
from siglip2_cache.store.verify.verify import verify_cache

if TYPE_CHECKING:
    from kit.s3 import S3

    from tests.foreign_cache import ForeignCache

Command = Callable[..., tuple[int, str, str]]
NUM, WIDTH = 12, 16


def import_into(
    source: Any, cache: Any, name: str = "other", *, corpus: Any = None, **settings: Any
) -> ImportSummary:
    plan = None if corpus is None else PlanConfig(sources=(str(corpus),), shard_rows=4)
    config = ImportConfig(
        source=source,
        cache=cache,
        teacher_name=name,
        plan=plan,
        shard_rows=4,
        decode_workers=0,
        **{"logit_scale": 3.0, "logit_bias": -10.0, **settings},
    )
    return import_targets(config, progress=SilentProgress())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_folder_corpus(tmp_path_factory.mktemp("corpus"), NUM)
    for i in range(NUM):  # every caption its own
        (root / f"img{i:03d}.txt").write_text(f"Picture {i}\n")
    return root


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of all images but the last, in another order than the corpus."""
    images, texts = pairs(NUM, WIDTH)
    order = np.random.default_rng(0).permutation(NUM - 1)
    return write_clip_retrieval(
        tmp_path_factory.mktemp("clip") / "out",
        [f"/data/then/corpus/img{i:03d}.png" for i in order],
        [f"Picture {i}\n" for i in order],
        images[order],
        texts[order],
    )


@pytest.fixture(scope="module")
def imported(corpus: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of that folder; read it, do not change it."""
    cache = tmp_path_factory.mktemp("imported") / "cache"
    import_into(clip_folder, cache, corpus=corpus)
    return cache


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    return write_datacompdr(tmp_path_factory.mktemp("dr") / "tars", 8)


@pytest.fixture(scope="module")
def reinforced(
    tars: tuple[Path, Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ImportSummary]:
    """The cache of the tars; read it, do not change it."""
    cache = tmp_path_factory.mktemp("reinforced") / "cache"
    return cache, import_into(tars[0], cache, logit_scale=None, logit_bias=None)


def test_each_row_gets_the_embedding_of_its_key_and_each_text_that_of_its_words(
    imported: Path,
) -> None:
    images, texts = pairs(NUM, WIDTH)
    cache = open_cache(imported)
    found = cache.image_targets("other").read(np.arange(NUM - 1))
    np.testing.assert_allclose(found, images[:-1], atol=2e-3)
    np.testing.assert_allclose(
        cache.text_targets("other").read(np.arange(NUM - 1)), texts[:-1], atol=2e-3
    )
    rejected = cache.rejected("other").select("modality", "key", "reason").collect().rows()
    assert rejected == [
        ("image", "img011", "no embedding of it was imported"),
        ("text", None, "no embedding of it was imported"),
    ]
    record = cache.teacher("other")
    assert (record.logit_scale, record.logit_bias, record.is_imported) == (3.0, -10.0, True)
    assert verify_cache(cache).faults == []


def test_the_command_tells_what_was_joined_and_what_was_not(
    corpus: Path, tmp_path: Path, command: Command
) -> None:
    images, texts = pairs(NUM, WIDTH)
    images[2], images[3], images[4] = np.nan, 0, images[4] * 5
    folder = write_clip_retrieval(
        tmp_path / "out",
        [*(f"img{i:03d}" for i in range(NUM - 1)), "elsewhere"],
        [f"Picture {i}" for i in range(NUM)],
        images,
        texts,
        num_parts=1,
    )
    arguments = ["import", folder, tmp_path / "cache", "--teacher-name", "other"]
    status, out, err = command(*arguments, "--corpus", corpus, "--decode-workers", 0)
    assert status == 0, err
    lines = [line.strip() for line in out.splitlines()]
    assert lines[1:8] == [
        "images     11 embeddings joined by key",
        "1 key that the cache does not have: 'elsewhere'",
        "1 of 11 image embeddings are not unit vectors (norms 1 to 5) and are normalised",
        "1 image embeddings are not finite",
        "1 image embeddings are zero",
        "texts      12 embeddings joined by text",
        lines[7],
    ]
    assert lines[7].startswith("logits     scale ")
    assert "no target  3 rows of the cache:" in lines
    assert "img003: its embedding is zero" in lines
    again = command(*arguments, "--json")
    numbers = json.loads(again[1])
    assert numbers["units"] == 0
    assert numbers["without_target"] == 3
    assert numbers["fit"] is None  # recorded


def test_a_teacher_is_what_was_imported_and_no_other(
    imported: Path,
    clip_folder: Path,
    corpus: Path,
    tmp_path: Path,
    command: Command,
    tiny_checkpoint: Path,
) -> None:
    images, texts = pairs(NUM, WIDTH, seed=5)
    names = [f"img{i:03d}" for i in range(NUM)]
    other = write_clip_retrieval(
        tmp_path / "o", names, [f"Picture {i}" for i in range(NUM)], images, texts
    )
    line = error_line(*command("import", other, imported, "--teacher-name", "other"))
    assert line.startswith(
        f"teacher 'other' of {imported} was imported from other embeddings (SHA-256 "
    )
    line = error_line(*command("verify", imported, "--sample", 2))
    assert line == (
        f"teacher 'other' of {imported} was imported: there is no live teacher to embed anything again, "
        "or anything new"
    )
    line = error_line(*command("neighbors", imported, "--text", "new words"))
    assert "there is no live teacher" in line
    _, out, _ = command("info", imported)
    assert "teacher    other: complete" in out
    assert "imported from" in out
    build_as = ("build", corpus, imported, "--teacher", tiny_checkpoint, "--teacher-name", "other")
    line = error_line(*command(*build_as, "--device", "cpu"))
    assert line == (
        f"teacher 'other' of {imported} was imported from {clip_folder} and cannot be run; give the "
        "checkpoint another name with --teacher-name"
    )


def test_reports_indexes_and_trainings_take_it_as_any_other(
    imported: Path, tiny_student: Path, tmp_path: Path, command: Command, one_thread: None
) -> None:
    imported = Path(shutil.copytree(imported, tmp_path / "cache"))
    status, out, _ = command("neighbors", imported, "--text", "Picture 3", "-k", 1)
    assert status == 0
    assert "img003" in out
    for report in (("mismatched", imported), ("outliers", imported), ("index", imported)):
        assert command(*report)[0] == 0
    train_of(imported, tiny_student, tmp_path / "run", progress=Listening(), global_batch_size=4)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_converted_import_is_imported_into_again(
    imported: Path, clip_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    convert_cache(open_cache(imported), tmp_path / "int8", targets="int8")
    before = tree_of(tmp_path / "int8")
    (tmp_path / "int8/teachers/other/commits/text-00001.json").unlink()
    import_into(clip_folder, tmp_path / "int8", corpus=corpus)
    cache = open_cache(tmp_path / "int8")
    assert verify_cache(cache).faults == []
    assert cache.teacher("other").encoding.name == "int8"
    shard = "teachers/other/text.zarr/c/1/0"
    assert cache.files.read(shard) == before[shard]


def test_crops_of_datacompdr_are_the_views_and_their_embeddings_the_targets(
    reinforced: tuple[Path, ImportSummary], tars: tuple[Path, Any, Any]
) -> None:
    root, summary = reinforced
    _, images, texts = tars
    cache = open_cache(root)
    assert (
        cache.manifest.latest.format_version == 3
    )  # earlier releases could not plan the tars again
    rows = np.arange(8)
    for view in (1, 2):
        found = cache.image_targets("other").read(rows, np.full(8, view))
        np.testing.assert_allclose(found, images[:, view - 1] / np.sqrt(2), atol=6e-3)
    mean = unit(images.mean(axis=1))
    np.testing.assert_allclose(cache.image_targets("other").read(rows), mean, atol=6e-3)
    captions = cache.captions().collect().join(cache.texts().collect(), on="text_row")
    for row, text_row, text in captions.select("row", "text_row", "text").iter_rows():
        number = 0 if text.startswith("web") else int(text.split()[-1])
        [found] = cache.text_targets("other").read([text_row])
        np.testing.assert_allclose(found, texts[row, number] / np.sqrt(2), atol=6e-3)
    for ref in image_refs(cache, list(rows)):
        boxes = [pixel_box(box, 24, 16) for box in ref.boxes[1:]]
        crops = [crop for crop, _ in draw_crops(2, ref.row)]
        assert boxes == [(x, y, x + w, y + h) for y, x, h, w in crops]
    assert summary.note is not None
    assert summary.note.startswith("8 of 16 crops were also changed by RandAugment")
    assert summary.fit is not None
    assert summary.fit.num_pairs == 8


def test_a_later_build_over_the_tars_embeds_the_same_crops(
    reinforced: tuple[Path, ImportSummary],
    tars: tuple[Path, Any, Any],
    tiny_checkpoint: Path,
    tiny_student: Path,
    tmp_path: Path,
    one_thread: None,
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(reinforced[0], cache)
    config = config_of(tars[0], cache, tiny_checkpoint)
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    opened = open_cache(cache)
    assert len(opened.manifest.generations) == 1  # the same plan: nothing was drawn anew
    assert opened.teachers == ("other", "tiny")
    assert verify_cache(opened).faults == []
    train_of(cache, tiny_student, tmp_path / "run", teacher="other", global_batch_size=4)
    assert (tmp_path / "run" / "model").exists()


def test_an_image_whose_crops_are_not_its_views_has_no_target(
    tars: tuple[Path, Any, Any], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    cache = tmp_path / "cache"
    config = config_of(
        tars[0], cache, tiny_checkpoint, num_views=3, shard_rows=4, caption_endings=("txt",)
    )
    build(config, progress=SilentProgress(), make_teacher=lambda *_: FakeTeacher())
    with pytest.raises(Exception, match="every image of this import was rejected") as caught:
        import_into(tars[0], cache)
    assert "it has other views in the cache than the crops of its paug.json" in str(caught.value)


def test_new_images_and_repaired_ones_get_their_targets_by_the_same_command(
    clip_folder: Path, tmp_path: Path
) -> None:
    corpus, cache = tmp_path / "corpus", tmp_path / "cache"
    write_folder_corpus(corpus, 5, captions=0)
    sound = (corpus / "img002.png").read_bytes()
    (corpus / "img002.png").write_bytes(sound[:60])
    import_into(clip_folder, cache, corpus=corpus)
    opened = open_cache(cache)
    assert opened.image_targets("other").available_rows().tolist() == [0, 1, 3, 4]
    (corpus / "img002.png").write_bytes(sound)
    import_into(clip_folder, cache, retry_rejected=True)
    write_folder_corpus(corpus, 3, captions=0, first=5)
    import_into(clip_folder, cache, corpus=corpus)
    opened = open_cache(cache)
    rows = [*range(5), 8, 9, 10]  # units of 4 rows; the new images start another
    images, _ = pairs(NUM, WIDTH)
    np.testing.assert_allclose(opened.image_targets("other").read(rows), images[:8], atol=2e-3)
    assert verify_cache(opened).faults == []


def test_parquet_has_an_embedding_for_each_view(
    corpus: Path, tmp_path: Path, command: Command
) -> None:
    images, _ = pairs(2 * NUM, WIDTH)
    lines = [(f"img{i // 2:03d}", i % 2) for i in range(2 * NUM)]
    del lines[7]  # view 1 of img003
    columns = {
        "key": [key for key, _ in lines],
        "view": [view for _, view in lines],
        "embedding": np.delete(images, 7, axis=0).tolist(),
    }
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    arguments = ("import", tmp_path / "e.parquet", tmp_path / "cache", "--teacher-name", "p")
    numbers = ("--logit-scale", 4.6, "--logit-bias", 0, "--decode-workers", 0, "--quiet")
    status, _, err = command(*arguments, "--corpus", corpus, "--views", 2, *numbers)
    assert (status, err) == (0, "")
    cache = open_cache(tmp_path / "cache")
    found = cache.image_targets("p").read(np.array([0, 0, 11]), np.array([0, 1, 1]))
    np.testing.assert_allclose(found, images[[0, 1, 23]], atol=2e-3)
    rejected = cache.rejected("p").collect().rows(named=True)
    assert [(row["key"], row["reason"]) for row in rejected if row["modality"] == "image"] == [
        ("img003", "no embedding of its view 1 was imported")
    ]
    line = error_line(*command(*arguments, "--views", 3))
    assert line.startswith(f"views is 2 in {tmp_path}/cache and cannot be changed to 3;")


def test_other_columns_of_the_same_files_are_another_teacher(corpus: Path, tmp_path: Path) -> None:
    """In a folder whose name is a pattern to some readers."""
    here = tmp_path / "g [2024]"
    here.mkdir()
    images, others = pairs(NUM, WIDTH)
    keys = [f"img{i:03d}" for i in range(NUM)]
    texts = {"text": [f"Picture {i}" for i in range(NUM)], "text_embedding": others.tolist()}
    table = {"key": keys, "embedding": images.tolist(), "other": others.tolist(), **texts}
    pq.write_table(pa.table(table), here / "e.parquet")
    cache, fitted = here / "cache", {"logit_scale": None, "logit_bias": None}
    import_into(here / "e.parquet", cache, corpus=corpus, **fitted)
    assert import_into(here / "e.parquet", cache, **fitted).build.num_images == 0
    columns = EmbeddingColumns(embedding="other")
    with pytest.raises(SettingError) as refused:
        import_into(here / "e.parquet", cache, columns=columns, **fitted)
    assert str(refused.value) == (
        f"teacher 'other' of {cache} was imported from the same files by other columns, or with names beside "
        "other vectors; name the columns as then, or give this import another name with --teacher-name"
    )


def test_names_that_were_swapped_are_another_teacher(corpus: Path, tmp_path: Path) -> None:
    images, _ = pairs(NUM, WIDTH)
    keys, half = [f"img{i:03d}" for i in range(NUM)], NUM // 2
    source = tmp_path / "e"
    source.mkdir()
    for name, part in (("a", slice(half)), ("b", slice(half, NUM))):
        np.save(source / f"{name}.npy", images[part])
        (source / f"{name}.txt").write_text("\n".join(keys[part]))
    import_into(source, tmp_path / "cache", corpus=corpus)
    for old, new in (("a.txt", "c"), ("b.txt", "a.txt"), ("c", "b.txt")):
        (source / old).rename(source / new)
    with pytest.raises(SettingError, match="with names beside other vectors"):
        import_into(source, tmp_path / "cache")
    for old, new in (
        ("a.npy", "c"),
        ("b.npy", "a.npy"),
        ("c", "b.npy"),
    ):  # other names, equal pairs
        (source / old).rename(source / new)
    assert import_into(source, tmp_path / "cache").build.num_images == 0


def test_killed_again_and_again_the_cache_equals_that_of_an_undisturbed_import(
    corpus: Path, clip_folder: Path, imported: Path, tmp_path: Path
) -> None:
    expected = tree_of(imported)
    assert_survives_kills(expected, tmp_path / "cache", clip_folder, "--corpus", corpus)


def test_killed_again_and_again_an_import_of_tars_equals_an_undisturbed_one(
    tars: tuple[Path, Any, Any], reinforced: tuple[Path, ImportSummary], tmp_path: Path
) -> None:
    assert_survives_kills(tree_of(reinforced[0]), tmp_path / "cache", tars[0], "--fit")


def assert_survives_kills(
    expected: dict[str, bytes], cache: Path, source: Path, *options: object
) -> None:
    num_kills = 0
    while True:
        assert num_kills < 60, "the import makes no progress"
        command = [sys.executable, run_import.__file__, source, cache, *options]
        result = processes.run([*command, "--kill-at", 100])
        if result.returncode == 0:
            break
        assert result.returncode == -9, result.stderr
        num_kills += 1
    assert num_kills >= 2
    found = tree_of(cache)
    assert found.keys() == expected.keys()
    assert found == expected


def test_an_object_store_holds_the_same_bytes_and_gives_the_embeddings(
    s3: "S3", corpus: Path, clip_folder: Path, imported: Path, tmp_path: Path
) -> None:
    for path, data in tree_of(clip_folder).items():
        s3.write(f"emb/{path}", data)
    source, url = (parse_location(f"{s3.url}/{name}") for name in ("emb", "cache"))
    summary = import_into(source, url, corpus=corpus)
    cache = open_cache(url)
    local = open_cache(imported)
    assert summary.digest == local.teacher("other").identity["imported"]
    rows = np.arange(NUM - 1)
    assert np.array_equal(
        cache.image_targets("other").read(rows), local.image_targets("other").read(rows)
    )
    assert verify_cache(cache).faults == []


def test_tars_in_an_object_store_are_read_in_place(s3: "S3", tars: tuple[Path, Any, Any]) -> None:
    for path, data in tree_of(tars[0]).items():
        s3.write(f"tars/{path}", data)
    url = parse_location(f"{s3.url}/cache")
    import_into(parse_location(f"{s3.url}/tars"), url)
    cache = open_cache(url)
    assert cache.num_views == 3
    assert len(cache.image_targets("other").available_rows()) == 8
    assert verify_cache(cache).faults == []


def test_imported_targets_written_by_plain_zarr_and_pyarrow_read_right(
    write_foreign_cache: Callable[..., "ForeignCache"], tmp_path: Path, command: Command
) -> None:
    foreign = write_foreign_cache(tmp_path / "c", teachers=("tiny", "imported"))
    cache = open_cache(foreign.root)
    assert [cache.teacher(name).is_imported for name in ("tiny", "imported")] == [False, True]
    for modality in ("image", "text"):
        targets = cache.targets(modality, "imported")
        expected = foreign.targets["imported", modality][targets.available_rows()]
        views = [0] * len(expected) if modality == "image" else None
        expected = expected[:, 0] if modality == "image" else expected
        assert np.array_equal(targets.read(targets.available_rows(), views), expected)
    assert verify_cache(cache).faults == []
    _, out, _ = command("info", foreign.root)
    assert "imported from example/imported, SHA-256 " in out
    sample = ("verify", foreign.root, "--sample", 1, "--teacher", "imported")
    assert "there is no live teacher" in error_line(*command(*sample))
    status, _, err = command("neighbors", foreign.root, "--row", 0, "--teacher", "imported")
    assert status == 0, err


def test_what_is_exported_for_clip_retrieval_is_imported_again(
    reinforced: tuple[Path, ImportSummary],
    tars: tuple[Path, Any, Any],
    tmp_path: Path,
    command: Command,
) -> None:
    import faiss

    out = tmp_path / "out"
    status, said, err = command(
        "export", "embeddings", reinforced[0], out, "--to", "clip-retrieval"
    )
    assert status == 0, err
    assert "clip-retrieval back --indices_paths" in said
    assert list(json.loads((out / "indices_paths.json").read_text()).values()) == [str(out)]
    tables = [pq.read_table(path) for path in sorted((out / "metadata").iterdir())]
    metadata = pa.concat_tables(tables).to_pylist()
    image, text = (faiss.read_index(str(out / f"{name}.index")) for name in ("image", "text"))
    assert (image.ntotal, text.ntotal, len(metadata)) == (8, 24, 24)
    cache = open_cache(reinforced[0])
    for number in (0, 7, 8, 23):  # as clip_back.py looks up a result
        line = metadata[number]
        stored = cache.text_targets("other").read([line["text_row"]])
        _, found, vectors = text.search_and_reconstruct(stored.astype(np.float32), 1)
        assert found[0, 0] == number
        np.testing.assert_allclose(vectors[0, 0], stored[0], atol=1e-3)
    assert [line["key"] for line in metadata[:8]] == cache.samples().collect()["key"].to_list()
    again = import_into(out, tmp_path / "again", corpus=tars[0])
    found = open_cache(tmp_path / "again").image_targets("other").read(np.arange(8))
    assert np.array_equal(found, cache.image_targets("other").read(np.arange(8)))
    assert again.names["image"] == {"matched": 8, "unknown": 0, "repeated": 0}
