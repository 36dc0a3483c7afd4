"""Approximate indexes: what they find, when they are refused, and that a kill at any point costs little."""

import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from kit.crashes import Killer, Spy, spying
from kit.vectors import TEACHER, commit_unit, draw_vectors, write_vectors
from numpy.typing import NDArray

from siglip2_cache import open_cache
from siglip2_cache.errors import DamagedCacheError, DiskFullError, SettingError, StorageError
from siglip2_cache.progress import Display, TaskProgress
from siglip2_cache.store.describe import describe, describe_lines
from siglip2_cache.store.format import layout
from siglip2_cache.store.format.records import encode_record
from siglip2_cache.store.io import local
from siglip2_cache.store.io.local import LocalStorage
from siglip2_cache.store.search import index_build, index_kinds
from siglip2_cache.store.search.exact import exact_neighbors
from siglip2_cache.store.search.index_build import BuiltIndex, build_index
from siglip2_cache.store.search.index_checkpoint import IndexState
from siglip2_cache.store.search.index_kinds import KINDS, list_searches, plan_index
from siglip2_cache.store.search.index_query import IndexedTargets, open_index, resolve_index
from siglip2_cache.store.search.index_recall import recall_of
from siglip2_cache.store.search.index_record import read_index_record
from siglip2_cache.store.verify.verify import verify_cache

if TYPE_CHECKING:
    from tests.foreign_cache import ForeignCache

NUM_ROWS = 3000
IVF_FILE = layout.IndexId(teacher=TEACHER, modality="image").file


