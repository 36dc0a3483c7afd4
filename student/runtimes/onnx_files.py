"""A folder with the ONNX graphs of a student, in the layout of transformers.js.

OUT/config.json tokenizer.json tokenizer_config.json preprocessor_config.json
OUT/onnx/model.onnx text_model.onnx vision_model.onnx            float32
         model_fp16.onnx ...                                     float16
         model_quantized.onnx ...                                int8
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ExportError, SettingError
from ...siglip import Checkpoint, load_model, logit_scale_and_bias
from ...siglip.files import write_json
from .gate import LIMITS, Parity, check_parity
from .held_out import HeldOut, Outputs
from .onnx_student import FOLDER, GRAPHS, SUFFIXES, OnnxStudent, image_inputs, kinds_of

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
    load: Callable[[], Any],
    checkpoint: Checkpoint,
    folder: Path,
    precision: str,
    *,
    calibration: HeldOut | None,
    map_ED: NDArray[np.float32] | None = None,
) -> None:
    """Write the graphs of one precision into ``folder/onnx``: one a tower, and one of both if it has both.

    Args:
        load: returns the student as load_model does, on the CPU in float32; float16 converts its towers.
            It is not called where graphs in float32 are there to be quantised.
        checkpoint: the student.
        folder: an existing folder.
        precision: one of PRECISIONS.
        calibration: pictures for the ranges of the activations of an int8 image tower; None for others.
            int8 is made from the float32 graphs of the folder, where they are.
        map_ED: map to the teacher's space, for the output teacher_embeds; None: there is none.
    """
    import onnx

    from .onnx_graphs import image_graph, joint_graph, save_graph, text_graph
    from .onnx_int8 import int8_image_graph, int8_text_graph

    dtype = "float16" if precision == "float16" else "float32"
    kinds = kinds_of(checkpoint)
    whole = {
        kind: folder / FOLDER / f"{GRAPHS[kind]}{SUFFIXES['float32']}.onnx"
        for kind in kinds
        if kind != "both"
    }
    graphs: dict[str, Any]
    if calibration is not None and all(path.is_file() for path in whole.values()):
        graphs = {kind: onnx.load(path) for kind, path in whole.items()}
    else:
        model, trace = load(), {"image": image_graph, "text": text_graph}
        graphs = {kind: trace[kind](model, checkpoint, dtype, map_ED) for kind in whole}
        del model
    if calibration is not None and "image" in graphs:
        inputs = (image_inputs(checkpoint, *batch) for batch in calibration.image_batches())
        graphs["image"] = int8_image_graph(graphs["image"], inputs)
    if calibration is not None and "text" in graphs:
        graphs["text"] = int8_text_graph(graphs["text"])
    if "both" in kinds:
        scale, bias = logit_scale_and_bias(checkpoint)
        graphs["both"] = joint_graph(
            graphs["image"], graphs["text"], logit_scale=scale, logit_bias=bias
        )
    (folder / FOLDER).mkdir(exist_ok=True)
    for kind in kinds:
        file = f"{GRAPHS[kind]}{SUFFIXES[precision]}.onnx"
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
        student: what PyTorch computes from ``held_out``, by ``map_ED`` too.
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
    load = partial(load_model, checkpoint, device="cpu", compute_dtype="float32")
    for precision in precisions or PRECISIONS:
        calibration = read_calibration() if precision == "int8" else None
        write_graphs(load, checkpoint, folder, precision, calibration=calibration, map_ED=map_ED)
        try:
            found[precision] = check_parity(
                OnnxStudent(folder, precision),
                student,
                checkpoint,
                held_out,
                limits=LIMITS[precision],
                what=f"ONNX in {precision}",
            )
        except ExportError as error:
            if precisions is not None or precision == "float32":
                raise
            left_out[precision] = str(error)
            for name in GRAPHS.values():
                for path in (folder / FOLDER).glob(f"{name}{SUFFIXES[precision]}.onnx*"):
                    path.unlink()
    return found, left_out
