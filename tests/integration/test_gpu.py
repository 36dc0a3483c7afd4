"""What only a GPU shows: the same numbers, no waiting in a step, recovery from too large batches.

SIGLIP2_CACHE_TEST_DEVICE=cpu tries the tests without one; those that cannot fail there are skipped.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from kit.fakes import SilentProgress, config_of, write_folder_corpus
from kit.steps import Case, assert_same_gradients, gradients_of, on_device
from kit.trainings import BATCH, Listening, Made, make_cache, metrics_of, train_of
from torch.distributed import TCPStore

from siglip2_cache import open_cache
from siglip2_cache.errors import TrainError
from siglip2_cache.precompute.build import build
from siglip2_cache.precompute.teacher.embedder import Embedder
from siglip2_cache.precompute.teacher.siglip_teacher import SiglipTeacher
from siglip2_cache.precompute.teacher.teacher import OutOfMemory
from siglip2_cache.siglip import resolve_checkpoint
from siglip2_cache.student.distributed import Ranks
from siglip2_cache.student.training.gradient_cache import GradientCache

DEVICE = os.environ.get("SIGLIP2_CACHE_TEST_DEVICE", "cuda")
IS_CUDA = DEVICE.startswith("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(IS_CUDA and not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_cuda = pytest.mark.skipif(not IS_CUDA, reason="says nothing without a CUDA device")


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A cache that the CPU made; read it, do not change it."""
    return make_cache(tmp_path_factory.mktemp("gpu"), tiny_checkpoint)


@pytest.mark.parametrize("kind", ["tiny_checkpoint", "naflex_checkpoint"])
def test_a_build_has_the_targets_of_the_cpu(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    corpus = write_folder_corpus(tmp_path / "corpus", 10, captions=2)
    caches = []
    for name, device in (("cpu", "cpu"), ("gpu", DEVICE)):
        config = config_of(
            corpus,
            tmp_path / name,
            request.getfixturevalue(kind),
            device=device,
            dtype="float32",
            batch_size=4,
            num_views=2,
        )
        build(config, progress=SilentProgress())
        caches.append(open_cache(tmp_path / name))
    for targets in ("image_targets", "text_targets"):
        rows = np.arange(10)
        expected, found = (getattr(cache, targets)().read(rows) for cache in caches)
        units = [
            each / np.linalg.norm(each, axis=-1, keepdims=True)
            for each in (expected.astype(np.float64), found.astype(np.float64))
        ]
        assert (units[0] * units[1]).sum(-1).min() > 1 - 1e-4  # TF32 in convolutions


@pytest.mark.parametrize(
    "settings", [{}, {"bank_labels": "hard", "ignore_similar": 0.35}, {"num_teachers": 2}]
)
@pytest.mark.parametrize("size", [None, 3])
def test_a_step_has_the_gradient_of_the_cpu_and_waits_for_nothing(
    tiny_student: Path, settings: dict[str, Any], size: int | None
) -> None:
    case, found = Case(tiny_student, **settings), []
    for device in ("cpu", DEVICE):
        distiller = case.distiller().to(device)
        batch, labels = case.batch(), on_device(case.all_labels(case.batch()), device)
        gradients = GradientCache(
            distiller, case.objectives(), Ranks(), micro_batch_size=size, map_ED=case.fixed_map()
        )
        gradients.compute(batch, labels)  # the libraries start, and memory is pinned
        distiller.zero_grad()
        if IS_CUDA and device != "cpu":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            loss = gradients.compute(batch, labels)
        finally:
            if IS_CUDA:
                torch.cuda.set_sync_debug_mode("default")
        found.append((loss.read(), {n: g.cpu() for n, g in gradients_of(distiller).items()}))
    (expected_loss, expected), (loss, gradients_found) = found
    assert loss.values == pytest.approx(expected_loss.values, rel=1e-6)
    assert_same_gradients(gradients_found, expected, 1e-6)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "eval_every": 4, "micro_batch_size": 3}])
def test_a_training_has_the_losses_of_the_cpu(
    made: Made, tiny_student: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    for name, device in (("cpu", "cpu"), ("gpu", DEVICE)):
        shared = {"steps": 8, "dtype": "float32", "save_every": 4, **settings}
        train_of(made.cache, tiny_student, tmp_path / name, device=device, **shared)
    found, expected = (metrics_of(tmp_path / name) for name in ("gpu", "cpu"))
    assert [line["step"] for line in found] == list(range(1, 9))
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)  # TF32 in convolutions


