"""Running in little memory: what a request needs, what is left, and how to run in less.

`estimate` predicts the peak in bytes and `available` reads what is left. `guard` refuses a run that
would not fit. `modes` are the ways to run in less memory, `fallbacks` tries them one after the
other, and `manager` does both for a pipeline. `stages` and `request_stages` list the components
that a request runs. Start with `modes`, then `fallbacks`.
"""

from eri_runtime.memory.available import AvailableMemory, available_memory
from eri_runtime.memory.estimate import Estimate, estimate_peak
from eri_runtime.memory.fallbacks import Attempt, RequestSize
from eri_runtime.memory.guard import Guard, sizes_of
from eri_runtime.memory.manager import ON_HOST, MemoryManager
from eri_runtime.memory.modes import DEFAULT_MEMORY, TILE, MemoryEfficientSamplingConfig, Mode
from eri_runtime.memory.out_of_memory import is_exhausted, out_of_memory_error
from eri_runtime.memory.request_stages import request_size

__all__ = [
    "DEFAULT_MEMORY",
    "ON_HOST",
    "TILE",
    "Attempt",
    "AvailableMemory",
    "Estimate",
    "Guard",
    "MemoryEfficientSamplingConfig",
    "MemoryManager",
    "Mode",
    "RequestSize",
    "available_memory",
    "estimate_peak",
    "is_exhausted",
    "out_of_memory_error",
    "request_size",
    "sizes_of",
]
