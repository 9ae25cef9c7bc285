"""Finds and loads the CUDA and cuDNN libraries that ONNX Runtime's CUDA provider needs.

The provider names its libraries without a folder, so the system's loader must know them already.
NVIDIA's wheels put them below a package `nvidia`, which may lie in another folder of `sys.path`
than onnxruntime does. ONNX Runtime's own search looks beside onnxruntime only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path

CUDA = ("libcudart", "libcublasLt", "libcublas")  # versioned with CUDA; each after what it needs
# curand's and cuDNN's versions are their own. cuDNN is loaded by name at the first convolution.
OTHERS = ("libcurand.so.10", "libcudnn.so.9")
OPTIONAL = "libnvrtc"  # cuDNN compiles kernels with it where it has none


@functools.cache
def missing_libraries() -> tuple[str, ...]:
    """Loads the libraries, and returns the loader's message for each that cannot be loaded.

    Searches NVIDIA's wheels first, then where the system's loader and ONNX Runtime look. On other
    systems than Linux ONNX Runtime's search is the only one, and nothing is reported.
    """
    if sys.platform != "linux":
        _onnxruntime_search()
        return ()
    names = needed_libraries()
    _load(f"{OPTIONAL}.so.{_cuda_version()}")
    missing = {name: _load(name) for name in names}
    if any(missing.values()):
        _onnxruntime_search()
        missing = {name: _load(name) for name in names}
    return tuple(filter(None, missing.values()))


def needed_libraries() -> tuple[str, ...]:
    """Returns the names of the libraries that the installed onnxruntime-gpu needs."""
    return (*(f"{name}.so.{_cuda_version()}" for name in CUDA), *OTHERS)


def _cuda_version() -> str:
    """Returns the major version of CUDA that the installed onnxruntime-gpu was built with."""
    import onnxruntime as ort

    return str(getattr(ort, "cuda_version", None) or "13").partition(".")[0]


def wheel_folders() -> Iterator[Path]:
    """Yields the folders of libraries in NVIDIA's wheels, wherever they are installed."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from sorted(Path(root).glob("*/lib"))


def _load(name: str) -> str | None:
    """Loads a library from a wheel, or as the system finds it. Returns the loader's first message.

    A library that is loaded already is found under its name, whatever its folder.
    """
    message = None
    for path in (*(folder / name for folder in wheel_folders() if (folder / name).is_file()), name):
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            message = message or " ".join(str(error).split())
        else:
            return None
    return message


def _onnxruntime_search() -> None:
    """Lets ONNX Runtime look for the libraries. What it prints is left out: `_load` says it."""
    import onnxruntime as ort

    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
