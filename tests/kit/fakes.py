"""A teacher without a model, and corpora drawn on the spot. Imports no torch."""

import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from siglip2_cache.precompute.build import BuildConfig
from siglip2_cache.precompute.executor.progress import BuildProgress
from siglip2_cache.precompute.planning.config import PlanConfig
from siglip2_cache.precompute.teacher.teacher import OutOfMemory
from siglip2_cache.progress import Display
from siglip2_cache.siglip import NaflexRecipe, PatchPooling, SquashRecipe, cell_grid
from siglip2_cache.siglip.patch_cells import pooling_matrix
from siglip2_cache.store.io.location import Location

EMBED_DIM = 64
SIZE = (8, 8)
_NAFLEX = NaflexRecipe(patch_size=4, max_num_patches=12, resample=2)


@dataclass
class FakeTeacher:
    """Embeds pixels by a fixed random projection and texts by their hash: quick and repeatable."""

    noise_seed: int | None = None
    """Adds noise of its own to every embedding: another process, other bytes."""

    seconds_a_batch: float = 0.0
    num_quick: int = 0
    """Batches of each process, from its first on, that take no time."""

    before_batch: Callable[[], None] = lambda: None
    embed_dim: int = EMBED_DIM
    image_size: tuple[int, int] = SIZE
    resample: int = 2
    logit_scale: float = 4.75
    logit_bias: float = -16.8
    device: str = "cpu"
    patches: PatchPooling | None = None
    image_batches: list[int] = field(default_factory=list)
    text_batches: list[int] = field(default_factory=list)
    texts_seen: list[str] = field(default_factory=list)
    is_compiled: bool = False
    _num_batches: int = field(default=0, init=False)

    @property
    def image(self) -> SquashRecipe:
        return SquashRecipe(size=self.image_size, resample=self.resample)

    def embed_images(self, pixels_BHWC: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        self.image_batches.append(len(pixels_BHWC))
        self._work()
        flat = pixels_BHWC.reshape(len(pixels_BHWC), -1).astype(np.float64) / 255 - 0.5
        rows = self._finish(flat @ _drawn(flat.shape[1], self.embed_dim) + 0.01)
        if self.patches is not None:
            B, (H, W) = len(flat), self.image_size
            patches = flat.reshape(B, H // 2, 2, W // 2, 2 * 3).transpose(0, 1, 3, 2, 4)
            grids = [(H // 2, W // 2)] * B
            rows = self._with_patches(rows, list(patches.reshape(B, -1, 12)), grids)
        return lambda: rows

    def compile(self) -> None:
        self.is_compiled = True

    def embed_cells(self, states_CW: NDArray[np.float32]) -> NDArray[np.float32]:
        return states_CW / np.linalg.norm(states_CW, axis=1, keepdims=True)

    def embed_texts(self, texts: Sequence[str]) -> Callable[[], NDArray[np.float32]]:
        self.text_batches.append(len(texts))
        self.texts_seen += texts
        self._work()
        seeds = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
        drawn = [
            np.random.default_rng(int.from_bytes(seed, "little")).normal(size=self.embed_dim)
            for seed in seeds
        ]
        rows = self._finish(np.stack(drawn))
        return lambda: rows

    def provenance(self) -> dict[str, Any]:
        return {"teacher": "fake", "device": "cpu"}

    def auto_batch_size(self) -> tuple[int, int]:
        return 4, 4

    def _work(self) -> None:
        self.before_batch()
        self._num_batches += 1
        if self._num_batches > self.num_quick:
            time.sleep(self.seconds_a_batch)

    def _with_patches(
        self,
        rows_BD: NDArray[np.float32],
        patches_B: Sequence[NDArray[np.float64]],
        grids: Sequence[tuple[int, int]],
    ) -> NDArray[np.float32]:
        """Return rows followed by the values of cells, each patch being a fixed projection of its pixels."""
        assert self.patches is not None
        side, found = self.patches.grid, list[NDArray[np.float64]]()
        for patches_NP, grid in zip(patches_B, grids, strict=True):
            tokens_ND = patches_NP @ _drawn(patches_NP.shape[1], self.embed_dim)
            cells = cell_grid(*grid, side)
            values_CD = pooling_matrix(grid, cells) @ tokens_ND
            if self.patches.basis_PD is not None:
                values_CD = values_CD @ self.patches.basis_PD.T
            room = np.zeros((side * side, values_CD.shape[1]))
            room[: len(values_CD)] = values_CD
            found.append(np.concatenate([room.reshape(-1), cells]))
        return np.concatenate([rows_BD, np.stack(found)], axis=1).astype(np.float32)

    def _finish(self, rows: NDArray[np.float64]) -> NDArray[np.float32]:
        if self.noise_seed is not None:
            rows = rows + np.random.default_rng(self.noise_seed).normal(0, 0.1, rows.shape)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@dataclass
class FakeFactory:
    """Makes fake teachers, in worker processes too: what it is given must pickle."""

    noise_seed: int | None = None
    seconds_a_batch: float = 0.0
    num_quick: int = 0
    deadly_text: str | None = None
    """Kills the process whose teacher meets it."""

    fails_to_load: BaseException | None = None
    is_killed_as_it_loads: bool = False
    tells_threads: bool = False
    """In the provenance: in how many it would compute."""

    def __call__(self, checkpoint: Any, device: str, dtype: str) -> "FakeTeacher":
        if self.is_killed_as_it_loads and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fails_to_load is not None and multiprocessing.parent_process() is not None:
            raise self.fails_to_load
        if self.tells_threads:
            importlib.import_module("torch")  # as a real one does as it loads
        return DeadlyTeacher(
            noise_seed=self.noise_seed,
            seconds_a_batch=self.seconds_a_batch,
            num_quick=self.num_quick,
            deadly_text=self.deadly_text,
            tells_threads=self.tells_threads,
        )


@dataclass
class DeadlyTeacher(FakeTeacher):
    """Kills its process when it meets a text."""

    deadly_text: str | None = None
    tells_threads: bool = False

    def embed_texts(self, texts: Sequence[str]) -> Callable[[], NDArray[np.float32]]:
        if self.deadly_text in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_texts(texts)

    def provenance(self) -> dict[str, Any]:
        if not self.tells_threads:
            return super().provenance()
        import torch

        openmp = os.environ.get("OMP_NUM_THREADS")
        return {"threads": f"OpenMP {openmp}, torch {torch.get_num_threads()}"}


@dataclass
class FakeNaflexTeacher(FakeTeacher):
    """Embeds patches by what they are and where in the grid they stand; what is padding is ignored."""

    recipe: NaflexRecipe = _NAFLEX
    passes: list[list[tuple[int, int]]] = field(default_factory=list)
    """Grids of each forward pass."""

    widths: list[int] = field(default_factory=list)
    """Patches that each forward pass was padded to."""

    fits: int = 1000
    """Largest batch that fits."""

    @property
    def image(self) -> NaflexRecipe:
        return self.recipe

    def embed_images(self, pixels_BHWC: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        raise AssertionError("a NaFlex teacher takes patches")

    def embed_patches(
        self, patches_BNP: NDArray[np.uint8], grids_B2: NDArray[np.int64]
    ) -> Callable[[], NDArray[np.float32]]:
        if len(patches_BNP) > self.fits:
            raise OutOfMemory(f"a batch of {len(patches_BNP)} does not fit")
        self.passes.append([(int(rows), int(columns)) for rows, columns in grids_B2])
        self.widths.append(patches_BNP.shape[1])
        self._work()
        planes_WPD = _drawn(4, patches_BNP.shape[2], self.embed_dim)
        found: list[NDArray[np.float64]] = []
        for patches_NP, (rows, columns) in zip(patches_BNP, self.passes[-1], strict=True):
            values = patches_NP[: rows * columns] / 255 - 0.5
            row, column = np.divmod(np.arange(rows * columns), columns)
            weights = np.stack([np.ones(len(row)), row / rows, column / columns, row * column])
            found.append(np.tensordot(weights @ values, planes_WPD, 2) + 0.01)
        rows_BD = self._finish(np.stack(found))
        if self.patches is not None:
            values = [
                p[: r * c] / 255 - 0.5
                for p, (r, c) in zip(patches_BNP, self.passes[-1], strict=True)
            ]
            rows_BD = self._with_patches(rows_BD, values, self.passes[-1])
        return lambda: rows_BD


@functools.cache
def _drawn(*shape: int) -> NDArray[np.float64]:
    """Return the same normal numbers whenever a shape is asked for; drawing a large one takes long."""
    return np.random.default_rng(0).normal(size=shape)


@dataclass
class Tally:
    """Rows and units of a build, by modality."""

    totals: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=lambda: Counter(image=0, text=0))
    units_done: Counter[str] = field(default_factory=lambda: Counter(image=0, text=0))
    num_rejected: Counter[str] = field(default_factory=lambda: Counter(image=0, text=0))


class SilentProgress(BuildProgress):
    """Keeps what was said; can act when a unit is done."""

    def __init__(self, on_unit: Callable[[], None] = lambda: None) -> None:
        super().__init__(Display())
        self.said: list[str] = []
        self.tally = Tally()
        self._on_unit = on_unit

    def say(self, message: str) -> None:
        self.said.append(message)

    def start(self, totals: Any, units: Any) -> None:
        self.tally.totals, self.tally.units = dict(totals), dict(units)

    def grow(self, modality: Any, num_rows: int) -> None:
        self.tally.totals[modality] += num_rows
        self.tally.units[modality] += 1

    def advance(self, modality: Any, num_rows: int, num_rejected: int) -> None:
        self.tally.done[modality] += num_rows
        self.tally.num_rejected[modality] += num_rejected

    def unit_done(self, modality: Any) -> None:
        self.tally.units_done[modality] += 1
        self._on_unit()

    def stop(self) -> None:
        pass


def draw_image(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Return a small picture of random blocks, another one for each seed."""
    width, height = size
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((4, 4, 1), np.uint8)))


def write_folder_corpus(root: Path, num_images: int, *, captions: int = 1, first: int = 0) -> Path:
    """Write img000.png ... with ``captions`` captions each; every third shares one with the next."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + num_images):
        draw_image(i).save(root / f"img{i:03d}.png")
        lines = [f"Picture {i} as seen {j}" for j in range(captions)]
        if captions:
            lines[0] = f"Picture {i - i % 3}"
        (root / f"img{i:03d}.txt").write_text("\n".join(lines))
    return root


def write_table_corpus(root: Path, lines: Sequence[dict[str, Any]]) -> Path:
    """Write captions.jsonl with these lines; images are drawn where a line names one that is new."""
    root.mkdir(parents=True, exist_ok=True)
    for i, line in enumerate(lines):
        path = root / str(line["image"])
        if not path.exists() and not line.get("missing"):
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_image(i).save(path)
    table = root / "captions.jsonl"
    rows = [{k: v for k, v in line.items() if k != "missing"} for line in lines]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def config_of(
    source: Path | str | Sequence[Path | str],
    cache: Location,
    teacher: Path | str,
    **settings: Any,
) -> BuildConfig:
    """Return a build's settings; those of the plan and of the build may be mixed."""
    sources = [source] if isinstance(source, Path | str) else source
    of_plan = {k: settings.pop(k) for k in list(settings) if k in PlanConfig.__slots__}
    plan = PlanConfig(sources=tuple(map(str, sources)), **of_plan)
    settings.setdefault("decode_workers", 0)
    settings.setdefault("dtype", "float32")
    settings.setdefault("device", "cpu")
    return BuildConfig(plan=plan, cache=cache, teacher=str(teacher), **settings)


def tree_of(root: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}
