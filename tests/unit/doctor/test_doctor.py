"""Each fault that doctor can find, injected, and that credentials are never part of the result."""

import importlib.metadata
import json
import os
import resource
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit.commands import run
from packaging.requirements import Requirement

from siglip2_cache.doctor.credentials import check_credentials
from siglip2_cache.doctor.hardware import check_decoding, check_gpus
from siglip2_cache.doctor.packages import check_extras, check_versions, own_requirements
from siglip2_cache.doctor.report import Check, Fault, report_lines, report_values
from siglip2_cache.doctor.storage import check_disk, check_limits, check_shared_memory

SECRET = "wJalrXUtnFEMI"
GB = 1_000_000_000

REQUIREMENTS = [
    Requirement(line)
    for line in ("torch>=2.6", "zarr>=3.1", 's3fs>=2024.10; extra == "s3"', 'x; extra == "test"')
]


def versions(**installed: str) -> Callable[[str], str]:
    def version_of(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    return version_of


def line_of(check: Check) -> str:
    """Return the line of the only fault."""
    [line] = [line for line in report_lines([check]) if line.startswith("fault")]
    return line.removeprefix("fault").strip()


class OutOfMemoryError(RuntimeError):
    pass


def fake_torch(
    *, num_gpus: int = 0, cuda: str | None = "13.0", major: int = 9, fails: Exception | None = None
) -> Any:
    """A torch whose GPUs are made up and whose products of matrices are 16, or fail."""

    class Ones:
        def __matmul__(self, other: "Ones") -> "Ones":
            return self

        def __eq__(self, other: object) -> Any:
            return SimpleNamespace(all=lambda: True)

        __hash__ = None  # type: ignore[assignment]

    def ones(shape: tuple[int, int], device: str) -> Ones:
        if fails is not None:
            raise fails
        return Ones()

    gpu = SimpleNamespace(name="NVIDIA H100", total_memory=80 * GB, major=major, minor=0)
    return SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False)),
        ones=ones,
        cuda=SimpleNamespace(
            is_available=lambda: num_gpus > 0,
            device_count=lambda: num_gpus,
            get_device_properties=lambda number: gpu,
            mem_get_info=lambda number: (70 * GB, 80 * GB),
            OutOfMemoryError=OutOfMemoryError,
        ),
    )


def test_packages_that_satisfy_the_requirements_are_no_fault() -> None:
    check = check_versions(REQUIREMENTS, version_of=versions(torch="2.13.0+cpu", zarr="3.1.6"))
    assert check.faults == ()
    assert check.values["packages"] == {"torch": "2.13.0+cpu", "zarr": "3.1.6"}
    assert "torch 2.13.0+cpu, zarr 3.1.6" in check.found


def test_an_old_and_a_missing_package_are_named_with_the_command_that_mends_them() -> None:
    check = check_versions(REQUIREMENTS, version_of=versions(torch="2.5.1"))
    lines = report_lines([check])
    assert lines[-3:] == [
        "fault     torch is 2.5.1, needed is >=2.6; pip install 'torch>=2.6'",
        "fault     zarr is missing, needed is >=3.1; pip install 'zarr>=3.1'",
        "checked: 2 faults",
    ]


def test_an_extra_that_is_not_installed_is_named_and_no_fault() -> None:
    check = check_extras(REQUIREMENTS, version_of=versions())
    assert check.faults == ()
    assert check.values == {"installed": [], "missing": ["s3"]}
    assert check.found == "none; not installed: s3 (pip install 'siglip2-cache[s3]')"
    assert check_extras(REQUIREMENTS, version_of=versions(s3fs="2026.9.0")).found == "s3"


def test_an_extra_in_an_older_version_is_a_fault() -> None:
    check = check_extras(REQUIREMENTS, version_of=versions(s3fs="2023.1"))
    assert line_of(check).startswith("s3fs of the extra s3 is 2023.1, needed is >=2024.10; pip")


def test_the_metadata_of_this_installation_is_read() -> None:
    requirements = own_requirements()
    assert check_versions(requirements).faults == ()
    extras = check_extras(requirements).values
    assert {"s3", "gcs", "azure", "ray", "onnx"} <= {*extras["installed"], *extras["missing"]}
    assert "test" not in {*extras["installed"], *extras["missing"]}


