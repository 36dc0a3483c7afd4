"""A build with a NaFlex teacher: what fixed-resolution ones can do, each picture at its own shape."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.fakes import (
    FakeNaflexTeacher,
    SilentProgress,
    config_of,
    draw_image,
    tree_of,
)
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tokenizers import normalizers

from siglip2_cache import open_cache
from siglip2_cache.errors import SettingError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.dry_run import dry_run
from siglip2_cache.precompute.teacher import embedder, siglip_teacher
from siglip2_cache.precompute.teacher.embedder import split_images
from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
from siglip2_cache.precompute.verify_live import verify_live
from siglip2_cache.siglip import NaflexRecipe, SquashRecipe, resolve_checkpoint
from siglip2_cache.store.cache import Cache
from siglip2_cache.store.describe import describe, describe_lines
from siglip2_cache.store.format.views import ViewBox, pixel_box
from siglip2_cache.store.verify.verify import verify_cache

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

# (width, height); several share a number of patches, some a grid, some have one of their own
SIZES = [
    (640, 480),
    (480, 640),
    (640, 480),
    (64, 63),
    (500, 375),
    (640, 427),
    (1, 1),
    (4000, 1),
    (1, 4000),
    (333, 500),
    (640, 480),
    (20, 12),
    (256, 256),
    (900, 80),
    (427, 640),
    (7, 300),
    (640, 427),
    (375, 500),
    (480, 640),
]


def smooth(seed: int, size: tuple[int, int]) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (4, 5, 3), np.uint8)).resize(size, 3)


def name_of(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many shapes, one of them damaged, with a caption each."""
    folder = tmp_path_factory.mktemp("shapes") / "corpus"
    folder.mkdir()
    for i, size in enumerate(SIZES):
        smooth(i, size).save(folder / f"{i:02d}-{name_of(size)}.png")
        (folder / f"{i:02d}-{name_of(size)}.txt").write_text(f"Picture {i // 2}")
    (folder / "05-broken.png").write_bytes(b"nonsense")
    return folder


def views_of(cache: Cache) -> dict[tuple[str, int], ViewBox]:
    """The stored boxes by key and view."""
    keys = dict(cache.samples().select("row", "key").collect().iter_rows())
    if cache.num_views == 1:
        return {(key, 0): ViewBox(0.0, 0.0, 1.0, 1.0) for key in keys.values()}
    columns = ("row", "view", "top", "left", "height", "width", "flip")
    boxes = cache.table("views").select(*columns).collect()
    return {(keys[row], view): ViewBox(*box) for row, view, *box in boxes.iter_rows()}


class Plain:
    """Plain transformers in float32, one picture at a time."""

    def __init__(self, folder: Path, limit: int, dtype: torch.dtype = torch.float32) -> None:
        from transformers import AutoModel, AutoProcessor, PreTrainedTokenizerFast

        self.model = AutoModel.from_pretrained(folder, dtype=dtype).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        # As saved: Siglip2Tokenizer, which AutoProcessor takes, would cut up words in its own way.
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.limit = limit

    def embed_image(self, image: Image.Image) -> NDArray[np.float64]:
        inputs = self.processor(images=image, return_tensors="pt", max_num_patches=self.limit)
        with torch.no_grad():
            found = self.model.get_image_features(**inputs).pooler_output
        return torch.nn.functional.normalize(found.double(), dim=-1).numpy()[0]

    def embed_view(self, image: Image.Image, box: ViewBox) -> NDArray[np.float64]:
        view = image.crop(pixel_box(box, *image.size))
        return self.embed_image(ImageOps.mirror(view) if box.flip else view)

    def embed_text(self, text: str) -> NDArray[np.float64]:
        lower = normalizers.Lowercase().normalize_str(text)
        settings = {"padding": "max_length", "max_length": 64, "truncation": True}
        ids = self.tokenizer([lower], return_tensors="pt", **settings)["input_ids"]
        with torch.no_grad():
            found = self.model.get_text_features(input_ids=ids).pooler_output
        return torch.nn.functional.normalize(found.double(), dim=-1).numpy()[0]


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