class Heard(TaskProgress):
    """A progress display that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__(Display())
        self.said: list[str] = []
        self.tasks: list[tuple[str, int, int]] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def start(self, task: str, total: int, done: int = 0) -> None:
        self.tasks.append((task, total, done))

    def advance(self, num_rows: int) -> None:
        task, total, done = self.tasks[-1]
        self.tasks[-1] = (task, total, done + num_rows)

    def stop(self) -> None:
        pass


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 3,000 images in clusters, of 3 units; read it, do not change it."""
    root = tmp_path_factory.mktemp("vectors") / "cache"
    return write_vectors(root, {"image": draw_vectors(NUM_ROWS)})


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy of the cache of vectors, without index."""
    return shutil.copytree(written, tmp_path / "cache")


def build(root: Path, kind: str = "ivf", **settings: Any) -> BuiltIndex:
    cache = open_cache(root)
    settings.setdefault("progress", Heard())
    return build_index(cache, resolve_index(cache, "image"), kind=kind, **settings)


def index_files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "indexes").rglob("*") if path.is_file())


def values_of(root: Path) -> NDArray[np.float16]:
    return open_cache(root).image_targets().read(np.arange(NUM_ROWS))


class TestSearching:
    @pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
    def test_each_kind_finds_nearly_all_and_says_how_much(self, root: Path, kind: str) -> None:
        record = build(root, kind).record
        queries = values_of(root)[:200]
        found = open_index(open_cache(root), "image").neighbors(
            queries, 10, exclude_Q=np.arange(200)
        )
        exact = exact_neighbors(
            open_cache(root).image_targets(), queries, 10, exclude_Q=np.arange(200)
        )
        recall = (found.rows_QK[:, :, None] == exact.rows_QK[:, None]).any(axis=2).mean()
        assert (record.kind, record.num_rows) == (kind, NUM_ROWS)
        assert record.recall.num_queries == 500
        assert record.recall.value is not None
        assert record.recall.value >= 0.95
        assert recall == pytest.approx(record.recall.value, abs=0.03)
        same = found.rows_QK == exact.rows_QK
        np.testing.assert_array_equal(found.cosine_QK[same], exact.cosine_QK[same])
        assert not (found.rows_QK == np.arange(200)[:, None]).any()

    def test_codes_of_a_byte_find_most_and_are_small(self, tmp_path: Path) -> None:
        vectors = draw_vectors(9_984, 8)
        root = write_vectors(tmp_path / "cache", {"image": vectors})
        record = build(root, "ivfpq").record
        assert record.factory.endswith(",PQ1")
        assert record.num_bytes < vectors.nbytes
        found = open_index(open_cache(root), "image").neighbors(vectors[:100], 10)
        exact = exact_neighbors(open_cache(root).image_targets(), vectors[:100], 10)
        recall = recall_of(found.cosine_QK, exact.cosine_QK)
        assert recall is not None
        assert recall > 0.9

    def test_a_flat_index_orders_by_exact_cosine_then_row_and_pads(
        self, foreign: "ForeignCache", tmp_path: Path
    ) -> None:
        root = shutil.copytree(foreign.root, tmp_path / "cache")
        for modality, view in (("image", 1), ("text", 0)):
            cache = open_cache(root)
            place = resolve_index(cache, modality, view=view)  # type: ignore[arg-type]
            build_index(cache, place, kind="auto", progress=Heard())
            opened = open_index(cache, modality, view=view)  # type: ignore[arg-type]
            queries = foreign.targets["tiny", "text"][[0, 12]]
            found = opened.neighbors(queries, 30, exclude_Q=[0, -1])
            exact = exact_neighbors(
                opened.targets, queries, 30, view=view, exclude_Q=np.array([0, -1])
            )
            np.testing.assert_array_equal(found.rows_QK, exact.rows_QK)
            np.testing.assert_array_equal(found.cosine_QK, exact.cosine_QK)
        assert index_files(root) == [
            "image-view1.faiss",
            "image-view1.json",
            "text.faiss",
            "text.json",
        ]

    def test_equal_rows_come_in_the_order_of_rows(self, tmp_path: Path) -> None:
        vectors = np.tile(draw_vectors(20), (30, 1))
        root = write_vectors(tmp_path / "cache", {"image": vectors})
        build(root, "flat")
        found = open_index(open_cache(root), "image").neighbors(vectors[:1], 4, exclude_Q=[20])
        assert found.rows_QK.tolist() == [[0, 40, 60, 80]]
        assert np.ptp(found.cosine_QK) == 0

    def test_a_query_without_direction_is_refused(self, root: Path) -> None:
        build(root, "flat")
        opened = open_index(open_cache(root), "image")
        with pytest.raises(ValueError, match="a query is zero or not finite"):
            opened.neighbors(np.full((1, 32), np.nan, np.float16), 3)

    def test_recall_counts_rows_that_are_equally_near_as_found(self) -> None:
        exact = np.array([[0.9, 0.8], [0.7, -np.inf], [-np.inf, -np.inf]])
        assert recall_of(np.array([[0.9, 0.8], [0.7, -np.inf], exact[2]]), exact) == 1
        assert recall_of(np.array([[0.8, 0.1], [0.7, 0.6], exact[2]]), exact) == 2 / 3
        assert recall_of(exact[2:], exact[2:]) is None


@pytest.fixture(scope="module")
def gapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 images in clusters and 600 texts of some of them, which lie apart from all images."""
    draw, images = np.random.default_rng(1), draw_vectors(NUM_ROWS).astype(np.float32)
    away = draw.standard_normal(32)
    texts = (
        0.35 * images[:600] + away / np.linalg.norm(away) + 0.1 * draw.standard_normal((600, 32))
    )
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    vectors = {"image": images.astype(np.float16), "text": texts.astype(np.float16)}
    root = write_vectors(tmp_path_factory.mktemp("gapped") / "cache", vectors)  # type: ignore[arg-type]
    build(root)
    return root