def test_gpus_are_listed_with_their_memory() -> None:
    check = check_gpus(fake_torch(num_gpus=8))
    assert check.faults == ()
    assert check.found == "NVIDIA H100, 80.0 GB, 70.0 GB free, 8 times; CUDA 13.0"
    assert len(check.values["gpus"]) == 8
    assert check.values["gpus"][0]["compute_capability"] == "9.0"


@pytest.mark.parametrize(
    ("torch", "line"),
    [
        pytest.param(
            fake_torch(cuda=None),
            "this machine has an NVIDIA GPU and torch 2.13.0 is for CPUs only; pip install "
            "--force-reinstall torch",
            id="a build of torch for CPUs",
        ),
        pytest.param(
            fake_torch(),
            "torch 2.13.0 for CUDA 13.0 finds no GPU; compare with nvidia-smi",
            id="a driver that is too old",
        ),
        pytest.param(
            fake_torch(num_gpus=1, fails=RuntimeError("no kernel image is available\nhint")),
            "cuda:0 (NVIDIA H100) does not compute (no kernel image is available); install a build of "
            "torch for compute capability 9.0",
            id="no kernels",
        ),
        pytest.param(
            fake_torch(num_gpus=1, fails=OutOfMemoryError("CUDA out of memory")),
            "cuda:0 (NVIDIA H100) has no memory left; end the other processes",
            id="memory in use",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_a_fault(torch: Any, line: str, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    assert line_of(check_gpus(torch, root=tmp_path)).startswith(line)


def test_a_machine_without_a_gpu_has_no_fault(tmp_path: Path) -> None:
    check = check_gpus(fake_torch(), root=tmp_path)
    assert (check.faults, check.values["gpus"]) == ((), [])


def test_an_old_gpu_is_told_which_dtype_to_use() -> None:
    assert "float16" in check_gpus(fake_torch(num_gpus=1, major=7)).notes[0]


def test_slow_decoding_is_a_fault() -> None:
    check = check_decoding(num_gpus=0, rate=20.4, cores=2)
    assert line_of(check).startswith("one core decodes 20 photographs per second, expected 50")


def test_a_pillow_without_libjpeg_turbo_is_a_fault() -> None:
    check = check_decoding(num_gpus=0, rate=300, cores=2, has_feature=lambda name: False)
    assert line_of(check).startswith("Pillow was built without libjpeg-turbo")


def test_cores_that_cannot_feed_the_gpus_are_noted() -> None:
    assert check_decoding(num_gpus=1, rate=300, cores=8).notes == ()
    [note] = check_decoding(num_gpus=8, rate=300, cores=16).notes
    assert note.startswith("8 GPUs may wait for pixels")


def test_decoding_is_measured() -> None:
    check = check_decoding(num_gpus=0)
    assert check.values["images_per_s_and_core"] > 1


def test_a_folder_that_is_to_be_made_is_tried_in_the_one_above(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    there = tmp_path / "new" / "folder"
    assert check_disk(there).faults == ()
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]  # nothing is left


@pytest.mark.parametrize("name", ["script.py", "script.py/runs"])
def test_a_file_in_place_of_a_folder_is_a_fault(tmp_path: Path, name: str) -> None:
    file = tmp_path / "script.py"
    file.touch()
    assert line_of(check_disk(tmp_path / name)) == (
        f"{file} is not a folder; name another folder: siglip2-cache doctor FOLDER"
    )


def test_a_disk_error_while_writing_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_rename(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_rename)
    monkeypatch.setattr(os, "rename", no_rename)
    monkeypatch.setattr(os, "replace", no_rename)
    assert f"{tmp_path} cannot be written to (Operation not permitted)" in line_of(
        check_disk(tmp_path)
    )


def test_a_full_disk_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    lines = [fault.problem for fault in check_disk(tmp_path).faults]
    assert lines[0] == f"{tmp_path} has 5.0 MB free"
    assert len(lines) == 4  # the copies, the hub's files and the temporary ones


@pytest.mark.parametrize(("num_gpus", "num_faults"), [(0, 0), (1, 0), (2, 1)])
def test_little_shared_memory_is_a_fault_where_several_gpus_train(
    num_gpus: int, num_faults: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=64_000_000, free=64_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    check = check_shared_memory(num_gpus=num_gpus, folder=tmp_path)
    assert check is not None
    assert len(check.faults) == num_faults
    [text] = check.notes or [fault.remedy for fault in check.faults]
    assert "docker run --shm-size=16g" in text


def test_a_system_without_shared_memory_files_is_not_checked(tmp_path: Path) -> None:
    assert check_shared_memory(num_gpus=0, folder=tmp_path / "shm") is None


@pytest.mark.parametrize(
    ("limits", "remedy"),
    [
        ((256, 4096), "ulimit -n 4096 in this shell raises it"),
        ((256, resource.RLIM_INFINITY), "ulimit -n 65536 in this shell raises it"),
        ((256, 256), "ask for a higher hard limit"),
    ],
)
def test_a_low_limit_on_open_files_is_a_fault(
    limits: tuple[int, int], remedy: str, tmp_path: Path
) -> None:
    line = line_of(check_limits(num_files=limits, maps_file=tmp_path / "none"))
    assert line.startswith(f"a process may open 256 files, expected 1,024 at least; {remedy}")


def test_a_low_limit_on_maps_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("1000\n")
    line = line_of(check_limits(num_files=(2048, 2048), maps_file=tmp_path / "maps"))
    assert line.endswith("sysctl -w vm.max_map_count=65530")


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (
            {"AWS_ACCESS_KEY_ID": SECRET},
            "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not",
        ),
        ({"AWS_SECRET_ACCESS_KEY": SECRET}, "AWS_SECRET_ACCESS_KEY is set and AWS_ACCESS_KEY_ID"),
        (
            {"GOOGLE_APPLICATION_CREDENTIALS": "/no.json"},
            "GOOGLE_APPLICATION_CREDENTIALS names /no",
        ),
        (
            {"AZURE_STORAGE_ACCOUNT_KEY": SECRET},
            "AZURE_STORAGE_ACCOUNT_KEY is set and AZURE_STORAGE",
        ),
    ],
)
def test_half_set_credentials_are_a_fault(
    environment: Mapping[str, str], line: str, tmp_path: Path
) -> None:
    check = check_credentials(environment=environment, home=tmp_path)
    assert line_of(check).startswith(line)
    assert SECRET not in repr(check)


def test_credentials_are_found_and_never_shown(tmp_path: Path) -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AZURE_STORAGE_CONNECTION_STRING": SECRET,
        "HF_TOKEN": SECRET,
        "WANDB_API_KEY": SECRET,
    }
    check = check_credentials(environment=environment, home=tmp_path)
    assert check.values == {
        "s3": "AWS_ACCESS_KEY_ID",
        "gcs": None,
        "azure": "AZURE_STORAGE_CONNECTION_STRING",
        "hub": "HF_TOKEN",
        "wandb": "WANDB_API_KEY",
    }
    assert check.faults == ()
    assert SECRET not in repr(check)


def test_credentials_in_files_are_found(tmp_path: Path) -> None:
    for name in (
        *(".aws/credentials", ".config/gcloud/application_default_credentials.json"),
        *(".cache/huggingface/token", ".netrc"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"machine api.wandb.ai password {SECRET}")
    check = check_credentials(environment={}, home=tmp_path)
    assert check.values["s3"] == str(tmp_path / ".aws" / "credentials")
    assert [name for name, place in check.values.items() if place] == ["s3", "gcs", "hub", "wandb"]
    assert SECRET not in repr(check)


def test_an_offline_hub_is_noted(tmp_path: Path) -> None:
    [note] = check_credentials(environment={"HF_HUB_OFFLINE": "1"}, home=tmp_path).notes
    assert note.startswith("HF_HUB_OFFLINE is set")


def test_a_report_without_faults_says_so() -> None:
    checks = [Check(name="a", found="fine"), Check(name="limits", found="high", notes=("but",))]
    assert report_lines(checks) == [
        "a       fine",
        "limits  high",
        "note    but",
        "checked: no fault",
    ]
    assert report_values(checks)["healthy"] is True
    faulty = Check(name="b", found="", faults=(Fault(problem="p", remedy="r"),))
    assert report_values([faulty])["healthy"] is False


def test_the_command_exits_with_1_where_there_is_a_fault(tmp_path: Path) -> None:
    few_files = "import os, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))"
    secret = f"os.environ['AWS_ACCESS_KEY_ID'] = {SECRET!r}"
    done = run("doctor", "runs", "--json", cwd=tmp_path, before=f"{few_files}; {secret}")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["healthy"] is False
    assert found["checks"]["limits"]["values"]["open_files"] == 512
    assert SECRET not in done.stdout + done.stderr
    assert set(found["checks"]) >= {
        *("versions", "extras", "gpus", "decoding", "disk", "limits", "credentials"),
    }
    assert list(tmp_path.iterdir()) == []