# Parity


@pytest.fixture(scope="module")
def references() -> dict[tuple[Any, ...], NDArray[np.float64]]:
    """Embeddings by plain transformers, made once for all tests."""
    return {}


@pytest.mark.parametrize(
    ("settings", "num_passes", "limit"),
    [
        pytest.param({"batch_size": 16}, 4, None, id="the default batch"),
        pytest.param({"batch_size": 1}, 4, None, id="one by one"),
        pytest.param({"batch_size": 3}, 1, None, id="a window of one pass"),
        pytest.param({"batch_size": 3, "shard_rows": 8}, 2, None, id="short units"),
        pytest.param({"batch_size": 3, "decode_workers": 2}, 4, None, id="workers"),
        pytest.param({"batch_size": 4, "num_views": 3}, 4, None, id="views"),
        pytest.param(
            {"batch_size": 5, "num_views": 3, "decode_workers": 2, "max_num_patches": 60},
            3,
            60,
            id="views, workers, fewer patches",
        ),
        pytest.param({"batch_size": 2, "num_views": 4}, 1, None, id="more views than a pass holds"),
        pytest.param({"batch_size": 16, "max_num_patches": 400}, 4, 400, id="more patches"),
    ],
)
def test_embeddings_equal_plain_transformers_one_by_one(
    corpus: Path,
    naflex_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    references: dict[tuple[Any, ...], NDArray[np.float64]],
    settings: dict[str, Any],
    num_passes: int,
    limit: int | None,
) -> None:
    monkeypatch.setattr(embedder, "_WINDOW_PASSES", num_passes)
    build(config_of(corpus, tmp_path / "cache", naflex_checkpoint, **settings))
    cache = open_cache(tmp_path / "cache")
    plain = Plain(naflex_checkpoint, limit or 256)
    rows = dict(cache.samples().select("key", "row").collect().iter_rows())
    boxes = views_of(cache)
    assert len(boxes) == (len(SIZES) + 1) * settings.get("num_views", 1)
    compared: list[float] = []
    for (key, view), box in boxes.items():
        if key == "05-broken":
            continue
        [found] = cache.image_targets().read([rows[key]], [view])
        reference = (key, box, plain.limit)
        if reference not in references:
            with Image.open(corpus / f"{key}.png") as image:
                references[reference] = plain.embed_view(image, box)
        compared.append(cosine(found, references[reference]))
    assert len(compared) == len(SIZES) * settings.get("num_views", 1)
    assert min(compared) > 1 - 1e-5
    texts = cache.texts().sort("text_row").collect()["text"].to_list()
    for text, found in zip(texts, cache.text_targets().read(range(len(texts))), strict=True):
        assert cosine(found, plain.embed_text(text)) > 1 - 1e-5
    assert cache.rejected().collect()["key"].to_list() == ["05-broken"]
    assert verify_cache(cache).faults == []


def test_pictures_and_their_mirror_images_are_told_apart(naflex_checkpoint: Path) -> None:
    # else the comparisons of this file would pass on anything
    plain = Plain(naflex_checkpoint, 256)
    pictures = [smooth(i, size) for i, size in enumerate(SIZES)]
    rows = np.stack([plain.embed_image(picture) for picture in pictures])
    cosines = rows @ rows.T
    assert np.median(cosines[~np.eye(len(rows), dtype=bool)]) < 0.95
    mirrored = plain.embed_image(ImageOps.mirror(pictures[0]))
    squashed = plain.embed_image(pictures[0].resize((256, 256)))
    for other in (mirrored, squashed):
        assert cosine(rows[0], other) < 1 - 1e-4


def test_half_precision_stays_near(corpus: Path, naflex_checkpoint: Path, tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path / "cache", naflex_checkpoint, dtype="bfloat16")
    build(config)
    cache = open_cache(tmp_path / "cache")
    plain = Plain(naflex_checkpoint, 256)
    for row, key in cache.samples().select("row", "key").collect().iter_rows():
        if key != "05-broken":
            with Image.open(corpus / f"{key}.png") as image:
                found = cosine(cache.image_targets().read([row])[0], plain.embed_image(image))
            assert 1 - 5e-4 < found < 1 - 1e-9


