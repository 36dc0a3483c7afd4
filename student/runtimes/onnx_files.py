"""A folder with the ONNX graphs of a student, in the layout of transformers.js.

OUT/config.json tokenizer.json tokenizer_config.json preprocessor_config.json
OUT/onnx/model.onnx text_model.onnx vision_model.onnx            float32
         model_fp16.onnx ...                                     float16
         model_quantized.onnx ...                                int8
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError, SettingError
from ...siglip import Checkpoint, load_model
from ...siglip.files import write_json
from ..evaluation.embeddings import unit_rows_float32
from .gate import LIMITS, Parity, check_parity
from .held_out import HeldOut, Outputs
from .onnx_student import FOLDER, GRAPHS, SUFFIXES, OnnxStudent, image_inputs

PRECISIONS = tuple(SUFFIXES)


def check_onnx_installed() -> None:
    """Check that the packages of the extra ``onnx`` are there.

    Raises:
        SettingError: one is missing.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise SettingError(
                f"an export to ONNX needs the package {name}, which is not installed: pip install "
                "'siglip2-cache[onnx]'"
            )


def write_graphs(
    model: Any,
    checkpoint: Checkpoint,
    folder: Path,
    precision: str,
    *,
    calibration: HeldOut | None,
    map_ED: NDArray[np.float32] | None = None,
) -> None:
    """Write the three graphs of one precision into ``folder/onnx``.

    Args:
        model: from load_model, on the CPU in float32; float16 converts its towers.
        checkpoint: the one it was loaded from.
        folder: an existing folder.
        precision: one of PRECISIONS.
        calibration: pictures for the ranges of the activations of an int8 image tower; None for others.
            int8 is made from the float32 graphs of the folder, where they are.
        map_ED: map to the teacher's space, for the output teacher_embeds; None: there is none.
    """
    import onnx

    from .onnx_graphs import image_graph, joint_graph, save_graph, text_graph
    from .onnx_int8 import int8_image_graph, int8_text_graph

    scale, bias = (float(value.detach()) for value in (model.logit_scale, model.logit_bias))
    dtype = "float16" if precision == "float16" else "float32"
    graphs: dict[str, Any] = {}
    for kind, trace in {"image": image_graph, "text": text_graph}.items():
        whole = folder / FOLDER / f"{GRAPHS[kind]}{SUFFIXES['float32']}.onnx"
        is_there = calibration is not None and whole.is_file()
        graphs[kind] = onnx.load(whole) if is_there else trace(model, checkpoint, dtype, map_ED)
    if calibration is not None:
        inputs = (image_inputs(checkpoint, *batch) for batch in calibration.image_batches())
        graphs["image"] = int8_image_graph(graphs["image"], inputs)
        graphs["text"] = int8_text_graph(graphs["text"])
    graphs["both"] = joint_graph(
        graphs["image"], graphs["text"], logit_scale=scale, logit_bias=bias
    )
    (folder / FOLDER).mkdir(exist_ok=True)
    for kind, name in GRAPHS.items():
        file = f"{name}{SUFFIXES[precision]}.onnx"
        if save_graph(graphs[kind], folder / FOLDER / file):
            _mention_second_file(folder, file)


def _mention_second_file(folder: Path, file: str) -> None:
    """Tell transformers.js that the weights of a graph are in a second file."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    settings = config.setdefault("transformers.js_config", {})
    settings.setdefault("use_external_data_format", {})[file] = True
    write_json(path, config)


def write_checked_graphs(
    checkpoint: Checkpoint,
    folder: Path,
    precisions: Sequence[str] | None,
    *,
    student: Outputs,
    held_out: HeldOut,
    read_calibration: Callable[[], HeldOut],
    map_ED: NDArray[np.float32] | None = None,
) -> tuple[dict[str, Parity], dict[str, str]]:
    """Write graphs of several precisions and check each; keep those that compute what the student does.

    Args:
        checkpoint: the student.
        folder: has config.json, the tokenizer, preprocessor_config.json and export.json.
        precisions: those that must pass. None: float32 must pass, the others are kept if they do.
        student: what PyTorch computes from ``held_out``.
        held_out: pictures and captions of the check.
        read_calibration: returns other pictures, for int8.
        map_ED: as in write_graphs.

    Returns:
        How each precision differs from the student, and the reason for each that is left out.

    Raises:
        ExportError: a precision that must pass does not.
    """
    found: dict[str, Parity] = {}
    left_out: dict[str, str] = {}
    for precision in precisions or PRECISIONS:
        model = load_model(checkpoint, device="cpu", compute_dtype="float32")
        calibration = read_calibration() if precision == "int8" else None
        write_graphs(model, checkpoint, folder, precision, calibration=calibration, map_ED=map_ED)
        del model
        try:
            exported, what = OnnxStudent(folder, precision), f"ONNX in {precision}"
            limits = LIMITS[precision]
            found[precision] = check_parity(
                exported, student, checkpoint, held_out, limits=limits, what=what
            )
            if map_ED is not None:
                _check_teacher_rows(exported, student, held_out, map_ED, limits.cosine, what)
        except ExportError as error:
            if precisions is not None or precision == "float32":
                raise
            left_out[precision] = str(error)
            for name in GRAPHS.values():
                for path in (folder / FOLDER).glob(f"{name}{SUFFIXES[precision]}.onnx*"):
                    path.unlink()
    return found, left_out


def _check_teacher_rows(
    exported: OnnxStudent,
    student: Outputs,
    held_out: HeldOut,
    map_ED: NDArray[np.float32],
    least: float,
    what: str,
) -> None:
    """Check the output teacher_embeds of both towers against the student's rows through the map.

    Raises:
        ExportError: a cosine is below the limit.
    """
    name = "teacher_embeds"
    for rows_ND, found in (
        (student.images_ND, [exported.embed_images(*b, name) for b in held_out.image_batches()]),
        (student.texts_MD, [exported.embed_texts(b, name) for b in held_out.text_batches()]),
    ):
        expected_NE = unit_rows_float32(rows_ND @ map_ED.T)
        cosine = float((np.concatenate(found) * expected_NE).sum(axis=1).min())
        if not cosine >= least:
            raise ExportError(
                f"{what} is not kept: a cosine of {name} to the student's, mapped, is {cosine:.6g}, the "
                f"limit {least:g}"
            )
