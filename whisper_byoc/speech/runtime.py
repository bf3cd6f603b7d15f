"""OpenVINO itself, without its conversion tools: those bring a telemetry client and a fifth of a second."""

import functools
import os
import sys
from collections.abc import Sequence

import numpy as np

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "50")  # of its 1024, which take 80 MB more and save no time

_CONVERTER = "openvino.tools.ovc"

_unused = _CONVERTER not in sys.modules
if _unused:
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # openvino goes on without what cannot be imported
try:
    import openvino
finally:
    if _unused:
        del sys.modules[_CONVERTER]

ov = openvino


@functools.cache
def core() -> openvino.Core:
    """Return the process's one runtime."""
    return openvino.Core()


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU computes in bfloat16 (AVX512-BF16 or AMX): twice as fast as float32 there."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def ints(values: int | Sequence[int]) -> openvino.Node:
    """Return a constant of a graph."""
    return ov.opset13.constant(np.array(values, np.int64))
