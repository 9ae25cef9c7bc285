"""What every engine offers: one open component, run on NumPy arrays, closed at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import BackendError, NonFiniteError, SizeError
from eri_runtime.spec import Bundle, ComponentSpec

if TYPE_CHECKING:
    from eri_runtime.executors.stepper import Stepper

Arrays = Mapping[str, NDArray]
FROM_FILE: Arrays = MappingProxyType({})  # every weight is the file's


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an engine is opened: its number of threads, all cores if left.

    `low_memory`: weights stay pages of their file, which processes share, at some cost in speed.
    `streamed`: of the denoiser's weights only a part is in memory at a time.
    """

    threads: int | None = None
    low_memory: bool = False
    streamed: bool = False


class Closeable(ABC):
    """A context manager that closes itself at the end."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Weighted(Closeable):
    """What is open with weights that others can take the place of."""

    def replace(self, overrides: Arrays) -> None:
        """Serve with `overrides`, and nothing else, in the place of the weights file's tensors.

        They are by the file's names, in its types and shapes, and must stay as they are; only what
        changes is moved. A call that runs ends with the old ones. Raises `BackendError` where the
        engine refuses; the old ones serve on then, unless it says that it is closed.
        """
        del overrides
        got = "weights that stay as they are"
        raise BackendError(type(self).__name__, got=got, expected="an engine that takes others")


class Executor(Weighted):
    """An open component, which owns the engine's resources."""

    spec: ComponentSpec

    @abstractmethod
    def run(self, inputs: Arrays) -> dict[str, NDArray]:
        """Outputs by name for inputs by name, in the shapes and dtypes of `spec`.

        Raises `SizeError` for inputs that are not.
        """

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Do ahead what the first call would begin with, for inputs whose dimensions have `sizes`.

        It is a guess: a call with others is as fast as without. Most engines have nothing to do.
        """
        del sizes


class Backend(ABC):
    """An engine on one kind of device.

    `maps_weights`: `Settings.low_memory` leaves weights in their files. `in_segments`: weights are
    streamed by running a graph's segments, and not by the engine itself.
    """

    maps_weights = False
    in_segments = True

    def unstreamed(self, spec: ComponentSpec) -> str | None:
        """Why the weights of a component cannot be streamed, in a few words, or None."""
        return None if spec.segments else "a bundle without segments: export it again"

    def of(self, bundle: Bundle) -> Backend:
        """This backend for one bundle: itself, unless it runs files that only the bundle names."""
        del bundle
        return self

    @abstractmethod
    def refusal(self, spec: ComponentSpec) -> str | None:
        """Why this component cannot run here, in a few words, or None."""

    @abstractmethod
    def words(self, settings: Settings) -> str:
        """The engine and the options it is opened with."""

    @abstractmethod
    def executor(
        self, graph: Path, spec: ComponentSpec, settings: Settings, overrides: Arrays = FROM_FILE
    ) -> Executor:
        """Open a component, with `overrides` as of `Weighted.replace`; raises `BackendError`."""

    @abstractmethod
    def stepper(
        self, graph: Path, spec: ComponentSpec, settings: Settings, overrides: Arrays = FROM_FILE
    ) -> Stepper | None:
        """Open the step graph of the denoiser `spec`; None for an engine that runs none."""


def moved(before: Arrays, after: Arrays) -> set[str]:
    """The names of the tensors that are not the same array in both."""
    return {name for name in {**before, **after} if before.get(name) is not after.get(name)}


def check_inputs(name: str, spec: ComponentSpec, inputs: Arrays) -> None:
    """Raise `SizeError` for a missing, unknown, mistyped or misshapen input of component `name`."""
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


def check_finite(where: str, array: NDArray) -> NDArray:
    """`array`, or `NonFiniteError` where it holds NaN or Inf."""
    if not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        fix = "export with --precision fp32, or lower the guidance"
        got = f"NaN or Inf in {bad} of {array.size} values"
        raise NonFiniteError(where, got=got, expected="finite numbers", fix=fix)
    return array
