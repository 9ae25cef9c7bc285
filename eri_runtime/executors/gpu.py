"""What the NVIDIA driver says of this machine's GPU, asked without CUDA's runtime or torch."""

from __future__ import annotations

import ctypes

# CUdevice_attribute in cuda.h
MAJOR, MINOR = 75, 76


def compute_capability(device: int = 0) -> str | None:
    """As `8.9`; None where there is no driver or no such GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    found = ctypes.c_int()
    numbers = []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(found), device):
        return None
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, found):
            return None
        numbers.append(value.value)
    return ".".join(map(str, numbers))
