"""Returns freed memory of the process to the system."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Makes glibc return free memory to the system; otherwise glibc keeps it.

    Opening a session frees the weights that its optimizers replaced: of an SDXL UNet of 550 million
    parameters 200 MB stayed with glibc, and of a VAE of SDXL's size 150 MB.
    """
    if sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)
