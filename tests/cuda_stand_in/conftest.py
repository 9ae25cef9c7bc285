"""The stand-in for CUDA, loaded before ONNX Runtime's CUDA provider. Run `make test-cuda-stand-in`.

Nothing here is skipped: without the stand-in or onnxruntime-gpu the run stops.
"""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from tests.support.cuda_stand_in.cases import Exports
from tests.support.cuda_stand_in.device import Device

BUILD = Path(__file__).parents[2] / "build" / "cuda_stand_in"

if "CUDAExecutionProvider" not in ort.get_available_providers():
    raise pytest.UsageError(
        f"{ort.__file__}: got an onnxruntime without CUDA, expected onnxruntime-gpu: "
        "make test-cuda-stand-in"
    )
try:
    DEVICE = Device(BUILD / "lib")
except OSError as error:
    raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def device() -> Device:
    """The device that everything here runs on."""
    return DEVICE


@pytest.fixture(scope="session")
def exported(workshop) -> Exports:
    """Exports components of the tiny checkpoints."""
    return Exports(workshop / "cuda", BUILD / "traces")


@pytest.fixture(autouse=True)
def no_lost_pointers(device):
    """No test may read, write or copy what is not allocated, or run what the stand-in lacks."""
    with device.counting() as counts:
        yield
    assert counts["LOST_POINTERS"] == counts["UNKNOWN_KERNELS"] == 0, counts.complaints
    assert not counts.complaints