class TestBothModalities:
    def test_each_modality_has_a_search_that_finds_enough_and_its_own_recall(
        self, gapped: Path
    ) -> None:
        cache = open_cache(gapped)
        opened = open_index(cache, "image")
        record = opened.record
        assert record.cross is not None
        assert record.cross.search["nprobe"] > record.search["nprobe"]
        texts = cache.text_targets().read(np.arange(300, 600))
        exact = exact_neighbors(cache.image_targets(), texts, 10).cosine_QK
        found, by_images = (
            recall_of(opened.neighbors(texts, 10, is_other_Q=is_other).cosine_QK, exact)
            for is_other in (np.ones(300), None)
        )
        assert found == pytest.approx(record.cross.recall.value, abs=0.03)
        assert (record.cross.recall.value or 0) >= 0.95 > (by_images or 0)

    def test_queries_of_both_are_answered_each_by_its_own_search(self, gapped: Path) -> None:
        cache = open_cache(gapped)
        opened = open_index(cache, "image")
        images, texts = (t.read([5, 9]) for t in (cache.image_targets(), cache.text_targets()))
        mixed = np.stack([texts[0], images[0], images[1], texts[1]])
        found = opened.neighbors(
            mixed, 4, exclude_Q=[-1, 5, 9, -1], is_other_Q=[True, False, False, True]
        )
        own = opened.neighbors(images, 4, exclude_Q=[5, 9])
        other = opened.neighbors(texts, 4, is_other_Q=[True, True])
        np.testing.assert_array_equal(found.rows_QK[[1, 2]], own.rows_QK)
        np.testing.assert_array_equal(found.rows_QK[[0, 3]], other.rows_QK)

    def test_as_many_as_are_asked_for_are_found_in_however_many_lists(self, gapped: Path) -> None:
        cache = open_cache(gapped)
        opened = open_index(cache, "image")
        queries = cache.image_targets().read([0, 1, 2])
        for k in (500, NUM_ROWS - 1, NUM_ROWS + 5):
            found = opened.neighbors(queries, k, exclude_Q=[0, 1, -1])
            for rows, excluded in zip(found.rows_QK, (0, 1, -1), strict=True):
                there = rows[rows >= 0]
                assert len(there) == min(k, NUM_ROWS - (excluded >= 0))
                assert len(set(there.tolist()) | {excluded}) == len(there) + 1
            assert (np.diff(found.cosine_QK[:, : NUM_ROWS - 1]) <= 0).all()

    def test_a_record_of_an_older_version_is_used_and_measured_on_the_next_run(
        self, gapped: Path, tmp_path: Path
    ) -> None:
        root = shutil.copytree(gapped, tmp_path / "cache")
        expected = open_index(open_cache(root), "image").record
        change_record(root / "indexes" / TEACHER / "image.json", lambda f: f.pop("cross"))
        opened = open_index(open_cache(root), "image")
        assert opened.record.cross is None
        texts = open_cache(root).text_targets().read([1])
        assert (opened.neighbors(texts, 3, is_other_Q=[True]).rows_QK >= 0).all()
        [line] = [x for x in describe_lines(describe(open_cache(root))) if " index: " in x]
        assert line.endswith(", recall of texts not measured")
        before = (root / IVF_FILE).stat().st_mtime_ns
        again = build(root)
        assert again.was_there
        assert (root / IVF_FILE).stat().st_mtime_ns == before
        assert again.record == expected == open_index(open_cache(root), "image").record

    def test_without_the_other_modality_nothing_is_said_of_it(self, root: Path) -> None:
        assert build(root).record.cross is None