@pytest.mark.parametrize(("first", "then"), [(DEVICE, "cpu"), ("cpu", DEVICE)])
def test_a_run_resumes_on_another_device(
    made: Made, tiny_student: Path, tmp_path: Path, first: str, then: str
) -> None:
    shared = {"dtype": "float32", "save_every": 4, "ema": 0.9, "warmup_steps": 2}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_of(made.cache, tiny_student, whole, steps=8, device=then, **shared)
    train_of(made.cache, tiny_student, resumed, steps=4, device=first, schedule="wsd", **shared)
    summary = train_of(
        made.cache, tiny_student, resumed, steps=8, device=then, schedule="wsd", **shared
    )
    assert summary.first_step <= 5
    assert len(metrics_of(resumed)) == 8


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch.compile as it is, on a GPU; without one graphs are captured and run by PyTorch."""
    torch.compiler.reset()
    with torch.compiler.set_stance(force_backend=None if IS_CUDA else "aot_eager"):
        yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("default")  # torch.compile has warnings of its own
@pytest.mark.usefixtures("compiler")
def test_compiled_layers_need_no_new_graph_after_the_first_steps(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    num_graphs: list[int] = []
    listening = Listening(lambda _: num_graphs.append(counters["stats"]["unique_graphs"]))
    shared = {"steps": 8, "micro_batch_size": 3, "eval_every": 3, "device": DEVICE}
    train_of(made.cache, tiny_student, tmp_path / "run", compile=True, progress=listening, **shared)
    assert set(num_graphs[4:]) == {num_graphs[-1]}, num_graphs


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("compiler")
def test_a_compiled_teacher_embeds_nearly_the_same(tiny_checkpoint: Path) -> None:
    checkpoint = resolve_checkpoint(str(tiny_checkpoint))
    teacher = SiglipTeacher(checkpoint, device=DEVICE, compute_dtype="float32")
    pixels = np.random.default_rng(0).integers(0, 256, (4, *teacher.image.view_shape), np.uint8)
    before = teacher.embed_images(pixels)()
    teacher.compile()
    np.testing.assert_allclose(teacher.embed_images(pixels)(), before, atol=1e-3)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process have 1 GiB of the GPU."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**30 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@needs_cuda
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    tiny_checkpoint: Path, little_memory: None
) -> None:
    teacher = SiglipTeacher(resolve_checkpoint(str(tiny_checkpoint)), device=DEVICE)
    embedder = Embedder(teacher, 1 << 15, 1 << 15)
    pixels = np.zeros((1 << 15, *teacher.image.view_shape), np.uint8)
    rows = embedder.start_images(pixels, np.zeros((1 << 15, 2), np.int64))()
    assert embedder.image_batch < 1 << 15
    assert np.isfinite(rows).all()


@needs_cuda
def test_the_search_for_a_batch_size_ends_below_what_does_not_fit(
    tiny_checkpoint: Path, little_memory: None
) -> None:
    teacher = SiglipTeacher(resolve_checkpoint(str(tiny_checkpoint)), device=DEVICE)
    images, texts = teacher.auto_batch_size()
    assert images & (images - 1) == 0
    assert texts & (texts - 1) == 0
    assert images >= 8


@needs_cuda
def test_a_training_that_does_not_fit_says_so_and_goes_on_with_smaller_pieces(
    made: Made, tiny_student: Path, tmp_path: Path
) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**20 / total)
    try:
        with pytest.raises((TrainError, OutOfMemory), match="does not fit"):
            train_of(made.cache, tiny_student, tmp_path / "run", device=DEVICE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    shared = {"device": DEVICE, "micro_batch_size": BATCH // 2}
    assert train_of(made.cache, tiny_student, tmp_path / "run", **shared).steps == 4


def test_one_process_exchanges_tensors_by_nccl_and_counts_on_the_host() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    backend = "cpu:gloo,cuda:nccl" if IS_CUDA else "gloo"
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        tensor = torch.ones(3, device=DEVICE)
        dist.all_reduce(tensor)
        assert tensor.tolist() == [1, 1, 1]
        numbers = [torch.zeros(2, dtype=torch.int64)]
        dist.all_gather(numbers, torch.tensor([4, 5]))  # on the host
        found: list[Any] = [None]
        dist.all_gather_object(found, {"a": 1})
        assert (numbers[0].tolist(), found) == ([4, 5], [{"a": 1}])
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1).to(DEVICE))
        model(tensor[None]).sum().backward()
    finally:
        dist.destroy_process_group()
