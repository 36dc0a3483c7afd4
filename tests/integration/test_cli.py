"""The commands as a user runs them, with a real (tiny) torch teacher in a process of their own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from kit.commands import run
from kit.fakes import FakeTeacher, SilentProgress, config_of, draw_image, tree_of
from kit.published import REAL_PROCESSOR, SMALL_PROCESSOR, needs_real_processor, num_tokens
from kit.reference import Reference, distance
from PIL import Image, ImageOps

from siglip2_cache import open_cache
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.executor.messages import BuildInterrupted
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.views import ViewBox, pixel_box

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
CAPTIONS = {
    "en": ["A Photo of a HARBOUR at dawn", "boats", "boats"],
    "de": ["Ein Hafen in der Dämmerung, Straße und Schiffe"],
    "ja": ["夜明けの港"],
    "ar": ["ميناء عند الفجر"],
    "el": ["ΛΙΜΑΝΙ ΣΤΟΥΣ ΔΡΟΜΟΥΣ"],
    "en-GB": ["word " * 150 + "which is cut off after 64 tokens"],
}


@dataclass(frozen=True)
class Built:
    """A finished cache, made by the command line; read it, do not change it."""

    corpus: Path
    root: Path
    checkpoint: Path
    stdout: str
    stderr: str

    @property
    def cache(self) -> Cache:
        return open_cache(self.root)


@pytest.fixture
def tmp_path(short_path: Path) -> Path:
    """Of a short name, for messages are cut."""
    return short_path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 pictures of many kinds with captions in six languages, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("drawn") / "corpus"
    folder.mkdir()
    sizes = [(64, 64), (200, 40), (40, 200), (300, 220), (16, 16), (128, 96)]
    for i in range(11):
        picture = draw_image(i, sizes[i % len(sizes)])
        name, mode = [("png", "RGB"), ("jpg", "RGB"), ("webp", "RGB"), ("bmp", "L")][i % 4]
        picture.convert(mode).save(folder / f"{i:02d}.{name}")
        lang = list(CAPTIONS)[i % len(CAPTIONS)]
        captions = [{"text": text, "lang": lang} for text in CAPTIONS[lang]]
        described = [*captions, {"text": f"Number {i}", "lang": "en"}]
        (folder / f"{i:02d}.json").write_text(json.dumps(described), encoding="utf-8")
    (folder / "torn.jpg").write_bytes((folder / "05.jpg").read_bytes()[:300])
    return folder


@pytest.fixture(scope="module")
def built(
    corpus: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Built]:
    """The drawn corpus built with units of 5 and batches of 4: borders of both fall everywhere."""
    root = tmp_path_factory.mktemp("built") / "cache"
    sizes = ["--views", 3, "--shard-rows", 5, "--batch-size", 12, "--device", "cpu"]
    result = run("build", corpus, root, "--teacher", tiny_checkpoint, *sizes)
    assert result.returncode == 0, result.stderr
    before = tree_of(root)
    yield Built(corpus, root, tiny_checkpoint, result.stdout, result.stderr)
    assert tree_of(root) == before, "a test changed the shared cache"


# -- build


def test_build_says_what_it_does_and_what_became_of_it(built: Built) -> None:
    lines = built.stderr.splitlines()
    assert lines[0] == f"planning {built.corpus}"
    assert lines[1] == f"loading teacher {built.checkpoint}"
    images, texts = (  # a busy machine shows lines on the way, too
        [line for line in lines if line.startswith(noun)][-1] for noun in ("images ", "texts ")
    )
    assert images.startswith("images 12/12, units 3/3, ")
    assert images.endswith(" images/s, 1 rejected")
    assert texts.startswith("texts 18/18, units 4/4, ")
    assert texts.endswith(" texts/s, 0 rejected")
    out = built.stdout
    assert out.startswith("planned    12 images, 24 captions, 18 unique texts\n")
    assert "embedded   12 images, 18 texts in 7 units, " in out
    assert "; batches of 12 images, 12 texts\n" in out
    assert "stages     read " in out
    assert "rejected   1 rows of the cache:\n           torn: damaged image: " in out
    assert out.endswith(f"cache      {built.root}, teacher tiny\n")


def test_a_second_build_embeds_nothing_wherever_it_is_started(
    built: Built, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.root.parent)  # relative paths and another working directory
    corpus = os.path.relpath(built.corpus)
    arguments = ("build", corpus, "cache", "--teacher", os.path.relpath(built.checkpoint))
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("nothing to do: every unit of cache is committed for tiny\n")


def test_dry_run_prints_what_a_build_costs_and_writes_nothing(
    built: Built, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    arguments = ("build", built.corpus, tmp_path / "new", "--teacher", built.checkpoint)
    status, out, _ = command(*arguments, "--dry-run", "--views", 3, "--shard-rows", 5)
    assert status == 0
    note, *lines = out.splitlines()
    assert note.startswith("note       images without a caption, where others have one: 1, first ")
    assert lines == [
        "images     12 x 3 views",
        "captions   24",
        "texts      18 unique",
        "units      3 image, 4 text, 5 rows each",
        f"on disk    {expected_size(built)} of targets (64 x float16), "
        f"{kilobytes(built, 'catalog/')} of catalog",
        "dry run: nothing was written",
    ]
    assert list(tmp_path.iterdir()) == []
    status, out, _ = command(
        "build", built.corpus, built.root, "--teacher", built.checkpoint, "--dry-run"
    )
    assert "images     0 x 3 views\n" in out
    assert "on disk    0 B of targets" in out


def expected_size(built: Built) -> str:
    shards = sum(len(data) for path, data in tree_of(built.root).items() if ".zarr/c/" in path)
    return f"{(shards + 44 * 12) / 1000:.1f} kB"  # and 44 bytes a row of images/*.parquet


def kilobytes(built: Built, start: str) -> str:
    sizes = [len(data) for path, data in tree_of(built.root).items() if path.startswith(start)]
    return f"{sum(sizes) / 1000:.1f} kB"


def test_dry_run_with_time_times_real_batches_and_writes_nothing(
    built: Built, tmp_path: Path
) -> None:
    arguments = ("build", built.corpus, tmp_path / "new", "--teacher", built.checkpoint)
    result = run(*arguments, "--dry-run", "--time", "--batch-size", 2, "--decode-workers", 0)
    assert result.returncode == 0, result.stderr
    [line] = [line for line in result.stdout.splitlines() if line.startswith("time ")]
    assert line.endswith(" texts/s on real batches)")
    assert " images/s, " in line
    assert list(tmp_path.iterdir()) == []


# -- info


def test_info_says_what_the_cache_holds(
    built: Built, command: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, err = command("info", built.root)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[:4] == [
        f"cache      {built.root}",
        f"source     folder {built.corpus}",
        "samples    12, 3 views each",
        "captions   24 (18 unique texts; language en 15, ar 2, de 2, el 2, ja 2, en-GB 1)",
    ]
    assert "teacher    tiny: complete" in out
    assert f"from {built.checkpoint}, float32, scale 115.58, bias -16.80" in out
    assert "image 12 of 12 rows (3 of 3 units), 1 rejected, 12 x 3 x 64 float16" in out
    assert "text  18 of 18 rows (4 of 4 units), 0 rejected, 18 x 64 float16" in out


def test_info_as_json_is_one_object_with_the_same_numbers(
    built: Built, command: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, _ = command("info", built.root, "--json")
    found = json.loads(out)
    assert status == 0
    assert (found["samples"], found["captions"], found["texts"], found["views"]) == (12, 24, 18, 3)
    assert sum(found["languages"].values()) == 24
    assert set(found["languages"]) == set(CAPTIONS)
    teacher = found["teachers"]["tiny"]
    assert teacher["is_complete"] is True
    assert teacher["image"]["rejected"] == 1
    assert teacher["text"]["shape"] == [18, 64]
    assert teacher["identity"]["compute_dtype"] == "float32"


# -- verify


def test_verify_passes_a_sound_cache(
    built: Built, command: Callable[..., tuple[int, str, str]]
) -> None:
    status, out, err = command("verify", built.root)
    assert (status, err) == (0, "")
    assert "rows       12 image, 18 text, 1 rejected" in out
    assert out.endswith("verified: no fault\n")
    status, out, _ = command("verify", built.root, "--json")
    assert status == 0
    assert json.loads(out)["ok"] is True
    assert json.loads(out)["faults"] == []


def test_verify_finds_one_flipped_bit_and_names_the_file(
    built: Built, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    shutil.copytree(built.root, tmp_path / "cache")
    shard = tmp_path / "cache" / layout.shard("tiny", "image", 1)
    data = bytearray(shard.read_bytes())
    data[77] ^= 1
    shard.write_bytes(data)
    status, out, err = command("verify", tmp_path / "cache", "--json")
    assert (status, err) == (1, "")
    [fault] = json.loads(out)["faults"]
    assert fault.startswith(
        f"{layout.shard('tiny', 'image', 1)} is damaged: its bytes have changed; "
    )
    assert "run the same build again" in fault


def test_verify_with_a_sample_compares_with_the_live_teacher(built: Built) -> None:
    result = run("verify", built.root, "--sample", 100, "--json", "--device", "cpu")
    assert result.returncode == 0, result.stdout
    found = json.loads(result.stdout)
    assert found["sample"]["image"]["count"] == 33  # 11 readable images, 3 views each
    assert found["sample"]["text"]["count"] == 18
    for modality in ("image", "text"):
        assert found["sample"][modality]["min_cosine"] > 1 - 1e-5
        assert found["sample"][modality]["mean_cosine"] >= found["sample"][modality]["min_cosine"]


def test_verify_with_a_sample_finds_embeddings_that_are_not_the_teachers(
    built: Built, tmp_path: Path
) -> None:
    # Every checksum fits, for the cache was built so: only the live teacher can tell.
    config = config_of(built.corpus, tmp_path / "cache", built.checkpoint, shard_rows=5)
    fake = FakeTeacher(image_size=(64, 64))
    build(config, progress=SilentProgress(), make_teacher=lambda *_: fake)
    result = run("verify", tmp_path / "cache", "--sample", 4, "--device", "cpu")
    assert result.returncode == 1
    assert result.stderr == ""
    faults = [line for line in result.stdout.splitlines() if line.startswith("FAULT")]
    for line, modality in zip(faults, ("image", "text"), strict=True):
        assert line.startswith(
            f"FAULT      {modality}: 4 of 4 embeddings differ from the live teacher's, cosine "
        )
        assert line.endswith(" at worst where 0.9999 is expected")
    assert result.stdout.endswith("2 faults\n")


def test_verify_with_a_sample_names_an_image_that_has_changed(built: Built, tmp_path: Path) -> None:
    moved = shutil.copytree(built.corpus, tmp_path / "moved")
    draw_image(99, (200, 40)).save(moved / "01.jpg")
    (moved / "02.webp").unlink()
    root = f"{built.corpus}={moved}"
    result = run(
        "verify", built.root, "--sample", 100, "--corpus-root", root, "--json", "--device", "cpu"
    )
    assert result.returncode == 1
    found = json.loads(result.stdout)
    changed, gone = found["faults"]
    assert changed == "image '01' (row 1): its bytes are not those the teacher saw"
    assert gone == "image '02' (row 2): no such file"
    assert found["sample"]["image"]["count"] == 27  # what those two would say means nothing
    assert found["sample"]["image"]["min_cosine"] > 0.9999


# -- errors


def test_every_mistake_is_one_line_that_says_what_would_be_right(
    built: Built, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    shutil.copy(built.checkpoint / "config.json", tmp_path / "half")
    new, teacher = tmp_path / "new", ("--teacher", built.checkpoint)

    def build_of(corpus: object, cache: object, *options: object) -> tuple[object, ...]:
        return ("build", corpus, cache, *(options if "--teacher" in options else teacher + options))

    cases: list[tuple[Sequence[object], str]] = [
        (build_of(tmp_path / "nowhere", new), f"there is no {tmp_path}/nowhere; expected a folder"),
        (build_of(tmp_path / "file", new), f"{tmp_path}/file is not a corpus; exp"),
        (build_of(tmp_path / "empty", new), f"{tmp_path}/empty holds no images; expected files"),
        (build_of(built.corpus, tmp_path / "file"), "file is a file; name a folder for the cache"),
        (build_of(built.corpus, "/proc/no"), "/proc/no: No such file or directory"),
        (
            build_of(built.corpus, new, "--teacher", tmp_path / "empty"),
            f"{tmp_path}/empty has no config.json, so it is not a complete Hugging Face checkpoint",
        ),
        (build_of(built.corpus, new, "--teacher", tmp_path / "half"), "no preprocessor_config."),
        (build_of(built.corpus, new, "--teacher", "no"), "no is neither a folder nor a hub id"),
        (build_of(built.corpus, new, "--device", "cuda:9"), "device 'cuda:9' is not available he"),
        (build_of(built.corpus, new, "--device", "gpu"), "device 'gpu' is not one of auto, cpu"),
        (build_of(built.corpus, new, "--dtype", "int8"), "dtype 'int8' is not one of auto, float"),
        (build_of(built.corpus, new, "--max-num-patches", "0"), "max num patches must be 1 to 65"),
        (build_of(built.corpus, new, "--max-num-patches", "99"), "99 goes with a NaFlex checkpoin"),
        (build_of(built.corpus, new, "--batch-size", "0"), "batch size must be 1 to 65,536, got 0"),
        (build_of(built.corpus, new, "--batch-size", "many"), "batch size must be auto or a whole"),
        (build_of(built.corpus, new, "--views", "0"), "views must be 1 to 256, got 0"),
        (build_of(built.corpus, new, "--shard-rows", "0"), "shard rows must be 1 to 16,777,216"),
        (build_of(built.corpus, new, "--time"), "--time goes with --dry-run"),
        (build_of(built.corpus, new, "--corpus-root", "a"), "corpus root 'a' is not OLD=NEW"),
        (build_of(built.corpus, built.root, "--views", "2"), "views is 3 in "),
        (build_of(built.corpus, built.root, "--dtype", "float16"), "was float32 and is float16"),
        (("info", tmp_path / "nowhere"), "no cache at "),
        (
            ("info", tmp_path / "empty"),
            "it contains no cache.json; create one with siglip2-cache build",
        ),
        (("verify", tmp_path / "file"), "it is a file; name the folder that contains cache.json"),
        (("verify", built.root, "--sample", "0"), "--sample must be at least 1 and --seed at leas"),
        (("verify", built.root, "--sample", "1", "--seed", "-1"), "got 1 and -1"),
        (("verify", built.root, "--teacher", "no"), "--teacher and --checkpoint go with --sample"),
        (("verify", built.root, "--sample", "1", "--teacher", "no"), "no teacher 'no' in "),
        (
            ("verify", built.root, "--sample", "1", "--checkpoint", "no"),
            "no is neither a folder nor a hub id",
        ),
    ]
    for arguments, message in cases:
        status, out, err = command(*arguments)
        shown = f"{arguments} -> {status} {out!r} {err!r}"
        assert (status, out) == (1, ""), shown
        [line] = [line for line in err.splitlines() if not line.startswith(("planning ", "see "))]
        assert line.startswith("error: "), shown
        assert message in line, shown
    assert not new.exists()


def test_a_damaged_table_is_one_line_that_sends_to_verify_which_names_it(
    built: Built, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    root = shutil.copytree(built.root, tmp_path / "cache")
    (root / "catalog" / "samples-00000.parquet").write_bytes(b"PAR1")
    status, out, err = command("info", root)
    assert (status, out) == (1, "")
    assert err.startswith("error: a table cannot be read (")
    assert err.endswith("; siglip2-cache verify CACHE names the damaged file\n")
    status, out, _ = command("verify", root)
    assert status == 1
    assert "FAULT      catalog/samples-00000.parquet is damaged: 4 bytes, " in out


def test_a_build_and_a_dry_run_print_json(
    built: Built, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    arguments = (
        "--teacher",
        built.checkpoint,
        "--device",
        "cpu",
        "--decode-workers",
        "0",
        "--json",
    )
    status, out, err = command("build", built.corpus, tmp_path / "new", *arguments, "--dry-run")
    assert status == 0, err
    dry = json.loads(out)
    assert dry["planned"]["samples"] == dry["images"] == 12
    assert dry["seconds"] is None
    status, out, err = command("build", built.corpus, tmp_path / "new", *arguments, "--quiet")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert found["planned"]["captions"] == dry["planned"]["captions"]
    assert found["images"] == dry["images"]
    assert found["rejected"] == sum(found["rejected_now"].values()) == len(found["first_rejected"])
    assert found["cache"] == str(tmp_path / "new")
    assert found["pixels"] is None
    status, out, _ = command("build", built.corpus, tmp_path / "new", *arguments)
    assert (status, json.loads(out)["units"]) == (0, 0)


def test_an_error_names_the_document_that_explains_it(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "empty").mkdir()
    status, out, err = command("build", tmp_path / "empty", tmp_path / "new", "--teacher", "none")
    assert (status, out) == (1, "")
    assert err.splitlines()[-2].startswith("error: ")
    assert re.fullmatch(r"see docs/[a-z]+/[a-z]+\.md(#[a-z-]+)?", err.splitlines()[-1])


def test_commands_and_options_are_completed(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SIGLIP2_CACHE_COMPLETE", "complete_bash")
    for words, completed in (
        ("siglip2-cache bu", "build"),
        ("siglip2-cache build --rev", "--revision"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert command() == (0, f"{completed}\n", "")


def test_a_reader_of_the_output_that_leaves_early_gets_no_traceback(built: Built) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "siglip2_cache.cli", "info", str(built.root)]
    result = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert result.stderr == ""


def test_ctrl_c_before_the_first_batch_also_says_how_to_go_on(
    built: Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("siglip2_cache.precompute.prepare.make_plan", interrupt)
    arguments = ("build", built.corpus, tmp_path / "new", "--teacher", built.checkpoint)
    status, _, err = command(*arguments)
    assert status == 130
    assert err == f"{BuildInterrupted()}\n"


# -- parity with transformers


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Reference:
    return Reference(tiny_checkpoint)


def test_every_image_has_the_embedding_that_transformers_gives_it_alone(
    built: Built, reference: Reference
) -> None:
    targets = built.cache.image_targets()
    rows = targets.available_rows()
    assert rows.tolist() == [*range(11)]  # borders of batches at 4, of units at 5 and 10
    for row, stored in zip(rows, targets.read(rows), strict=True):
        [path] = [p for p in built.corpus.glob(f"{row:02d}.*") if p.suffix != ".json"]
        with Image.open(path) as picture:
            assert distance(reference.image(picture), stored) < 1e-5, path


def test_every_text_has_the_embedding_that_transformers_gives_it_alone(
    built: Built, reference: Reference
) -> None:
    texts = built.cache.texts().collect()
    assert texts.height == 18
    stored = built.cache.text_targets().read(texts["text_row"].to_numpy())
    for text, row in zip(texts["text"], stored, strict=True):
        assert distance(reference.text(text), row) < 1e-5, text
    # The measure tells texts apart: else it would not see them mixed up.
    first = reference.text(texts["text"][0])
    assert min(distance(first, row) for row in stored[1:]) > 1e-3


def test_stored_views_replay_to_the_stored_embeddings(built: Built, reference: Reference) -> None:
    views = built.cache.table("views").sort("row", "view").collect()
    targets = built.cache.image_targets()
    assert views["flip"].any()
    for row in (0, 3, 4, 5, 10):  # borders of batches and of units
        [path] = [p for p in built.corpus.glob(f"{row:02d}.*") if p.suffix != ".json"]
        boxes = views.filter(pl.col("row") == row).drop("row", "view")
        for view, fields in enumerate(boxes.iter_rows(named=True)):
            box = ViewBox(**fields)
            with Image.open(path) as picture:
                crop = picture.convert("RGB")
                crop = crop.crop(pixel_box(box, crop.width, crop.height))
            crop = ImageOps.mirror(crop) if box.flip else crop
            [stored] = targets.read([row], np.array([view]))
            assert distance(reference.image(crop), stored) < 1e-5, (path, view)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 24 lines of COCO's sample, as a table of its own."""
    table = DATA / "coco288" / "captions.jsonl"
    if not table.exists():
        pytest.skip(f"there is no {table}")
    folder = tmp_path_factory.mktemp("coco")
    lines = table.read_text(encoding="utf-8").splitlines()[:24]
    (folder / "images").mkdir()
    for line in lines:
        image = json.loads(line)["image"]
        shutil.copy(table.parent / image, folder / image)
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "captions.jsonl"


