"""The files of a checkpoint: JSON, headers of safetensors, and remembered hashes."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import CheckpointError
from ..formatting import first_line

if TYPE_CHECKING:
    from torch import Tensor

_LOGITS = ("logit_scale", "logit_bias")
_WRAPPED = re.compile(r"((?:\w+\.)+?)(?:(?:text|vision)_model\..*|logit_scale|logit_bias)")
"""A weight name after the prefix of a wrapper, such as ``module.``"""

_STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}, so it is not a complete Hugging Face checkpoint"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} contains no JSON object")
    return cast("dict[str, Any]", value)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file as transformers does: two spaces a level, one line end at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_weights(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write a safetensors file with the permissions of any new file; safetensors lets only its owner read it.

    Args:
        path: the file, which must not exist.
        tensors: contiguous, by name.
    """
    from safetensors.torch import save_file

    path.touch(exist_ok=False)
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint, sorted by name.

    Raises:
        CheckpointError: files are missing, or the index names none.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(
            f"{folder} has no model.safetensors; save the weights with "
            "model.save_pretrained(folder) (pickled .bin weights are not read)"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map, or an empty one; download it again")
    names = cast("dict[str, str]", weight_map).values()
    files = [folder / name for name in sorted(set(names))]
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{index} names {path.name}, which is missing; download it again")
    return files


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the description of each tensor in a safetensors file, and the position of its data.

    Raises:
        CheckpointError: the file is damaged.
    """
    with path.open("rb") as file:
        num_bytes = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(min(num_bytes, 100_000_000)))
            header.pop("__metadata__", None)
            end = 8 + num_bytes + max(record["data_offsets"][1] for record in header.values())
        except (ValueError, TypeError, AttributeError, KeyError, IndexError):
            raise CheckpointError(f"{path} is not a safetensors file; download it again") from None
    size = path.stat().st_size
    if size != end:
        raise CheckpointError(f"{path} has {size} bytes, its header says {end}; download it again")
    return header, 8 + num_bytes


def stored_dtype_of(folder: Path) -> str:
    """Return the dtype of most of the weights, one of float32, bfloat16 and float16.

    Raises:
        CheckpointError: it is another dtype, or files are missing or damaged.
    """
    num_bytes: dict[str, int] = {}
    for path in weight_files(folder):
        for record in read_header(path)[0].values():
            start, end = record["data_offsets"]
            num_bytes[record["dtype"]] = num_bytes.get(record["dtype"], 0) + end - start
    most = max(num_bytes, key=lambda dtype: num_bytes[dtype])
    if most not in _STORED_DTYPES:
        raise CheckpointError(f"{folder} stores its weights as {most}; expected F32, BF16 or F16")
    return _STORED_DTYPES[most]


def refuse_other_names(folder: Path) -> None:
    """Check that names of weights have no prefix of a wrapper, and that logits are not scalars.

    Training programs write such files when they save the state of a wrapped model.

    Raises:
        CheckpointError: they do; the message contains the command that repairs them.
    """
    files = weight_files(folder)
    tensors = {name: record for path in files for name, record in read_header(path)[0].items()}
    prefixes = {found[1] for name in tensors if (found := _WRAPPED.fullmatch(name))}
    is_scalar = any(not r.get("shape") for n, r in tensors.items() if n.endswith(_LOGITS))
    if not prefixes and not is_scalar:
        return
    prefix = min(prefixes, default="")
    what = (
        f"names its weights {prefix}*" if prefix else "has a logit_scale or logit_bias of shape []"
    )
    if len(files) > 1:
        remedy = (
            "load them into a transformers model and save it with model.save_pretrained(folder)"
        )
    else:
        changed = f"k.removeprefix({prefix!r})" if prefix else "k"
        remedy = (
            "run there: python -c \"from safetensors.torch import *; f = 'model.safetensors'; "
            f"save_file({{{changed}: v if v.ndim else v[None] for k, v in load_file(f).items()}}, f, "
            "{'format': 'pt'})\""
        )
    raise CheckpointError(f"{folder} {what}; {remedy}")


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file, remembered while its size and mtime do not change.

    Hashes are remembered in a small JSON file in the user's cache folder.
    """
    path = path.resolve()  # a hub snapshot is a folder of links to blobs
    before = path.stat()
    memory_path = _memory_path()
    stamp = [before.st_size, before.st_mtime_ns]
    remembered = _read_memory(memory_path).get(str(path))
    if isinstance(remembered, list) and remembered[:2] == stamp and isinstance(remembered[-1], str):
        return remembered[-1]
    digest = _hash_bytes(path)
    after = path.stat()
    if [after.st_size, after.st_mtime_ns] == stamp:
        memory = _read_memory(memory_path) | {str(path): [*stamp, digest]}
        partial = memory_path.with_name(f"{memory_path.name}.{os.getpid()}.partial")
        with suppress(OSError):  # without a writable home, hashes are computed again
            memory_path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(memory, indent=1), encoding="utf-8")
            partial.replace(memory_path)
    return digest


def _memory_path() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "siglip2-cache" / "sha256.json"


def _read_memory(path: Path) -> dict[str, Any]:
    try:
        memory = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", memory) if isinstance(memory, dict) else {}


def _hash_bytes(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(paths: list[Path]) -> str:
    """Return the SHA-256 of one file, or that of the ``sha256sum`` listing of several."""
    digests = [file_sha256(path) for path in paths]
    if len(paths) == 1:
        return digests[0]
    lines = [f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
