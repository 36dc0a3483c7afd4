"""Towers in 8-bit integers: the text tower dynamically, the image tower calibrated on pictures.

Shape letters in this file: B = pictures, as in onnx_graphs.py.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from .onnx_graphs import quiet, save_graph

Inputs = Mapping[str, NDArray[Any]]
"""Inputs of a graph by name."""

# Weights of 7 bits: CPUs without VNNI add products of 8 bits with saturation.
_WEIGHTS: dict[str, Any] = {
    "per_channel": True,
    "reduce_range": True,
    "weight_type": QuantType.QInt8,
}
_CONSTANT_ONLY = {"MatMulConstBOnly": True}  # products inside attention stay float32


def int8_text_graph(graph: ModelProto) -> ModelProto:
    """Return a text tower with weights and token embedding of 8 bits; activations are scaled as they come.

    Args:
        graph: from text_graph, float32.
    """

    def quantize(source: Path, target: Path, is_large: bool) -> None:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            use_external_data_format=is_large,
            extra_options=_CONSTANT_ONLY,
            **_WEIGHTS,
        )

    return _quantized(graph, quantize)


def int8_image_graph(graph: ModelProto, calibration: Iterable[Inputs]) -> ModelProto:
    """Return an image tower with weights and activations of 8 bits.

    Args:
        graph: from image_graph, float32.
        calibration: inputs of batches of pictures, which give the range of each activation.
    """

    def quantize(source: Path, target: Path, is_large: bool) -> None:
        quantize_static(
            source,
            target,
            _Reader(iter(calibration)),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            activation_type=QuantType.QUInt8,
            use_external_data_format=is_large,
            extra_options=_CONSTANT_ONLY,
            **_WEIGHTS,
        )

    return _quantized(graph, quantize)


class _Reader(CalibrationDataReader):
    def __init__(self, batches: Iterator[Inputs]) -> None:
        self._batches = batches

    def get_next(self) -> Any:
        return next(self._batches, None)


def _quantized(graph: ModelProto, quantize: Any) -> ModelProto:
    with tempfile.TemporaryDirectory(prefix="siglip2-cache-") as name:
        source, target = Path(name) / "source.onnx", Path(name) / "int8.onnx"
        with quiet():
            quantize(source, target, save_graph(graph, source))
        return onnx.load(target)
