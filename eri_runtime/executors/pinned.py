"""Executors and step graphs that notice when their files change on the disk.

Every component of a bundle is opened through these, whatever the engine. Opening one, or replacing
its weights, reads the files by their names: they must be those of the manifest. An open one reads
weights as pages of its files: they must not be rewritten, before, during and after a run. And the
weights must have the manifest's sha256, which is computed while they are opened. So a result that
is returned comes from the bundle that was loaded, whole, or there is an `IntegrityError`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from numpy.typing import NDArray

from eri_runtime.bundle import Bundle, WeightHashes
from eri_runtime.executors.base import Arrays, Closeable, Executor, changed_tensors
from eri_runtime.executors.heap import trim_heap
from eri_runtime.executors.parted_denoiser import Choose, Float32, PartedDenoiser
from eri_runtime.executors.step_form import Layout
from eri_runtime.executors.step_graph import Array, HeldLatents, Row, StepLoop, Stepper

Opened = TypeVar("Opened", bound=Closeable | None)


@dataclass(frozen=True)
class UsedFiles:
    """The files of a bundle that one component or step graph runs from.

    Attributes:
        bundle: The bundle.
        names: Their names in the manifest; the first is the weights'.
        hashes: Compares the weights with the manifest.
    """

    bundle: Bundle
    names: tuple[str, ...]
    hashes: WeightHashes

    @contextmanager
    def check(self, *, held: bool) -> Iterator[None]:
        """Checks the files before and after the block; `held` as in `Bundle.check_unchanged`.

        If the block raises because a file has changed, that is the error.
        """
        self.bundle.check_unchanged(self.names, held=held)
        try:
            yield
        except Exception:
            self.bundle.check_unchanged(self.names, held=held)
            raise
        self.bundle.check_unchanged(self.names, held=held)

    def open(self, opener: Callable[[], Opened]) -> tuple[Opened, Callable[[], None]]:
        """Opens an engine's component from the files; closes it again if they changed meanwhile.

        Returns it, and what waits until its weights are hashed and raises `IntegrityError` if they
        are damaged: call that before a result is given out.
        """
        with ExitStack() as undo:
            with self.check(held=False):
                state = self.hashes.begin(self.names[0])
                opened = opener()
                if opened is not None:
                    undo.callback(opened.close)
            undo.pop_all()
        trim_heap()
        return opened, partial(self.hashes.check, self.names[0], state)


class PinnedExecutor(Executor):
    """An executor whose files are checked at every use.

    Attributes:
        spec: The component's inputs, outputs and dimension ranges.
        executor: The engine's own executor.
    """

    def __init__(
        self, files: UsedFiles, opener: Callable[[Arrays], Executor], overrides: Arrays
    ) -> None:
        """Opens the executor with `overrides`. Raises `IntegrityError` if a file has changed."""
        self.executor, self._verify = files.open(lambda: opener(overrides))
        self._overrides = overrides
        self.spec = self.executor.spec
        self._files, self._held = files, not self.executor.opens_files_in_run

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        check = partial(self._files.bundle.check_unchanged, self._files.names, held=self._held)
        check()
        try:
            outputs = self.executor.run(inputs)
        finally:  # if a file has changed, that is the error
            check()
        self._verify()
        if self._files.hashes.compares:
            self.executor.keep()
        return outputs

    def prepare(self, sizes: Mapping[str, int]) -> None:
        with self._files.check(held=self._held):
            self.executor.prepare(sizes)

    def replace(self, overrides: Arrays) -> None:
        if changed_tensors(self._overrides, overrides):
            _, self._verify = self._files.open(lambda: self.executor.replace(overrides))
            self._overrides = overrides
        else:
            self.executor.replace(overrides)  # opens no file

    def close(self) -> None:
        self.executor.close()


class PinnedParts(PartedDenoiser):
    """A denoiser in parts whose files are checked at every step."""

    def __init__(
        self, files: UsedFiles, opener: Callable[[Arrays], PartedDenoiser], overrides: Arrays
    ) -> None:
        """Opens the parts with `overrides`. Raises `IntegrityError` if a file has changed."""
        self._parts, self._verify = files.open(lambda: opener(overrides))
        self._files, self._overrides = files, overrides

    def run(self, calls: Sequence[Arrays], choose: Choose) -> list[Float32]:
        with self._files.check(held=True):
            outputs = self._parts.run(calls, choose)
        self._verify()
        return outputs

    def replace(self, overrides: Arrays) -> None:
        if changed_tensors(self._overrides, overrides):
            _, self._verify = self._files.open(lambda: self._parts.replace(overrides))
            self._overrides = overrides

    def close(self) -> None:
        self._parts.close()


class PinnedStepper(Stepper):
    """A step graph whose files are checked at every use.

    Attributes:
        stepper: The engine's own step graph.
        files: The files that it runs from.
        verify: Waits until its weights are hashed; raises `IntegrityError` if they are damaged.
    """

    def __init__(
        self,
        files: UsedFiles,
        stepper: Stepper,
        verify: Callable[[], None],
        overrides: Arrays,
    ) -> None:
        """Wraps a step graph that is open with `overrides`; see `open_pinned_stepper`."""
        self.stepper, self.files, self.verify = stepper, files, verify
        self._overrides = overrides

    def refusal(self, images: int, conditions: Iterable[int]) -> str | None:
        return self.stepper.refusal(images, conditions)

    def loop(self, shape: tuple[int, ...], width: int) -> StepLoop:
        with self.files.check(held=True):
            return PinnedLoop(self, self.stepper.loop(shape, width))

    def replace(self, overrides: Arrays) -> None:
        if changed_tensors(self._overrides, overrides):
            _, self.verify = self.files.open(lambda: self.stepper.replace(overrides))
            self._overrides = overrides
        else:
            self.stepper.replace(overrides)  # opens no file

    def close(self) -> None:
        self.stepper.close()


class PinnedLoop(StepLoop):
    """The loop of a `PinnedStepper`, whose files are checked before and after every row."""

    def __init__(self, stepper: PinnedStepper, loop: StepLoop) -> None:
        self._stepper, self._loop = stepper, loop

    def bind(
        self, key: Hashable, mix: Array, conditions: Arrays, layout: Layout | None = None
    ) -> None:
        self._loop.bind(key, mix, conditions, layout)

    def begin(self, x: Array, remembered: Sequence[Array]) -> HeldLatents:
        return self._loop.begin(x, remembered)

    def run(self, rows: Iterable[Row], state: HeldLatents) -> Iterator[HeldLatents]:
        files = self._stepper.files
        files.bundle.check_unchanged(files.names, held=True)
        states = self._loop.run(rows, state)
        del state  # frees its buffers in the engine once the first row is done
        for after in states:
            files.bundle.check_unchanged(files.names, held=True)
            self._stepper.verify()
            yield after


def open_pinned_stepper(
    files: UsedFiles, opener: Callable[[Arrays], Stepper | None], overrides: Arrays
) -> PinnedStepper | None:
    """Opens a step graph with `overrides`, or returns None if `opener` does.

    Raises `IntegrityError` if a file has changed.
    """
    stepper, verify = files.open(lambda: opener(overrides))
    return None if stepper is None else PinnedStepper(files, stepper, verify, overrides)
