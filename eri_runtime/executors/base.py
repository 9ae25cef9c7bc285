"""An open component: runs on NumPy arrays, swaps its weights, and is closed at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

from numpy.typing import NDArray

from eri_runtime.bundle import ComponentSpec, TensorSpec
from eri_runtime.errors import BackendError, SizeError

Arrays = Mapping[str, NDArray[Any]]
FROM_FILE: Arrays = MappingProxyType({})
"""No overrides: every weight comes from the weights file."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options an engine is opened with.

    Attributes:
        threads: Number of threads. Default: all cores.
        low_memory: Leave weights as pages of their file, which processes share. Somewhat slower.
        streamed: Keep only a part of the denoiser's weights in memory at a time.
        cache: Keep what the engine compiles in files for later processes, and use such files.
    """

    threads: int | None = None
    low_memory: bool = False
    streamed: bool = False
    cache: bool = True


DEFAULT_SETTINGS = Settings()


class Closeable(ABC):
    """A context manager that closes itself when the block ends."""

    @abstractmethod
    def close(self) -> None:
        """Frees all resources. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Refittable(Closeable):
    """An open graph whose weights can be replaced."""

    def replace(self, overrides: Arrays) -> None:
        """Replaces tensors of the weights file; drops the overrides of earlier calls.

        Only tensors that change are moved. A call that is already running finishes with the old
        weights. If this raises, the old weights stay in use, unless the error says that the engine
        is closed.

        Args:
            overrides: Arrays by tensor name, in the file's dtypes and shapes. They must not be
                modified while in use.

        Raises:
            BackendError: If the engine refuses the tensors or cannot replace weights.
        """
        del overrides
        got = "weights that stay as they are"
        raise BackendError(type(self).__name__, got=got, expected="an engine that takes others")


class Executor(Refittable):
    """An open component, which owns the engine's resources.

    Attributes:
        spec: The component's inputs, outputs and dimension ranges.
        opens_files_in_run: Whether `run` opens files of the bundle by their names.
    """

    spec: ComponentSpec
    opens_files_in_run = False

    @abstractmethod
    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Runs the component once.

        Args:
            inputs: One array per input of `spec`, by name.

        Returns:
            One array per output of `spec`, by name, in its shape and dtype.

        Raises:
            SizeError: If an input is missing, unknown, or of another shape or dtype.
            BackendError: If the engine fails.
        """

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Does the work of the first call ahead of time, such as compiling for its shapes.

        This is a hint: a call with other sizes is as fast as without it. Most engines do nothing.

        Args:
            sizes: Size of each dynamic dimension, by name.
        """
        del sizes

    def keep(self) -> None:
        """Writes what was compiled to a file for later processes. Most engines do nothing.

        For after a run, once the files that the component was opened from are verified.
        """


class InputCheck:
    """`check_inputs` of one open component, which costs little if the last inputs were alike."""

    def __init__(self, name: str, spec: ComponentSpec) -> None:
        self._name, self._spec = name, spec
        self._last: list[tuple[str, Any, tuple[int, ...]]] = []

    def __call__(self, inputs: Arrays) -> None:
        """Raises `SizeError` if an input is missing, unknown or does not fit."""
        found = [(name, array.dtype, array.shape) for name, array in inputs.items()]
        if found != self._last:
            check_inputs(self._name, self._spec, inputs)
            self._last = found


def shape_of(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the shape of a tensor whose dynamic dimensions have these sizes."""
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)


def changed_tensors(before: Arrays, after: Arrays) -> set[str]:
    """Returns the names of tensors that are not the same array object in both mappings."""
    return {name for name in {**before, **after} if before.get(name) is not after.get(name)}


def check_inputs(name: str, spec: ComponentSpec, inputs: Arrays) -> None:
    """Raises `SizeError` if an input of component `name` is missing, unknown or does not fit."""
    expected = {tensor.name: tensor for tensor in spec.inputs}
    if inputs.keys() != expected.keys():
        raise SizeError(f"{name}: inputs", got=sorted(inputs), expected=sorted(expected))
    sizes: dict[str, int] = {}
    for key, tensor in expected.items():
        array, where = inputs[key], f"{name}: {key}"
        if array.dtype != tensor.dtype:
            raise SizeError(where, got=array.dtype, expected=tensor.dtype)
        if array.ndim != len(tensor.shape):
            raise SizeError(where, got=array.shape, expected=tensor.shape)
        for size, dimension in zip(array.shape, tensor.shape, strict=True):
            _check_dimension(where, spec, dimension, size, sizes)


def _check_dimension(
    where: str, spec: ComponentSpec, dimension: int | str, size: int, sizes: dict[str, int]
) -> None:
    """Checks one axis; adds the size of a new named dimension to `sizes`. Raises `SizeError`."""
    if isinstance(dimension, int):
        if size != dimension:
            raise SizeError(where, got=size, expected=dimension)
        return
    if sizes.setdefault(dimension, size) != size:
        raise SizeError(f"{where}: {dimension}", got=size, expected=sizes[dimension])
    allowed = spec.ranges[dimension]
    if size not in allowed:
        expected = f"{allowed.min} to {allowed.max}"
        raise SizeError(f"{where}: {dimension}", got=size, expected=expected)