class TestChoosing:
    @pytest.mark.parametrize(
        ("num_rows", "embed_dim", "kind", "factory"),
        [
            (50_000, 1152, "flat", "IDMap,SQfp16"),
            (1_000_000, 1152, "ivf", "IVF2000,SQfp16"),
            (100_000_000, 1152, "ivfpq", "IVF20000,PQ144"),
            (100_000_000, 768, "ivfpq", "IVF20000,PQ96"),
        ],
    )
    def test_auto_goes_by_rows_and_bytes(
        self, num_rows: int, embed_dim: int, kind: str, factory: str
    ) -> None:
        plan = plan_index("auto", num_rows, embed_dim)
        assert (plan.kind, plan.factory) == (kind, factory)
        assert f"{num_rows:,} rows" in plan.reason

    @pytest.mark.parametrize("num_rows", [1, 38, 1000, 10**6, 10**9])
    def test_there_are_always_rows_enough_to_train_on(self, num_rows: int) -> None:
        plan = plan_index("ivf", num_rows, 1152)
        num_lists = int(plan.factory.split(",")[0].removeprefix("IVF"))
        assert num_lists == 1 or plan.parameters["train_rows"] >= 39 * num_lists
        assert plan.parameters["train_rows"] <= num_rows

    def test_codes_are_learnt_from_enough_rows_or_refused(self) -> None:
        with pytest.raises(SettingError, match=r"at least 9,984 rows, there are 9,983; use flat"):
            plan_index("ivfpq", 9_983, 64)

    def test_an_unknown_kind_is_named(self) -> None:
        with pytest.raises(SettingError, match=r"one of auto, flat, ivf, ivfpq, hnsw, got 'lsh'"):
            plan_index("lsh", 10, 64)
        assert KINDS[0] == "auto"

    def test_the_ladder_goes_up_to_all_lists(self) -> None:
        steps = [step["nprobe"] for step in list_searches("ivf", "IVF12,SQfp16")]
        assert steps == [1, 2, 4, 8, 12]
        assert [step["nprobe"] for step in list_searches("ivf", "IVF1,SQfp16")] == [1]
        assert list_searches("hnsw", "IDMap,HNSW32,SQfp16")[-1]["efSearch"] == 1024

    def test_of_codes_more_candidates_are_tried_where_all_lists_do_not_do(self) -> None:
        steps = [(s["candidates"], s["nprobe"]) for s in list_searches("ivfpq", "IVF2,PQ8")]
        assert steps == [(c, n) for c in (16, 32, 64, 128) for n in (1, 2)]

    def test_no_more_work_is_chosen_than_finds_enough(self, root: Path) -> None:
        heard = build(root, "ivf").record
        nprobe = heard.search["nprobe"]
        assert 1 < nprobe < int(heard.factory.split(",")[0].removeprefix("IVF"))

    def test_a_gpu_trains_and_assigns_where_faiss_has_one(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        moved: list[str] = []

        def to_gpus(index: Any) -> Any:
            moved.append(type(index).__name__)
            return index

        expected = build(shutil.copytree(root, root.with_name("cpu")), "ivf").record
        monkeypatch.setattr(index_kinds.faiss, "StandardGpuResources", object, raising=False)
        monkeypatch.setattr(index_kinds.faiss, "index_cpu_to_all_gpus", to_gpus, raising=False)
        monkeypatch.setattr(index_kinds, "has_gpu", lambda: True)
        record = build(root, "ivf").record
        assert moved == ["IndexFlatIP", "IndexFlat"]
        assert record.recall == expected.recall

    @pytest.mark.parametrize(("has_class", "num_gpus"), [(True, 0), (False, 1), (True, 1)])
    def test_a_gpu_is_used_where_faiss_knows_of_them_and_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch, has_class: bool, num_gpus: int
    ) -> None:
        monkeypatch.setattr(index_kinds.faiss, "get_num_gpus", lambda: num_gpus, raising=False)
        if has_class:
            monkeypatch.setattr(index_kinds.faiss, "StandardGpuResources", object, raising=False)
        assert index_kinds.has_gpu() == (has_class and num_gpus == 1)


