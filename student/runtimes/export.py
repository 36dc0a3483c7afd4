"""Export of a student for other runtimes: files written beside, checked on held-out rows, then renamed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import SettingError
from ...siglip import (
    Checkpoint,
    file_sha256,
    files_sha256,
    load_model,
    logit_scale_and_bias,
    read_text_settings,
    resolve_checkpoint,
    weight_files,
)
from ...siglip.files import write_json
from ...store.cache import open_cache
from ...store.io.location import Location, given_location
from ...version import __version__
from ..evaluation.compare import EvalConfig
from ..export.atomic_folder import MARK, replaced_atomically
from ..export.export import write_settings
from ..export.metadata import ModelMetadata, read_metadata, read_projection
from .cards import write_runtime_card
from .gate import Parity, parity_cells, teacher_index_lines
from .onnx_files import PRECISIONS, check_onnx_installed, write_checked_graphs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RUNTIMES = ("onnx", "transformers-js", "open-clip")
_ONNX = {"onnx", "transformers-js"}
"""Those that read ONNX graphs."""

_CALIBRATION_IMAGES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimesConfig:
    """Settings of an export for other runtimes."""

    model: str
    """Hub id or folder of a SigLIP or SigLIP 2 checkpoint, such as a training's RUN/model."""

    out: Path
    """Folder to write; an earlier export is replaced."""

    to: tuple[str, ...]
    """Runtimes, of RUNTIMES. onnx and transformers-js read the same files; open-clip has its own."""

    check: Location | str | None = None
    """Cache whose held-out images and captions the files are checked on."""

    precisions: tuple[str, ...] | None = None
    """Precisions of ONNX graphs, of PRECISIONS, all of which must pass the check. None: float32, and the
    others if they pass."""

    teacher: str | None = None
    """Name of a teacher in the cache whose rows are used; None: the only one."""

    samples: int = 256
    """Most held-out images that the files are checked on."""

    pixels: Literal["corpus", "kept"] = "corpus"
    """Images that the files are checked on: the files of the corpus, or those that the cache keeps."""

    allow_partial: bool = False
    """Accept an unfinished cache and use what is committed."""

    decode_workers: int | None = None
    """Decoding processes; 0: decode in this process; None: one a core, at most 16."""

    corpus_roots: Mapping[str, str] = field(default_factory=dict[str, str])
    """Old folder to new folder, where the corpus has moved."""

    into_teacher_space: bool = False
    """Whether towers also give embeddings in the teacher's space, by the model's projection.safetensors."""

    def __post_init__(self) -> None:
        if "coreml" in self.to:
            raise SettingError(
                "to coreml is not there: Core ML runs on macOS only, where its files could not be checked; "
                "use --to onnx, or convert a tower of the model with coremltools"
            )
        for name, values, known in (
            ("to", self.to, RUNTIMES),
            ("precision", self.precisions or (), PRECISIONS),
        ):
            for value in values:
                if value not in known:
                    raise SettingError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not self.to:
            raise SettingError(f"to must name a runtime: {', '.join(RUNTIMES)}")
        if self.precisions and not self.has_graphs:
            raise SettingError(
                "precision is of ONNX graphs; add --to onnx, or leave out --precision"
            )
        if self.into_teacher_space and "open-clip" in self.to:
            raise SettingError(
                "into_teacher_space is not there for open_clip, whose image tower ends with its pooling; "
                "leave it out, or use --to onnx"
            )
        if self.samples < 1:
            raise SettingError(f"samples must be at least 1, got {self.samples}")

    @property
    def has_graphs(self) -> bool:
        """Whether ONNX graphs are written."""
        return bool(_ONNX & set(self.to))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimesExported:
    """Result of an export."""

    found: dict[str, Any]
    """Contents of export.json."""

    lines: list[str]
    """The main facts, as lines for people."""


