"""Every benchmark runs, and its last line is the JSON that those who compare runs will read."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit.patience import PATIENCE_S

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_benchmark_is_tried_here() -> None:
    tried = {
        "bench_build.py",
        "bench_cluster_kills.py",
        "bench_decode.py",
        "bench_distillation.py",
        "bench_feed.py",
        "bench_kills.py",
        "bench_neighbors.py",
        "bench_patches.py",
        "bench_runtimes.py",
        "bench_scale.py",
        "bench_store_read.py",
        "bench_targets.py",
        "bench_train.py",
        "peers/embedding.py",
        "peers/search.py",
        "peers/training_step.py",
    }
    found = [*BENCHMARKS.glob("bench_*.py"), *BENCHMARKS.glob("peers/*.py")]
    assert {path.relative_to(BENCHMARKS).as_posix() for path in found} == tried


def last_line(name: str, *options: str) -> dict[str, Any]:
    """Run a benchmark, quickly; return its JSON. Its first line names the machine."""
    command = [sys.executable, BENCHMARKS / name, "--quick", "--json", *options]
    warnings = {**os.environ, "PYTHONWARNINGS": ""}  # those of peers are not ours to mend
    done = subprocess.run(command, capture_output=True, text=True, env=warnings, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(" cores, " in line and "Python 3" in line for line in lines[:2])
    return json.loads(lines[-1])


@pytest.mark.slow
def test_reading_gives_the_rate_of_every_reader() -> None:
    pytest.importorskip("lance", reason="the extra bench is not installed")
    found = last_line("bench_store_read.py")
    assert list(found) == ["random_rows_per_s", "sequential_rows_per_s"]
    for rates in found.values():
        assert list(rates) == ["ours", "memmap", "zarr-python", "tensorstore", "lance", "parquet"]
        assert all(rate > 0 for rate in rates.values())


@pytest.mark.slow
def test_decoding_gives_the_gain_and_the_parity_of_every_way() -> None:
    pytest.importorskip("simplejpeg", reason="the extra bench is not installed")
    found = last_line("bench_decode.py")
    assert found["size"] == [64, 64]
    for ways in found["decode"].values():
        assert ways["exact"]["max_diff"] == 0
        assert ways["exact"]["gain"] == 1
        assert 0 < ways["scaled"]["max_diff"] <= 4
        assert 0.999 < ways["scaled"]["min_cosine"] < 1


@pytest.mark.slow
def test_feeding_gives_the_rate_of_every_loader_beside_the_bare_decoding() -> None:
    found = last_line("bench_feed.py")
    assert list(found["of_bare_decode"]) == ["640 x 480", "1280 x 852", "kept"]
    for ways in found["of_bare_decode"].values():
        assert list(ways) == ["bare decode", "ours", "ours, scaled", "torch", "webdataset"]
        assert all(ratio > 0 for ratio in ways.values())
    assert found["kept_over_plain"] > 0


@pytest.mark.slow
def test_building_gives_both_ratios_the_memory_and_the_stages() -> None:
    found = last_line("bench_build.py")
    assert list(found) == ["forward", "decoding", "memory"]
    for part in ("forward", "decoding"):
        assert found[part]["ratio"] > 0
        stages = ["read", "decode", "forward", "write", "teacher waited", "whole"]
        assert list(found[part]["stages_s"]) == stages
    assert found["forward"]["share_of_matmul_peak"] > 0
    assert list(found["memory"]["anonymous_bytes"]) == ["100", "1000"]
    assert abs(found["memory"]["growth"]) < 0.25


@pytest.mark.slow
def test_random_kills_lose_and_double_nothing() -> None:
    found = last_line("bench_kills.py")
    assert found["kills"] == sum(found["kills_by_kind"].values()) == 10
    for fault in ("rows_lost", "rows_doubled", "files_differing", "faults_found_by_verify"):
        assert found[fault] == 0


@pytest.mark.slow
def test_random_kills_on_a_cluster_lose_and_double_nothing() -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    found = last_line("bench_cluster_kills.py")
    assert found["kills"] == sum(found["kills_by_kind"].values()) == 6
    assert {"actor", "machine", "raylet"} <= found["kills_by_kind"].keys()
    for fault in ("rows_lost", "rows_doubled", "files_differing", "faults_found_by_verify"):
        assert found[fault] == 0


@pytest.mark.slow
def test_exact_search_finds_what_faiss_finds_in_less_memory() -> None:
    found = last_line("bench_neighbors.py")
    assert found["same_neighbors"] == 1
    assert found["memory_ratio"] < 1
    assert found["time_ratio"] > 0


@pytest.mark.slow
def test_planner_and_resume_are_measured_at_scale() -> None:
    found = last_line("bench_scale.py")
    assert found["resume"]["records"] == 2000
    assert found["resume"]["is_within_bounds"]
    assert 0 < found["resume"]["first_unit_cpu_s"] < found["resume"]["whole_cpu_s"]
    assert [plan["samples"] for plan in found["planner"]["plans"]] == [
        10_000,
        20_000,
        40_000,
        10_000,
    ]
    assert found["planner"]["tar_samples_per_s"] > 0
    assert list(found["units"]["is_linear"]) == ["info", "verify", "index", "retry", "append"]


@pytest.mark.slow
def test_a_training_step_is_compared_with_memory_and_with_the_online_teacher() -> None:
    found = last_line("bench_train.py")
    assert list(found) == ["step", "options", "loss"]
    assert found["options"]["plain"]["to_plain"] == 1
    assert all(option["step_s"] > 0 for option in found["options"].values())
    assert found["step"]["ratio_to_memory"] > 0
    assert found["step"]["online"]["teacher_s"] > 0
    assert found["loss"]["pairs"] == [1024, 1024]


@pytest.mark.slow
def test_every_objective_is_tried_at_every_noise() -> None:
    found = last_line("bench_distillation.py", "--jobs", "1", "--ways", "default", "--online")
    assert list(found["runs"]) == ["scenes", "scratch", "half", "digits"]
    by_noise = found["runs"]["scenes"]["default: soft 1, cosine T, contrastive 0.1, wsd"]
    assert list(by_noise) == ["30 % missing, 45 % mismatched", "60 % mismatched", "clean"]
    assert all(0 <= run["score"] <= 1 for [run] in by_noise.values())
    assert len(found["online"]["online"]) == 1


@pytest.mark.slow
def test_targets_give_bytes_rates_errors_and_what_students_learn() -> None:
    pytest.importorskip("lance", reason="the extra bench is not installed")
    found = last_line("bench_targets.py")
    assert list(found) == ["maps", "reading", "training", "patches"]
    assert found["maps"]["ours"]["kl_share"] < found["maps"]["no map"]["kl_share"] / 4
    sizes = found["reading"]["bytes"]
    assert sizes["int8"] / sizes["float16"] < 0.51
    assert all(rate > 0 for rates in found["reading"]["rates"].values() for rate in rates)
    assert list(found["training"]) == ["float16", "int8", "int8 and patches"]


@pytest.mark.slow
def test_patch_targets_give_bytes_errors_rates_and_what_students_learn() -> None:
    found = last_line("bench_patches.py")
    assert found["error"]["128"]["bytes"] == 16 * (128 + 8)
    assert found["error"]["128"]["int8"] < 1e-3 < found["error"]["16"]["map"]
    assert all(rate > 0 for rate in found["reading"].values())
    training = found["training"]
    assert list(training) == ["teacher", "student at the start", "default", "with patch"]
    assert training["teacher"][0]["miou"] > training["student at the start"][0]["miou"]


@pytest.mark.slow
def test_every_runtime_has_its_times_and_computes_what_training_does() -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    found = last_line("bench_runtimes.py")
    for student in ("whole", "smaller"):
        assert len(found[student]) == 4
        for runtime, numbers in found[student].items():
            least = 0.98 if runtime == "onnx int8" else 0.9999
            assert min(numbers["image_cosine"], numbers["text_cosine"]) > least, (student, runtime)
            assert min(numbers[name] for name in ("load_s", "text_ms", "images_per_s")) > 0
    sizes = [found[student]["transformers"]["megabytes"] for student in ("whole", "smaller")]
    assert sizes[0] > sizes[1] > found["smaller"]["onnx int8"]["megabytes"]


@pytest.mark.slow
def test_embedding_is_compared_with_peers_that_lose_everything_where_a_build_does_not() -> None:
    found = last_line("peers/embedding.py")
    assert list(found) == ["siglip2-cache", "sentence-transformers", "transformers"]
    ours, *peers = found.values()
    assert 12 <= ours["kept_at_half"] <= 24
    assert ours["kept_at_half"] + ours["embedded_by_next_start"] == 24
    assert ours["damaged"] == {"status": 0, "embedded": 23, "of": 24}
    for peer in peers:
        assert peer["kept_at_half"] == peer["damaged"]["embedded"] == 0
        assert peer["least_cosine_to_ours"] > 0.999
        assert min(peer["images_per_s"], peer["images_per_s_loaded"], peer["peak_bytes"]) > 0


@pytest.mark.slow
def test_a_training_step_is_compared_with_those_of_peers() -> None:
    found = last_line("peers/training_step.py")
    ours = [f"siglip2-cache, {mode}" for mode in ("memory", "cached", "online")]
    assert [name for name in found if name != "open_clip"] == ["transformers", *ours]
    assert all(one["step_s"] > 0 and one["peak_bytes"] > 0 for one in found.values())


@pytest.mark.slow
def test_search_is_compared_with_faiss() -> None:
    found = last_line("peers/search.py")
    assert list(found) == ["neighbors", "faiss flat", "index ivf", "faiss ivf"]
    assert found["neighbors"]["recall"] == 1
    assert found["faiss flat"]["recall"] > 0.99  # float32 decides ties otherwise
    assert found["index ivf"]["recall"] > 0.9


# -- on a GPU


def report_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: str, limits_s: dict[str, float]
) -> tuple[int, str]:
    """Run report.py on sections of a test; return its status and what it wrote."""
    spec = importlib.util.spec_from_file_location("report", BENCHMARKS / "gpu" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    (tmp_path / "sections.py").write_text(sections)
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "LIMITS_S", limits_s)
    monkeypatch.setattr(sys, "argv", ["report.py", "--device", "cpu", "--out", str(tmp_path)])
    status = report.main()
    [path] = tmp_path.glob("gpu_cpu_*.md")
    return status, path.read_text()


def test_a_section_that_fails_or_takes_too_long_leaves_a_line_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = """
import sys, time
section = sys.argv[1]
print(f"a line of {section}", flush=True)
if section == "hangs":
    time.sleep(3600)