class TestStaleness:
    def test_without_an_index_the_command_that_makes_one_is_named(self, root: Path) -> None:
        with pytest.raises(
            SettingError, match=rf"no index at {IVF_FILE}; siglip2-cache index {root}"
        ):
            open_index(open_cache(root), "image")

    def test_a_unit_that_was_embedded_anew_makes_it_stale(self, root: Path) -> None:
        build(root)
        commit_unit(root, "image", 1, draw_vectors(NUM_ROWS), attempt=1, rejected=(1030,))
        with pytest.raises(
            SettingError,
            match=rf"image units were embedded again .*; siglip2-cache index {root} builds",
        ):
            open_index(open_cache(root), "image")
        assert build(root).record.num_rows == NUM_ROWS - 1
        found = open_index(open_cache(root), "image").neighbors(values_of_some(root), 5)
        assert 1030 not in found.rows_QK

    def test_a_unit_more_makes_it_stale(self, root: Path) -> None:
        record = root / layout.unit_record(TEACHER, "image", 2)
        later = record.read_bytes()
        record.unlink()
        assert build(root).record.num_rows == 2048
        record.write_bytes(later)
        with pytest.raises(SettingError, match=r"3 image units are committed, it was built from 2"):
            open_index(open_cache(root), "image")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("catalog", "the catalog has grown since it was built"),
            ("teacher", "it was built for teacher else"),
        ],
    )
    def test_another_catalog_or_teacher_makes_it_stale(
        self, root: Path, name: str, message: str
    ) -> None:
        build(root)
        path = root / "indexes" / TEACHER / "image.json"
        change_record(path, lambda fields: fields["fingerprint"].update({name: "else"}))
        with pytest.raises(SettingError, match=rf"is stale: {message}; "):
            open_index(open_cache(root), "image")

    def test_texts_have_no_view_and_images_only_theirs(self, root: Path) -> None:
        for modality, message in (
            ("image", r"views 0\.\.0 of each"),
            ("text", "no views of texts"),
        ):
            with pytest.raises(SettingError, match=rf"view 1 is not in .*{message}"):
                resolve_index(open_cache(root), modality, view=1)  # type: ignore[arg-type]

    def test_nothing_to_index_is_said(self, root: Path) -> None:
        cache = open_cache(root)
        with pytest.raises(SettingError, match=r"no text targets by vectors to index; run"):
            build_index(cache, resolve_index(cache, "text"), progress=Heard())

    def test_an_index_that_is_there_is_not_made_again(self, root: Path) -> None:
        first = build(root)
        before = (root / IVF_FILE).stat().st_mtime_ns
        again = build(root)
        assert (first.was_there, again.was_there) == (False, True)
        assert again.record == first.record
        assert (root / IVF_FILE).stat().st_mtime_ns == before

    def test_another_kind_takes_its_place(self, root: Path) -> None:
        build(root)
        assert build(root, "flat").record.kind == "flat"
        assert open_index(open_cache(root), "image").record.kind == "flat"
        assert index_files(root) == ["image.faiss", "image.json"]

    def test_a_file_cut_short_is_refused(self, root: Path) -> None:
        build(root)
        (root / IVF_FILE).write_bytes((root / IVF_FILE).read_bytes()[:-1])
        with pytest.raises(DamagedCacheError, match=r"image\.faiss has .* were written; siglip2"):
            open_index(open_cache(root), "image")
        assert not build(root).was_there

    def test_a_file_that_faiss_cannot_read_is_named(self, root: Path) -> None:
        build(root)
        size = (root / IVF_FILE).stat().st_size
        (root / IVF_FILE).write_bytes(b"\0" * size)
        with pytest.raises(DamagedCacheError, match="faiss cannot read "):
            open_index(open_cache(root), "image")

    def test_a_damaged_record_is_made_anew_with_a_word(self, root: Path) -> None:
        build(root)
        (root / "indexes" / TEACHER / "image.json").write_text("{")
        heard = Heard()
        assert not build(root, progress=heard).was_there
        assert "is not a complete record" in heard.said[0]