def export_runtimes(config: RuntimesConfig) -> RuntimesExported:
    """Write a student for other runtimes, whole or not at all.

    Raises:
        SettingError: a package is missing, ``out`` is no earlier export, or a setting is out of range.
        CheckpointError: the model cannot be read, or is not supported.
        ExportError: a file does not compute what the student does; nothing is left in ``out``.
        DiskFullError: the disk is full; ``out`` is unchanged.
    """
    from .held_out import read_held_out, student_outputs
    from .open_clip_files import check_open_clip_installed, timm_name, write_checked_open_clip

    has_open_clip = "open-clip" in config.to
    if config.has_graphs:
        check_onnx_installed()
    if has_open_clip:
        check_open_clip_installed()
    if config.check is None:
        raise SettingError(
            "name a cache with --check, on whose held-out images and captions the files are checked"
        )
    checkpoint = resolve_checkpoint(config.model, needed=())
    _refuse_folder_of_model(config.out, checkpoint)
    _check_supported(checkpoint, config.to)
    metadata = read_metadata(checkpoint)
    map_ED = _map_to_teacher(checkpoint, metadata) if config.into_teacher_space else None
    rows = EvalConfig(
        model=config.model,
        cache=given_location(str(config.check)),
        teacher=config.teacher,
        samples=config.samples,
        decode_workers=config.decode_workers,
        corpus_roots=config.corpus_roots,
        allow_partial=config.allow_partial,
        pixels=config.pixels,
    )
    has_teacher = _is_compared(config, rows, metadata)
    with replaced_atomically(config.out) as folder:
        held_out = read_held_out(rows, checkpoint, has_teacher=has_teacher)
        model = load_model(checkpoint, device="cpu", compute_dtype="float32")
        if has_open_clip:
            timm_name(checkpoint, model.config.vision_config)  # refused before anything is written
        student = student_outputs(model, checkpoint, held_out, map_ED)
        write_settings(model.config, checkpoint, folder)
        del model
        facts = _facts(checkpoint, config, metadata)
        write_json(folder / "export.json", facts)
        parities: dict[str, Parity] = {}
        left_out: dict[str, str] = {}
        if config.has_graphs:
            parities, left_out = write_checked_graphs(
                checkpoint,
                folder,
                config.precisions,
                student=student,
                held_out=held_out,
                read_calibration=lambda: read_held_out(_calibration(rows), checkpoint),
                map_ED=map_ED,
            )
        if has_open_clip:
            parity, num_changed = write_checked_open_clip(checkpoint, folder, held_out)
            parities["open-clip"] = parity
            facts["captions_changed_by_open_clip"] = num_changed
        facts |= {
            "files": _files(folder),
            "check": {name: parity.as_json() for name, parity in parities.items()},
            "left_out": left_out,
        }
        write_json(folder / "export.json", facts)
        write_json(folder / MARK, _mark(checkpoint))
        write_runtime_card(checkpoint, folder, parities, left_out, has_map=map_ED is not None)
    return RuntimesExported(found=facts, lines=_lines(config.out, facts, parities, left_out))


def _refuse_folder_of_model(out: Path, checkpoint: Checkpoint) -> None:
    """Refuse a folder whose replacement would remove the model that is exported."""
    if checkpoint.folder.resolve().is_relative_to(out.resolve()):
        raise SettingError(
            f"{out} holds the model itself, whose weights an export would replace; name another folder"
        )


def _check_supported(checkpoint: Checkpoint, to: tuple[str, ...]) -> None:
    if "transformers-js" in to and checkpoint.model_type == "siglip2":
        raise SettingError(
            f"{checkpoint.given} is a NaFlex checkpoint (model_type siglip2), which transformers.js 4.3 does "
            "not load; use --to onnx, or a checkpoint of fixed resolution"
        )
    for runtime in {"transformers-js", "open-clip"} & set(to):
        if not (checkpoint.has_image and checkpoint.has_text):
            tower = "an image" if checkpoint.has_image else "a text"
            raise SettingError(
                f"{checkpoint.given} is {tower} tower alone, which {runtime} does not load; use --to onnx, "
                "or complete it: --teacher-text or --image-tower"
            )
    if "open-clip" in to and read_text_settings(checkpoint.folder).is_siglip1:
        raise SettingError(
            f"{checkpoint.given} is a SigLIP 1 checkpoint, which is not written for open_clip; use --to onnx"
        )


