"""Reads a GPU's compute capability from the NVIDIA driver, without CUDA's runtime or torch."""

from __future__ import annotations

import ctypes

# CUdevice_attribute in cuda.h
MAJOR, MINOR = 75, 76


def compute_capability(device: int = 0) -> str | None:
    """Returns the compute capability of a GPU, such as `8.9`.

    Args:
        device: The GPU's index.

    Returns:
        Major and minor number, or None if there is no driver or no such GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle = ctypes.c_int()
    numbers = []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device):
        return None
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle):
            return None
        numbers.append(value.value)
    return ".".join(map(str, numbers))