class TestResuming:
    def test_a_killed_run_is_gone_on_with_and_ends_the_same(self, root: Path) -> None:
        whole = build(shutil.copytree(root, root.with_name("whole"))).record
        assert run_and_kill(root, stop_at_save(3)) == -signal.SIGKILL
        heard = Heard()
        built = build(root, progress=heard)
        assert built.resumed_rows == 1000
        assert "resuming from 1,000 of 3,000 rows" in heard.said
        assert ("adding rows", NUM_ROWS, NUM_ROWS) in heard.tasks
        assert "training" not in [task for task, _, _ in heard.tasks]
        assert built.record == whole
        assert index_files(root) == ["image.faiss", "image.json"]

    @pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
    def test_a_kill_at_any_operation_leaves_an_index_or_none(self, root: Path, every: int) -> None:
        with spying(Spy()) as spy:
            build(shutil.copytree(root, root.with_name("counted")), **_MANY_SAVES)
        whole = build(shutil.copytree(root, root.with_name("whole"))).record
        num_killed = 0
        for kill_at in range(1, spy.num_ops + 1, every):
            killed = shutil.copytree(root, root.with_name(f"killed{kill_at}"))
            assert run_and_kill(killed, lambda at=kill_at: kill_at_op(at)) == -signal.SIGKILL
            num_killed += 1
            opened = open_if_there(killed)
            assert opened is None or opened.record == whole
            assert build(killed).record == whole
            assert index_files(killed) == ["image.faiss", "image.json"]
            shutil.rmtree(killed)
        assert num_killed > 40 // every

    def test_an_old_index_is_never_taken_for_the_new_one(self, root: Path) -> None:
        build(root, "flat")
        with spying(Spy()) as spy:
            build(shutil.copytree(root, root.with_name("counted")), **_MANY_SAVES)
        for kill_at in range(spy.num_ops - 16, spy.num_ops + 1, 2):
            killed = shutil.copytree(root, root.with_name(f"killed{kill_at}"))
            assert run_and_kill(killed, lambda at=kill_at: kill_at_op(at)) == -signal.SIGKILL
            opened = open_if_there(killed)
            if opened is not None:
                assert opened.record.files[IVF_FILE] == LocalStorage(killed).describe(IVF_FILE)
            assert build(killed).record.kind == "ivf"

    def test_what_was_begun_from_other_targets_is_left_aside_with_a_word(self, root: Path) -> None:
        assert run_and_kill(root, stop_at_save(3)) == -signal.SIGKILL
        commit_unit(root, "image", 0, draw_vectors(NUM_ROWS, seed=1), attempt=1)
        heard = Heard()
        built = build(root, progress=heard)
        assert built.resumed_rows == 0
        assert "it was started with other targets or another kind" in heard.said[-1]
        assert index_files(root) == ["image.faiss", "image.json"]

    def test_a_save_that_was_damaged_is_left_aside_with_a_word(self, root: Path) -> None:
        assert run_and_kill(root, stop_at_save(3)) == -signal.SIGKILL
        [save] = (root / "indexes").rglob("*.faiss.*.partial")
        save.write_bytes(save.read_bytes()[:-1] + b"x")
        heard = Heard()
        assert build(root, progress=heard).resumed_rows == 0
        assert "its file does not match its state" in heard.said[-1]

    def test_a_full_disk_keeps_the_save_before(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with spying(FullAt(3)), pytest.raises(DiskFullError, match=r"while writing indexes/.*run"):
            build(root, **_MANY_SAVES)
        assert build(root).resumed_rows > 0

    def test_two_at_once_are_refused(self, root: Path) -> None:
        folder = layout.IndexId(teacher=TEACHER, modality="image").folder
        with LocalStorage(root).locked(folder) as is_alone:
            assert is_alone
            with pytest.raises(SettingError, match="another siglip2-cache index is running in"):
                build(root)
        assert build(root).record.num_rows == NUM_ROWS


class TestLookingAfter:
    @pytest.fixture
    def copied(self, foreign: "ForeignCache", tmp_path: Path) -> Path:
        root = shutil.copytree(foreign.root, tmp_path / "cache")
        cache = open_cache(root)
        build_index(cache, resolve_index(cache, "image", view=1), progress=Heard())
        return root

    def test_info_says_in_a_line_what_there_is(self, copied: Path) -> None:
        lines = describe_lines(describe(open_cache(copied)))
        [line] = [line.strip() for line in lines if " index " in line]
        assert line.startswith("image index of view 1: flat (IDMap,SQfp16), 16 rows, ")
        assert line.endswith("recall@10 of images 1.000, recall@10 of texts 1.000")

    def test_a_cache_with_a_whole_index_verifies(self, copied: Path) -> None:
        report = verify_cache(open_cache(copied))
        assert (report.faults, report.notes) == ([], [])

    def test_a_flipped_bit_is_a_fault(self, copied: Path) -> None:
        path = copied / "indexes/tiny/image-view1.faiss"
        data = bytearray(path.read_bytes())
        data[-30] ^= 1
        path.write_bytes(data)
        [fault] = verify_cache(open_cache(copied)).faults
        assert fault.startswith("indexes/tiny/image-view1.faiss is damaged: ")
        assert fault.endswith(f"siglip2-cache index {copied} --view 1 builds it again")

    def test_a_missing_file_and_a_torn_record_are_faults(self, copied: Path) -> None:
        (copied / "indexes/tiny/image-view1.faiss").unlink()
        [fault] = verify_cache(open_cache(copied)).faults
        assert "cannot be read (No such file or directory)" in fault
        (copied / "indexes/tiny/image-view1.json").write_text("{")
        [fault] = verify_cache(open_cache(copied)).faults
        assert "is not a complete record" in fault

    def test_a_stale_index_is_a_note_and_info_says_so(self, copied: Path) -> None:
        change_record(
            copied / "indexes/tiny/image-view1.json",
            lambda fields: fields["fingerprint"].update(num_units=2),
        )
        report = verify_cache(open_cache(copied))
        assert report.faults == []
        assert "is not used: 4 image units are committed, it was built from 2;" in report.notes[0]
        lines = describe_lines(describe(open_cache(copied)))
        assert any("; not used: 4 image units are committed" in line for line in lines)

    def test_what_an_unfinished_run_left_is_a_note(self, copied: Path) -> None:
        (copied / "indexes/tiny/text.faiss.6.partial").write_bytes(b"half")
        (copied / "indexes/tiny/text.faiss").write_bytes(b"whole")
        report = verify_cache(open_cache(copied))
        assert report.faults == []
        assert len(report.notes) == 2
        assert all("is part of an unfinished index" in note for note in report.notes)

    def test_a_stranger_there_is_a_fault_and_an_index_of_no_teacher_a_note(
        self, copied: Path
    ) -> None:
        (copied / "indexes/tiny/notes.txt").write_text("mine")
        shutil.copytree(copied / "indexes/tiny", copied / "indexes/gone")
        (copied / "indexes/gone/notes.txt").unlink()
        report = verify_cache(open_cache(copied))
        [fault] = report.faults
        assert fault.startswith("indexes/tiny/notes.txt is in no record")
        assert report.notes == [
            "indexes/gone/image-view1.json belongs to no teacher of this cache; remove it"
        ]

    def test_a_record_of_another_program_version_is_named(self, copied: Path) -> None:
        change_record(copied / "indexes/tiny/image-view1.json", lambda fields: fields.pop("recall"))
        cache = open_cache(copied)
        with pytest.raises(DamagedCacheError, match="has no recall; run siglip2-cache index"):
            read_index_record(cache.files, resolve_index(cache, "image", view=1))


_MANY_SAVES: dict[str, Any] = {"save_every_s": 0.0, "block_rows": 500}


def values_of_some(root: Path) -> NDArray[np.float16]:
    return open_cache(root).image_targets().read(np.arange(1031, 1041))


def open_if_there(root: Path) -> IndexedTargets | None:
    """Return the index; None where open_index says that there is none."""
    try:
        return open_index(open_cache(root), "image")
    except SettingError as error:
        if "has no index at" not in str(error):
            raise
        return None


def run_and_kill(root: Path, prepare: Callable[[], None]) -> int | None:
    """Return the exit code of a process that makes an index with many saves."""

    def work() -> None:
        prepare()
        build(root, **_MANY_SAVES)

    # Forked: faiss's threads were never started in the parent's child.
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    return process.exitcode


def kill_at_op(number: int) -> None:
    index_build.faiss.omp_set_num_threads(1)
    local.os = Killer(number)  # type: ignore[assignment]


def stop_at_save(number: int) -> Callable[[], None]:
    """Return what lets this process kill itself when it begins its n-th save; the first is trained."""

    def prepare() -> None:
        index_build.faiss.omp_set_num_threads(1)
        save, calls = index_build.IndexState.save, []

        def counted(self: Any, index: Any, next_row: int) -> None:
            calls.append(next_row)
            if len(calls) > number:
                signal.raise_signal(signal.SIGKILL)
            save(self, index, next_row)

        index_build.IndexState.save = counted  # type: ignore[method-assign]

    return prepare


class FullAt(Spy):
    """A disk that is full when the n-th save is written."""

    def __init__(self, save: int) -> None:
        super().__init__()
        self._left = save

    def _do(self, name: str, act: Any, *arguments: Any) -> Any:
        import errno

        if (
            name == "create"
            and str(arguments[0]).endswith(".partial")
            and ".faiss." in str(arguments[0])
        ):
            self._left -= 1
        if name == "write" and self._left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super()._do(name, act, *arguments)


def change_record(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    from siglip2_cache.store.format.records import decode_record, encode_record

    fields = decode_record(path.read_bytes(), where=str(path))
    change(fields)
    path.write_bytes(encode_record(json.loads(json.dumps(fields))))


def test_a_store_that_is_away_does_not_begin_an_index_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = LocalStorage(tmp_path)
    place = layout.IndexId(teacher="t", modality="text")
    saved = "indexes/t/text.faiss.5.partial"
    files.write(saved, b"saved")
    state = {"making": {}, "next_row": 5, "files": {saved: files.describe(saved)}}
    files.write(place.state, encode_record(state))

    def describe(path: str) -> dict[str, object]:
        raise StorageError("it is away")

    monkeypatch.setattr(files, "describe", describe)
    with pytest.raises(StorageError):
        IndexState(files, place, {}).resume(lambda line: None)
