"""The stand-in for CUDA from Python: its libraries loaded, and what they counted."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# in the order of what each needs
LIBRARIES = (
    "libcudart.so.13",
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcurand.so.10",
    "libcudnn.so.9",
    "libcuda.so.1",
)
NONE_OF_THAT_NAME = -(2**63)
TEXT = 4096  # bytes of a kernel's name, at most


@dataclass
class Counts:
    """What was counted within a `with` block; read it after the block.

    Attributes:
        counted: Counts by their names in `device.h`.
        kernels: How often each kernel ran, by its name in C++.
        complaints: What went wrong, and how often.
    """

    counted: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    complaints: Counter[str] = field(default_factory=Counter)

    def __getitem__(self, name: str) -> int:
        return self.counted[name]


class Device:
    """The stand-in device of this process.

    Its libraries have the names that ONNX Runtime's CUDA provider is linked with, so they must be
    loaded before that provider is.
    """

    NAMES = (
        "ALLOCATIONS",
        "FREES",
        "KERNELS",
        "GRAPH_KERNELS",
        "UNKNOWN_KERNELS",
        "LOST_POINTERS",
        "COPIES",
        "BYTES_TO_DEVICE",
        "BYTES_TO_HOST",
        "BYTES_ON_DEVICE",
        "CAPTURES",
        "REPLAYS",
        "FORBIDDEN_IN_CAPTURE",
    )

    def __init__(self, folder: Path) -> None:
        """Loads the libraries in `folder`; raises `FileNotFoundError` if one is missing."""
        missing = [name for name in LIBRARIES if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(f"{folder}: got no {missing[0]}: make test-cuda-stand-in")
        self._libraries = [ctypes.CDLL(str(folder / name)) for name in LIBRARIES]
        self._runtime = self._libraries[0]
        for name in ("stand_in_count", "stand_in_kernel", "stand_in_complaint"):
            getattr(self._runtime, name).restype = ctypes.c_long

    def count(self, name: str) -> int:
        """Returns a count since the process began. Raises `KeyError` for an unknown name."""
        number: int = self._runtime.stand_in_count(name.encode())
        if number == NONE_OF_THAT_NAME:
            raise KeyError(name)
        return number

    @property
    def memory_by_tensor(self) -> dict[str, str]:
        """The provider's options for memory that is zero when a tensor begins (`tensors.c`)."""

        def address(name: str) -> str:
            return str(ctypes.cast(getattr(self._runtime, name), ctypes.c_void_p).value)

        return {
            "gpu_external_alloc": address("stand_in_begin_tensor"),
            "gpu_external_free": address("stand_in_end_tensor"),
        }

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Yields counts that are filled in when the block ends."""
        found, before = Counts(), self._counts()
        yield found
        after = self._counts()
        for name in ("counted", "kernels", "complaints"):
            difference = getattr(found, name)
            difference.update(getattr(after, name))
            difference.subtract(getattr(before, name))
            for key in [key for key, number in difference.items() if not number]:
                del difference[key]

    def _counts(self) -> Counts:
        return Counts(
            Counter({name: self.count(name) for name in self.NAMES}),
            self._texts(self._runtime.stand_in_kernel),
            self._texts(self._runtime.stand_in_complaint),
        )

    def _texts(self, function: Callable[..., int]) -> Counter[str]:
        found: Counter[str] = Counter()
        text = ctypes.create_string_buffer(TEXT)
        index = 0
        while (times := function(ctypes.c_size_t(index), text, ctypes.c_size_t(TEXT))) >= 0:
            found[text.value.decode()] += times
            index += 1
        return found
