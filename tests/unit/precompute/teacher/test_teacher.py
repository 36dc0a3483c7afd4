"""The teacher gives what plain transformers gives, whatever the batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import normalizers

from siglip2_cache.errors import CacheError, SettingError
from siglip2_cache.precompute.teacher import siglip_teacher
from siglip2_cache.precompute.teacher.batch_size import fastest_batch_size
from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
from siglip2_cache.precompute.teacher.teacher import OutOfMemory, Teacher
from siglip2_cache.siglip import (
    SquashRecipe,
    autocast,
    is_out_of_memory,
    load_model,
    pool_images,
    pool_token_ids,
    resolve_checkpoint,
    resolve_compute_dtype,
    resolve_device,
    text_tower,
    vision_tower,
)

# Largest 1 - cosine to a float32 forward that a half-precision pass of the tiny model may show.
# Measured on AVX512: bfloat16 7.5e-5, float16 9.6e-7.
TOLERANCE = {"bfloat16": 3e-4, "float16": 5e-6}

TEXTS = [
    "A Cat on a mat.",
    "zwei HUNDE im Schnee",
    "ΟΔΥΣΣΕΥΣ",
    "猫とソファ",
    "",
    "word " * 200,
    "a red bus",
    "A Red Bus!",
    "x",
]


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Smooth coloured pictures of many shapes, larger and smaller than the model's."""
    draw = np.random.default_rng(0)
    sizes = [(64, 64), (90, 40), (31, 200), (300, 220), (64, 63), (7, 5), (500, 80), (65, 64)]
    return [
        Image.fromarray(draw.integers(0, 256, (4, 5, 3), np.uint8)).resize(size, 3)
        for size in sizes
    ]


@pytest.fixture(scope="module")
def teacher(tiny_checkpoint: Path) -> SiglipTeacher:
    return SiglipTeacher(resolve_checkpoint(str(tiny_checkpoint)), device="cpu")


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path, images: list[Image.Image]) -> dict[str, NDArray[np.float64]]:
    """Plain transformers in float32, one input at a time."""
    from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

    model = SiglipModel.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    process = AutoImageProcessor.from_pretrained(tiny_checkpoint)
    tokenize = AutoTokenizer.from_pretrained(tiny_checkpoint)

    def ids(text: str) -> torch.Tensor:
        lower = normalizers.Lowercase().normalize_str(text)
        settings = {"padding": "max_length", "max_length": 64, "truncation": True}
        return tokenize([lower], return_tensors="pt", **settings)["input_ids"]

    with torch.no_grad():
        image_rows = [
            model.get_image_features(**process(images=image, return_tensors="pt")).pooler_output
            for image in images
        ]
        text_rows = [model.get_text_features(input_ids=ids(text)).pooler_output for text in TEXTS]
    return {
        name: torch.nn.functional.normalize(torch.cat(rows).double(), dim=-1).numpy()
        for name, rows in (("image", image_rows), ("text", text_rows))
    }


def pixels_of(images: list[Image.Image], teacher: Teacher) -> NDArray[np.uint8]:
    recipe = teacher.image
    assert isinstance(recipe, SquashRecipe)
    H, W = recipe.size
    return np.stack([np.asarray(image.resize((W, H), recipe.resample)) for image in images])