if section == "fails":
    raise SystemExit("a reason")
"""
    limits_s = {"prepare": 600.0, "hangs": 0.1, "fails": 600.0, "works": 600.0}
    status, text = report_of(tmp_path, monkeypatch, sections, limits_s)
    lines = [line for line in text.splitlines() if line]
    assert status == 1
    assert "not finished: hangs was stopped after 0 s" in lines
    at = lines.index("## Fails")
    assert lines[at + 1 : at + 5] == [
        "a line of fails",
        "not finished: fails failed with status 1: a reason",
        "## Works",
        "a line of works",
    ]
    assert lines[-1].endswith("; not all finished.")


def test_the_command_for_a_gpu_runs_all_tests_that_need_one() -> None:
    tests = BENCHMARKS.parent / "tests"
    marked = {
        str(path.relative_to(tests.parent))
        for path in tests.rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text("utf-8") and path.name != Path(__file__).name
    }
    sections = (BENCHMARKS / "gpu" / "sections.py").read_text("utf-8")
    assert marked
    assert [path for path in marked if f'"{path}"' not in sections] == []


@pytest.mark.slow
def test_the_command_for_a_gpu_is_tried_on_the_cpu(tmp_path: Path) -> None:
    command = [BENCHMARKS / "gpu" / "run.sh", "--device", "cpu", "--sizes", "tiny"]
    command += ["--out", tmp_path, "--limit", "20"]
    environment = {**os.environ, "PYTHON": sys.executable, "SITE": str(tmp_path / "site")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = tmp_path.glob("gpu_cpu_*.md")
    text = path.read_text()
    assert "not finished" not in text
    for name in ("Tests", "Teacher", "Training", "Loss", "Feed", "Faiss"):
        assert f"## {name}" in text