# Forward passes


def built(
    corpus: Path,
    cache: Path,
    checkpoint: Path,
    teacher: FakeNaflexTeacher | None = None,
    progress: SilentProgress | None = None,
    **settings: Any,
) -> FakeNaflexTeacher:
    """Build with the fake teacher, which takes the checkpoint's recipe."""
    teacher = teacher or FakeNaflexTeacher()

    def make(found: Any, *_: object) -> FakeNaflexTeacher:
        teacher.recipe = found.image
        return teacher

    config = config_of(corpus, cache, checkpoint, **settings)
    build(config, progress=progress or SilentProgress(), make_teacher=make)
    return teacher


def patches_of(one_pass: list[tuple[int, int]]) -> list[int]:
    return [rows * columns for rows, columns in one_pass]


def test_views_of_as_many_patches_share_a_pass_and_others_are_padded_to_the_largest(
    corpus: Path, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    teacher = built(corpus, tmp_path / "cache", naflex_checkpoint, batch_size=3)
    # Windows of 12 images: 00..09 and the broken one, which takes no place; then 10..18.
    counts = [patches_of(one) for one in teacher.passes]
    assert [len(one) for one in counts] == [3, 3, 3, 2, 3, 3, 2]
    assert counts[0] == [252, 252, 252]
    assert teacher.passes[0] == [(14, 18), (18, 14), (14, 18)]  # two grids, one number
    assert teacher.widths == [max(one) for one in counts]
    assert sum(map(len, counts)) == len(SIZES)
    for window in (counts[:4], counts[4:]):
        rest = [count for one in window if len(set(one)) > 1 for count in one]
        assert rest == sorted(rest)


def test_a_rejected_picture_takes_no_place_in_a_pass(
    naflex_checkpoint: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(6):
        draw_image(i, (64, 48)).save(corpus / f"{i}.png")
    (corpus / "2.png").write_bytes(b"")
    teacher = built(corpus, tmp_path / "cache", naflex_checkpoint, batch_size=5, num_views=2)
    assert [len(one) for one in teacher.passes] == [5, 5]
    rejected = open_cache(tmp_path / "cache").rejected().collect()
    assert rejected["key"].to_list() == ["2"]
    draw_image(2, (64, 48)).save(corpus / "2.png")
    again = built(corpus, tmp_path / "cache", naflex_checkpoint, retry_rejected=True)
    assert sum(map(len, again.passes)) == 12  # with the same neighbours
    assert open_cache(tmp_path / "cache").rejected().collect().is_empty()
    assert verify_cache(open_cache(tmp_path / "cache")).faults == []


def test_a_build_gives_the_same_bytes_with_workers_and_when_it_is_stopped_and_resumed(
    corpus: Path, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    def stop() -> None:
        raise ZeroDivisionError

    settings: dict[str, Any] = {"batch_size": 2, "num_views": 2, "shard_rows": 8}
    built(corpus, tmp_path / "whole", naflex_checkpoint, **settings)
    settings["decode_workers"] = 2
    progress = SilentProgress(on_unit=stop)
    with pytest.raises(ZeroDivisionError):
        built(corpus, tmp_path / "halves", naflex_checkpoint, None, progress, **settings)
    second = built(corpus, tmp_path / "halves", naflex_checkpoint, **settings)
    assert 0 < sum(map(len, second.passes)) < len(SIZES) * 2
    whole, halves = tree_of(tmp_path / "whole"), tree_of(tmp_path / "halves")
    assert whole == halves


def test_a_batch_that_does_not_fit_is_halved_for_good(
    corpus: Path, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    built(corpus, tmp_path / "roomy", naflex_checkpoint, batch_size=8)
    tight = built(
        corpus, tmp_path / "tight", naflex_checkpoint, FakeNaflexTeacher(fits=3), batch_size=8
    )
    assert max(map(len, tight.passes)) == 2
    assert sum(map(len, tight.passes)) == len(SIZES)
    roomy_rows, tight_rows = (
        open_cache(tmp_path / name).image_targets().read_unit(0) for name in ("roomy", "tight")
    )
    np.testing.assert_array_equal(roomy_rows, tight_rows)
    record = json.loads((tmp_path / "tight/teachers/naflex/commits/image-00000.json").read_text())
    assert record["batch_size"] == 2


@pytest.mark.parametrize(
    ("limit", "batch_size", "num_views", "expected"),
    [
        (256, 16, 1, (64, 16)),
        (256, 16, 5, (12, 16)),
        (256, 512, 1, (2 * 512, 512)),  # 96 MiB a pass: two go into 256 MiB
        (4096, 512, 1, (512, 512)),
        (256, 2, 9, (1, 2)),
    ],
)
def test_a_window_is_a_few_passes_and_bounded_in_memory(
    limit: int, batch_size: int, num_views: int, expected: tuple[int, int]
) -> None:
    recipe = NaflexRecipe(patch_size=16, max_num_patches=limit, resample=2)
    assert split_images(recipe, batch_size, num_views) == expected


def test_a_fixed_resolution_pass_is_what_was_decoded_together() -> None:
    recipe = SquashRecipe(size=(64, 64), resample=2)
    assert split_images(recipe, 16, 1) == (16, 16)
    assert split_images(recipe, 16, 5) == (3, 15)
    assert split_images(recipe, 2, 5) == (1, 2)


def test_the_batch_size_is_measured_with_full_grids_and_no_mask(
    naflex_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = SiglipTeacher(resolve_checkpoint(str(naflex_checkpoint)), device="cpu")
    measured: list[list[tuple[int, ...]]] = []
    forward = teacher._start

    def start(inputs: Any, run: Any) -> Any:
        measured.append([array.shape for array in inputs])
        monkeypatch.setattr(teacher, "device", "cpu")
        return forward(inputs, run)

    def measure(time_batch: Callable[[int], float]) -> int:
        assert time_batch(3) > 0
        return 3

    monkeypatch.setattr(teacher, "device", "cuda")
    monkeypatch.setattr(teacher, "_start", start)
    monkeypatch.setattr(siglip_teacher, "fastest_batch_size", measure)
    assert teacher.auto_batch_size() == (3, 3)
    assert measured[0] == [(3, 256, 768)]


# The limit of patches


def test_a_limit_left_out_is_that_of_the_cache_and_another_is_refused(
    corpus: Path, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = built(corpus, cache, naflex_checkpoint, max_num_patches=50, shard_rows=8)
    assert first.recipe.max_num_patches == 50
    assert max(first.widths) <= 50
    assert open_cache(cache).teacher("naflex").identity["image_max_num_patches"] == 50
    said = "\n".join(describe_lines(describe(open_cache(cache))))
    assert "float32, at most 50 patches a view, scale" in said
    for path in sorted(cache.glob("teachers/naflex/commits/image-00001.json")):
        path.unlink()  # a unit is missing, as after a kill
    second = built(corpus, cache, naflex_checkpoint)
    assert second.recipe.max_num_patches == 50
    assert 0 < max(second.widths) <= 50
    for limit in (49, 256):
        message = f"image_max_num_patches was 50 and is {limit}; to add it as a second teacher"
        with pytest.raises(SettingError, match=message):
            built(corpus, cache, naflex_checkpoint, max_num_patches=limit)
    other = built(corpus, cache, naflex_checkpoint, max_num_patches=256, teacher_name="more")
    assert max(other.widths) == 256
    assert open_cache(cache).teachers == ("more", "naflex")
    assert verify_cache(open_cache(cache)).faults == []


def test_a_fixed_resolution_checkpoint_takes_no_limit(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = config_of(corpus, tmp_path / "cache", tiny_checkpoint, max_num_patches=128)
    for run in (lambda: build(config), lambda: dry_run(config, is_timed=False)):
        with pytest.raises(
            SettingError, match=r"128 goes with a NaFlex checkpoint.*leave out --ma"
        ):
            run()
    assert not (tmp_path / "cache").exists()


def test_a_naflex_and_a_fixed_resolution_teacher_stand_side_by_side(
    corpus: Path, tiny_checkpoint: Path, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    built(corpus, cache, naflex_checkpoint, teacher_name="one")
    with pytest.raises(
        SettingError, match=r"image_patch_size was 16 and is None; .*image_size was"
    ):
        build(config_of(corpus, cache, tiny_checkpoint, teacher_name="one"))
    build(config_of(corpus, cache, tiny_checkpoint, teacher_name="two"))
    assert open_cache(cache).teachers == ("one", "two")
    with pytest.raises(SettingError, match=r"image_patch_size was None and is 16"):
        build(config_of(corpus, cache, naflex_checkpoint, teacher_name="two"))


# The live teacher


def test_rows_are_compared_with_the_live_teacher_at_the_recorded_limit(
    corpus: Path, naflex_checkpoint: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"max_num_patches": 60, "num_views": 3, "batch_size": 4}
    build(config_of(corpus, tmp_path / "cache", naflex_checkpoint, **settings))
    found = verify_live(open_cache(tmp_path / "cache"), 100, device="cpu")
    assert found.faults == []
    assert found.cosines["image"].count == len(SIZES) * 3
    assert found.cosines["image"].min > 1 - 1e-6
    moved = corpus / "00-640x480.png"
    data = moved.read_bytes()
    try:
        smooth(99, (640, 480)).save(moved)
        found = verify_live(open_cache(tmp_path / "cache"), 100, device="cpu")
    finally:
        moved.write_bytes(data)
    assert found.faults == ["image '00-640x480' (row 0): its bytes are not those the teacher saw"]
    assert found.cosines["image"].count == (len(SIZES) - 1) * 3


@pytest.mark.parametrize("batch_size", [4, 64])
def test_a_dry_run_times_real_batches(
    corpus: Path, naflex_checkpoint: Path, tmp_path: Path, batch_size: int
) -> None:
    config = config_of(
        corpus, tmp_path / "cache", naflex_checkpoint, batch_size=batch_size, num_views=2
    )
    found = dry_run(config, is_timed=True)
    assert found.num_images == len(SIZES) + 1
    assert found.images_per_s is not None
    assert 0.1 < found.images_per_s < 10_000
    assert not (tmp_path / "cache").exists()


# A true checkpoint


@pytest.fixture(scope="module")
def so400m(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SO400M of true size, 2.3 GB of random bfloat16 weights, with published tokenizer files."""
    folder = tmp_path_factory.mktemp("teachers") / "siglip2-so400m-patch16-naflex"
    return make_checkpoint(
        "so400m-patch16-naflex", folder, processor=DATA / "siglip2_base_processor"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no photographs and tokenizer in {DATA}")
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-6), ("bfloat16", 1e-4)],  # measured: below 1e-7, and 1.1e-5
)
def test_an_so400m_of_true_size_embeds_photographs_as_plain_transformers_does(
    so400m: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    photos = photographs_of_varied_shape(DATA / "coco288", 8)
    table = tmp_path / "photos.jsonl"
    table.write_text("".join(json.dumps({"image": str(path)}) + "\n" for path in photos))
    build(config_of(table, tmp_path / "cache", so400m, dtype=dtype, batch_size=4))
    targets = open_cache(tmp_path / "cache").image_targets()
    plain = Plain(so400m, 256, getattr(torch, dtype))
    for row, path in enumerate(photos):
        with Image.open(path) as image:
            expected = plain.embed_image(image.convert("RGB"))
            found = cosine(targets.read([row])[0], expected)
            print(f"{path.name} {image.width} x {image.height}: cosine {found:.7f}")
        assert found > 1 - tolerance


def photographs_of_varied_shape(corpus: Path, count: int) -> list[Path]:
    """From the tallest to the widest."""
    aspects: dict[Path, float] = {}
    for path in sorted(corpus.glob("images/*.jpg")):
        with Image.open(path) as image:
            aspects[path] = image.width / image.height
    ordered = sorted(aspects, key=lambda path: aspects[path])
    return [ordered[i * (len(ordered) - 1) // (count - 1)] for i in range(count)]