def in_batches(
    embed: Callable[[Any], Callable[[], NDArray[np.float32]]], inputs: Any, size: int
) -> NDArray[np.float32]:
    waits = [embed(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    return np.concatenate([wait() for wait in waits])


def cosine_distance(a_BD: NDArray[Any], b_BD: NDArray[Any]) -> float:
    return float((1 - (a_BD.astype(np.float64) * b_BD).sum(axis=-1)).max())


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_embeddings_equal_a_plain_forward_one_by_one(
    teacher: SiglipTeacher,
    reference: dict[str, NDArray[np.float64]],
    images: list[Image.Image],
    size: int,
) -> None:
    pixels = pixels_of(images, teacher)
    for embed, inputs, expected in (
        (teacher.embed_images, pixels, reference["image"]),
        (teacher.embed_texts, TEXTS, reference["text"]),
    ):
        got_BD = in_batches(embed, inputs, size)
        assert got_BD.shape == (len(inputs), teacher.embed_dim)
        assert got_BD.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(got_BD, axis=-1), 1, atol=1e-6)
        assert cosine_distance(got_BD, expected) < 1e-5
        turned_BD = in_batches(embed, inputs[::-1], size)  # another position in the batch
        assert cosine_distance(turned_BD[::-1], expected) < 1e-5


@pytest.mark.parametrize("modality", ["image", "text"])
def test_different_inputs_have_clearly_different_embeddings(
    reference: dict[str, NDArray[np.float64]], modality: str
) -> None:
    # else the comparisons of this file would pass on anything
    rows_BD = reference[modality]
    cosines_BB = rows_BD @ rows_BD.T
    assert np.median(cosines_BB[~np.eye(len(rows_BD), dtype=bool)]) < 0.9


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("stored_dtype", ["float32", "as computed"])
def test_half_precision_stays_within_its_tolerance(
    tiny_checkpoint: Path,
    make_checkpoint: Callable[..., Path],
    tmp_path: Path,
    reference: dict[str, NDArray[np.float64]],
    images: list[Image.Image],
    stored_dtype: str,
    compute_dtype: str,
) -> None:
    folder = tiny_checkpoint
    if stored_dtype != "float32":  # the same weights, rounded
        folder = make_checkpoint("tiny-patch16-64", tmp_path, dtype=compute_dtype)
    teacher = SiglipTeacher(
        resolve_checkpoint(str(folder)), device="cpu", compute_dtype=compute_dtype
    )
    image_BD = teacher.embed_images(pixels_of(images, teacher))()
    text_BD = teacher.embed_texts(TEXTS)()
    assert image_BD.dtype == text_BD.dtype == np.float32
    for got_BD, expected in ((image_BD, reference["image"]), (text_BD, reference["text"])):
        assert 1e-9 < cosine_distance(got_BD, expected) < TOLERANCE[compute_dtype]
        np.testing.assert_allclose(np.linalg.norm(got_BD, axis=-1), 1, atol=1e-6)


def test_an_attention_mask_or_another_length_would_be_seen(
    teacher: SiglipTeacher, reference: dict[str, NDArray[np.float64]]
) -> None:
    ids_BL = torch.from_numpy(teacher._tokenizer(TEXTS))
    text_model = teacher._model.text_model
    with torch.no_grad():
        masked = text_model(input_ids=ids_BL, attention_mask=(ids_BL != 0).long()).pooler_output
        short = text_model(input_ids=ids_BL[:, :40]).pooler_output
        unpooled = text_model(input_ids=ids_BL).last_hidden_state[:, -1]
    for wrong in (masked, short, unpooled):
        wrong_BD = torch.nn.functional.normalize(wrong.double(), dim=-1).numpy()
        assert cosine_distance(wrong_BD, reference["text"]) > 1e-2


def test_a_teacher_says_what_it_is(tiny_checkpoint: Path, teacher: SiglipTeacher) -> None:
    as_protocol: Teacher = teacher
    assert as_protocol.embed_dim == 64
    assert as_protocol.image == SquashRecipe(size=(64, 64), resample=2)
    assert (as_protocol.logit_scale, as_protocol.logit_bias) == pytest.approx((4.75, -16.8))
    assert as_protocol.device == "cpu"
    assert as_protocol.auto_batch_size() == (16, 32)
    provenance = as_protocol.provenance()
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["teacher"] == str(tiny_checkpoint)
    assert provenance["revision"] is None
    assert provenance["torch"] == torch.__version__
    assert {"transformers", "pillow", "device_name", "num_threads"} <= provenance.keys()


def test_dtype_auto_is_bfloat16_on_cuda_and_as_stored_elsewhere(tiny_checkpoint: Path) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    assert resolve_compute_dtype(checkpoint, "cuda:1") == "bfloat16"
    assert resolve_compute_dtype(checkpoint, "cpu") == "float32"
    assert resolve_compute_dtype(checkpoint, "mps", "float16") == "float16"
    with pytest.raises(SettingError, match="dtype 'half' is not one of auto, float32"):
        resolve_compute_dtype(checkpoint, "cpu", "half")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert resolve_device() == resolve_device("cpu") == "cpu"
    for device in ("cuda", "cuda:0", "mps", "gpu", "cpu:1", ""):
        with pytest.raises(SettingError, match=f"'{device}' is not available.*machine has cpu"):
            resolve_device(device)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_device() == "cuda"
    assert resolve_device("cuda:1") == "cuda:1"
    for device in ("cuda:2", "cuda:x", "cuda:-1"):
        with pytest.raises(SettingError, match="not available"):
            resolve_device(device)


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("modality", ["image", "text"])
def test_memory_that_runs_out_is_an_error_of_its_own(
    teacher: SiglipTeacher, monkeypatch: pytest.MonkeyPatch, error: Exception, modality: str
) -> None:
    def fail(*arguments: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(siglip_teacher, "embed_image_pixels", fail)
    monkeypatch.setattr(siglip_teacher, "embed_token_ids", fail)
    pixels_BHWC = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(OutOfMemory, match="a batch does not fit on cpu: ") as caught:
        teacher.embed_images(pixels_BHWC) if modality == "image" else teacher.embed_texts(["a"])
    assert isinstance(caught.value, CacheError)
    assert caught.value.__context__ is None  # it would keep the tensors of the failed forward


def test_the_cpu_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)


def test_other_errors_pass(teacher: SiglipTeacher) -> None:
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(ValueError, match="pixels must be uint8"):
        teacher.embed_images(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param(lambda size: 1.0 + size / 1000, 4096, id="ever faster"),
        pytest.param(lambda size: max(size, 64) / 100, 64, id="flat above 64"),
        pytest.param(lambda size: size**1.05, 8, id="slower at once"),
        pytest.param(lambda size: size**0.97, 8, id="a gain of 2 % is not worth it"),
    ],
)
def test_batches_grow_while_that_pays(seconds: Callable[[int], float], expected: int) -> None:
    assert fastest_batch_size(seconds) == expected


