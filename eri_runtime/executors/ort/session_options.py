"""A session's options, and weights as the values that sessions take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from eri_runtime.executors.base import Settings
from eri_runtime.executors.ort.provider import Provider, session_entries

BFLOAT16 = 16  # TensorProto.BFLOAT16 of ONNX
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


def options_of_session(provider: Provider, settings: Settings, *, arena: bool = True) -> Any:
    """Returns new `SessionOptions`; for `arena` see `open_session`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = arena
    # planning where tensors lie allocates a second block next to the first run's, and saves no time
    options.enable_mem_pattern = False
    if settings.threads is not None:
        options.intra_op_num_threads = settings.threads
    for name, value in session_entries(provider, settings).items():
        options.add_session_config_entry(name, value)
    return options


def new_session(
    graph: Path,
    provider: Provider,
    settings: Settings,
    session_options: Any,
    options: Mapping[str, str] = NO_OPTIONS,
) -> Any:
    """Returns an `InferenceSession` of a graph; `options` are additional provider options."""
    import onnxruntime as ort

    return ort.InferenceSession(
        str(graph),
        session_options,
        providers=[(provider.name, {**provider.options, **options})],
        disabled_optimizers=provider.without(settings),
    )


def ort_value(values: NDArray[Any]) -> Any:
    """Returns a weight as an `OrtValue` over NumPy's memory.

    ONNX Runtime does not recognize NumPy's bfloat16, so its bits are passed with the ONNX type.
    """
    import onnxruntime as ort

    if values.dtype == ml_dtypes.bfloat16:
        bits = values.view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(values)