@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(SMALL_PROCESSOR, id="small"),
        pytest.param(REAL_PROCESSOR, id="whole", marks=[needs_real_processor, pytest.mark.slow]),
    ],
)
def test_photographs_and_the_published_tokenizer_give_what_transformers_gives(
    coco: Path, make_checkpoint: Callable[..., Path], tmp_path: Path, processor: Path
) -> None:
    checkpoint = make_checkpoint(
        "tiny-patch16-64",
        tmp_path / "teacher",
        processor=processor,
        dtype="float32",
        vocab_size=num_tokens(processor),
    )
    sizes = ["--shard-rows", 16, "--batch-size", 7, "--device", "cpu"]
    result = run("build", coco, tmp_path / "cache", "--teacher", checkpoint, *sizes)
    assert result.returncode == 0, result.stderr
    assert "rejected   none" in result.stdout
    cache, reference = open_cache(tmp_path / "cache"), Reference(checkpoint)
    samples = cache.samples().join(cache.table("files"), on="file").sort("row").collect()
    assert samples.height == 24
    stored = cache.image_targets().read(samples["row"].to_numpy())
    for path, row in zip(samples["path"], stored, strict=True):
        with Image.open(coco.parent / path) as picture:
            assert distance(reference.image(picture), row) < 1e-5, path
    texts = cache.texts().collect()
    assert texts.height == len(set(texts["text"])) >= 110
    stored = cache.text_targets().read(texts["text_row"].to_numpy())
    for text, row in zip(texts["text"], stored, strict=True):
        assert distance(reference.text(text), row) < 1e-5, text


# -- what a terminal is given


def test_an_ascii_terminal_gets_what_it_can_show_and_whole_json(
    built: Built, tmp_path: Path
) -> None:
    root = shutil.copytree(built.root, tmp_path / "caché")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for arguments in (("info",), ("neighbors", "--sample", "1"), ("info", "--json")):
        ran = subprocess.run(
            [sys.executable, "-m", "siglip2_cache", arguments[0], str(root), *arguments[1:]],
            capture_output=True,
            env=environment,
        )
        assert (ran.returncode, ran.stderr) == (0, b"")
        out = ran.stdout.decode("ascii")
        assert ("cach\\u00e9" if "--json" in arguments else "?") in out
    assert json.loads(out)["cache"] == str(root)