@pytest.mark.parametrize(("limit", "expected"), [(100, 64), (8, 8), (5, 4), (1, 1)])
def test_batches_grow_until_memory_runs_out(limit: int, expected: int) -> None:
    def seconds(size: int) -> float:
        if size > limit:
            raise OutOfMemory("full")
        return 1.0

    assert fastest_batch_size(seconds) == expected
    if limit == 1:
        limit = 0
        with pytest.raises(OutOfMemory):
            fastest_batch_size(seconds)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu_and_runs_ahead(
    tiny_checkpoint: Path, reference: dict[str, NDArray[np.float64]], images: list[Image.Image]
) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    for compute_dtype, tolerance in (("float32", 1e-5), ("auto", TOLERANCE["bfloat16"])):
        teacher = SiglipTeacher(checkpoint, device="cuda", compute_dtype=compute_dtype)
        image_BD = in_batches(teacher.embed_images, pixels_of(images, teacher), 3)
        text_BD = in_batches(teacher.embed_texts, TEXTS, 3)
        assert cosine_distance(image_BD, reference["image"]) < tolerance
        assert cosine_distance(text_BD, reference["text"]) < tolerance
    assert all(size >= 8 for size in teacher.auto_batch_size())


@pytest.mark.filterwarnings("default")  # torch.compile has warnings of its own
def test_a_compiled_teacher_embeds_nearly_the_same_with_one_graph_a_tower(
    tiny_checkpoint: Path, teacher: SiglipTeacher, images: list[Image.Image]
) -> None:
    """Graphs are captured as for a GPU, but run by PyTorch: compiling C++ takes half a minute."""
    from torch._dynamo.utils import counters

    compiled = SiglipTeacher(resolve_checkpoint(str(tiny_checkpoint)), device="cpu")
    compiled.compile()
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance(force_backend="aot_eager"):
        for embed, given in (("embed_images", pixels_of(images, teacher)), ("embed_texts", TEXTS)):
            found = getattr(compiled, embed)(given[:4])()
            np.testing.assert_allclose(found, getattr(teacher, embed)(given[:4])(), atol=1e-5)
            getattr(compiled, embed)(given[4:8])()
    assert counters["stats"]["unique_graphs"] - before == 2
    torch.compiler.reset()


def test_weights_held_in_bfloat16_give_what_autocast_makes_of_float32(
    tiny_checkpoint: Path, naflex_checkpoint: Path
) -> None:
    for path in (tiny_checkpoint, naflex_checkpoint):
        checkpoint = resolve_checkpoint(str(path))
        held, whole = (
            load_model(checkpoint, device="cpu", compute_dtype=dtype)
            for dtype in ("bfloat16", "float32")
        )
        linear = [each for each in held.modules() if isinstance(each, torch.nn.Linear)]
        assert {each.weight.dtype for each in linear} == {torch.bfloat16}
        assert held.text_model.embeddings.token_embedding.weight.dtype == torch.float32
        pixels = torch.randint(0, 256, (2, *checkpoint.image.view_shape), dtype=torch.uint8)
        grids = [(4, 4), (2, 8)] if path is naflex_checkpoint else None
        ids = torch.randint(4, 500, (2, 64))
        rows = []
        for model in (held, whole):
            with torch.no_grad(), autocast("cpu", "bfloat16"):
                images = pool_images(vision_tower(model), checkpoint, pixels, grids)
                rows.append((images, pool_token_ids(text_tower(model), ids)))
        for found, expected in zip(*rows, strict=True):
            assert torch.equal(found, expected)