def _map_to_teacher(
    checkpoint: Checkpoint, metadata: ModelMetadata
) -> "NDArray[np.float32] | None":
    """Return the map to the teacher's space; None for a model that is in that space already."""
    map_ED = read_projection(checkpoint)
    if map_ED is None and metadata.space != "teacher":
        raise SettingError(
            f"{checkpoint.given} has no projection.safetensors, so there is no map to the teacher's space; "
            "export a training that has one, or leave out --into-teacher-space"
        )
    return map_ED


def _is_compared(config: RuntimesConfig, rows: EvalConfig, metadata: ModelMetadata) -> bool:
    """Return whether queries of the files are tried in an index of the teacher of the cache.

    Raises:
        SettingError: they are in the space of another teacher, and were asked for.
    """
    if not config.into_teacher_space and metadata.space != "teacher":
        return False
    cache = open_cache(rows.cache, corpus_roots=config.corpus_roots)
    record = cache.teacher(config.teacher)
    is_of_another = metadata.is_of(record) is False
    if is_of_another and config.into_teacher_space:
        raise SettingError(
            f"{cache.root} has embeddings of {record.name}, which is not the teacher of {config.model}; name "
            "the cache of the training with --check, or leave out --into-teacher-space"
        )
    return not is_of_another


def _calibration(rows: EvalConfig) -> EvalConfig:
    """Return settings for other images than those of the check."""
    return replace(rows, split="train", samples=_CALIBRATION_IMAGES)


def _facts(
    checkpoint: Checkpoint, config: RuntimesConfig, metadata: ModelMetadata
) -> dict[str, Any]:
    packages = ["torch"]
    opset: dict[str, int] = {}
    if config.has_graphs:
        from .onnx_graphs import OPSET

        packages += ["onnx", "onnxruntime"]
        opset = {"opset": OPSET}
    if "open-clip" in config.to:
        packages += ["open_clip_torch", "timm"]
    is_alone = not (checkpoint.has_image and checkpoint.has_text)
    logit = metadata.logit if is_alone else logit_scale_and_bias(checkpoint)
    return {
        "written_by": f"siglip2-cache {__version__}",
        "weights_sha256": files_sha256(weight_files(checkpoint.folder)),
        "embed_dim": checkpoint.embed_dim,
        **({} if logit is None else {"logit_scale": logit[0], "logit_bias": logit[1]}),
        **opset,
        "versions": {name: version(name) for name in packages},
    }


def _files(folder: Path) -> dict[str, Any]:
    """Return size and hash of each graph, and of the weights for open_clip."""
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
        for path in sorted([*folder.rglob("*.onnx*"), *folder.glob("open_clip_model.safetensors")])
    }


def _mark(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return siglip2_cache.json: that of the model, so that an evaluation finds the split."""
    path = checkpoint.folder / MARK
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return {**found, "written_by": f"siglip2-cache {__version__}"}


def _lines(
    out: Path, facts: dict[str, Any], parities: dict[str, Parity], left_out: dict[str, str]
) -> list[str]:
    from ...formatting import format_bytes

    width = max(len(name) for name in facts["files"])
    some = next(iter(parities.values()))
    return [
        f"wrote {out}",
        *(
            f"  {name:{width}}  {format_bytes(file['bytes']):>9}"
            for name, file in facts["files"].items()
        ),
        f"checked on {some.compared}, against PyTorch:",
        *parity_lines(parities),
        *teacher_index_lines(parities),
        *_cleaning_line(facts, some),
        *(f"left out {name}: {reason}" for name, reason in left_out.items()),
    ]


def _cleaning_line(facts: dict[str, Any], some: Parity) -> list[str]:
    num_changed = facts.get("captions_changed_by_open_clip", 0)
    if num_changed == 0:
        return []
    return [
        f"open_clip changes {num_changed:,} of {some.texts:,} captions before its tokenizer (white space, "
        "HTML entities): such texts get other embeddings there"
    ]


def parity_lines(parities: dict[str, Parity]) -> list[str]:
    """Return a table, one row a precision; of one tower alone only its cosine."""
    rows = [["", *parity_cells(next(iter(parities.values())))]]
    rows += [[name, *parity_cells(parity).values()] for name, parity in parities.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows
    ]
