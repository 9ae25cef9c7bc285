"""The open components of a pipeline, and the tensors that override those of their files."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np

from eri_runtime.bundle import DENOISER, Bundle, TensorFile, read_tensors
from eri_runtime.checks import one_of
from eri_runtime.errors import BackendError, EriError
from eri_runtime.executors import (
    FROM_FILE,
    Arrays,
    Closeable,
    Executor,
    PartedDenoiser,
    Refittable,
    Stepper,
    changed_tensors,
)
from eri_runtime.weights.background_opening import BackgroundOpening
from eri_runtime.weights.read_write_lock import ReadWriteLock
from eri_runtime.weights.tensor_checks import check_tensors, is_immutable, same_bytes

log = logging.getLogger(__name__)

OpenComponent = Callable[[str, Arrays], Executor]
OpenStep = Callable[[Arrays], Stepper | None]
OpenParts = Callable[[Arrays], PartedDenoiser]


def no_parts(_: Arrays) -> PartedDenoiser:
    """Opens no denoiser in parts: raises `BackendError`."""
    expected = "an engine that opens parts of a graph"
    raise BackendError(DENOISER, got="no function that opens it in parts", expected=expected)


class LiveWeights(Closeable):
    """Opens components and the step graph on first use, keeps them open, and swaps their weights.

    Each component has a set of overrides: tensors by the names of its weights file, in the file's
    types and shapes. They outlive `close`.

    Args:
        bundle: The bundle that holds the components.
        open_component: Opens a component by name, with its overrides.
        open_step: Opens the step graph with the denoiser's overrides, or returns None if there is
            none.
        open_parts: Opens the denoiser in parts, with its overrides. Default: raises `BackendError`.

    Attributes:
        one_at_a_time: Whether opening a component closes the others, except those in a `using`
            context.
    """

    one_at_a_time = False

    def __init__(
        self,
        bundle: Bundle,
        open_component: OpenComponent,
        open_step: OpenStep,
        open_parts: OpenParts = no_parts,
    ) -> None:
        self._bundle, self._open, self._open_step = bundle, open_component, open_step
        self._open_parts = open_parts
        self._executors: dict[str, Executor] = {}
        self._stepper: Stepper | None = None
        self._parts: PartedDenoiser | None = None
        self._background = BackgroundOpening()
        self._overrides: dict[str, Arrays] = {}
        self._files: dict[str, TensorFile] = {}
        self._swaps: Counter[str] = Counter()
        self._users: Counter[str] = Counter()
        self._lock = ReadWriteLock()
        self._opening = threading.RLock()  # so that two threads never open a component twice

    def executor(self, name: str) -> Executor:
        """Returns a component, which is opened if necessary."""
        with self._opening:
            self._collect(name)
            if name not in self._executors:
                self._make_room(name)
                self._executors[name] = self._open(name, self.overrides(name))
            return self._executors[name]

    def stepper(self) -> Stepper | None:
        """Returns the step graph, which is opened if necessary, or None if there is none."""
        with self._opening:
            self._collect(DENOISER)
            if self._stepper is None:
                self._make_room(DENOISER)
                self._stepper = self._open_step(self.overrides(DENOISER))
            return self._stepper

    def parts(self) -> PartedDenoiser:
        """Returns the denoiser in parts, which is opened if necessary."""
        with self._opening:
            self._collect(DENOISER)
            if self._parts is None:
                self._make_room(DENOISER)
                self._parts = self._open_parts(self.overrides(DENOISER))
            return self._parts

    def open_ahead(
        self, name: str, sizes: Mapping[str, int], *, stepping: bool, parted: bool = False
    ) -> None:
        """Starts to open a component in a background thread.

        Does nothing while components are open one at a time.

        Args:
            name: The component; nothing happens if it `is_open_or_opening`.
            sizes: The sizes of the inputs' dimensions to prepare the component for.
            stepping: Whether to open the step graph instead of the denoiser, if there is one.
            parted: Whether to open the denoiser in parts instead.
        """
        if self.one_at_a_time:
            return
        overrides, stepping = self.overrides(name), stepping and name == DENOISER
        open_component, open_step = self._open, self._open_step  # the thread must not hold `self`
        open_parts = self._open_parts if parted and name == DENOISER else None

        def open_in_background() -> Refittable:
            if open_parts is not None:
                return open_parts(overrides)
            stepper = open_step(overrides) if stepping else None
            if stepper is not None:
                return stepper
            with ExitStack() as undo:
                executor = undo.enter_context(open_component(name, overrides))
                executor.prepare(sizes)
                undo.pop_all()
            return executor

        with self._opening:
            if not self.is_open_or_opening(name):
                self._background.begin(name, open_in_background)

    def _collect(self, *names: str) -> None:
        """Waits for components that were opened ahead, and takes them over."""
        with self._opening:
            for name in names:
                opened = self._background.take(name)
                if isinstance(opened, Stepper):
                    self._stepper = opened
                elif isinstance(opened, PartedDenoiser):
                    self._parts = opened
                elif isinstance(opened, Executor):
                    self._executors[name] = opened

    def is_open(self, component: str) -> bool:
        """Returns whether an engine holds a component's weights; waits if it is being opened."""
        self._collect(component)
        return self._is_held(component)

    def is_open_or_opening(self, component: str) -> bool:
        """Returns whether a component is open or being opened, without waiting."""
        return component in self._background.names or self._is_held(component)

    def _is_held(self, component: str) -> bool:
        """Returns whether an engine holds the component, its step graph or its parts."""
        return bool(self._opened(component))

    def _opened(self, component: str) -> list[Refittable]:
        """Returns the forms in which a component is open: as a whole, as step graph, in parts."""
        forms = (self._stepper, self._parts) if component == DENOISER else ()
        either = (self._executors.get(component), *forms)
        return [each for each in either if each is not None]

    @contextmanager
    def using(self, component: str) -> Iterator[None]:
        """Returns a context in which `close_idle` does not close the component."""
        with self._opening:
            self._users[component] += 1
        try:
            yield
        finally:
            with self._opening:
                self._users[component] -= 1

    def open_with(
        self,
        open_component: OpenComponent,
        open_step: OpenStep,
        open_parts: OpenParts = no_parts,
    ) -> None:
        """Closes everything, and opens with these functions from now on."""
        with self._lock.write():
            self.close()
            self._open, self._open_step = open_component, open_step
            self._open_parts = open_parts

    def close_idle(self, but: str = "") -> None:
        """Closes every component except `but` and those in a `using` context."""
        with self._opening:
            self._collect(*self._background.names)
            for name in list(self._executors):
                if name != but and not self._users[name]:
                    self._executors.pop(name).close()
            if but != DENOISER and not self._users[DENOISER]:
                for form in filter(None, (self._stepper, self._parts)):
                    form.close()
                self._stepper = self._parts = None

    def _make_room(self, name: str) -> None:
        """Closes the other components if they are open one at a time."""
        if self.one_at_a_time:
            self.close_idle(but=name)

    def stored(self, component: str) -> TensorFile:
        """Returns the tensors of a component's weights file.

        Raises:
            UnknownNameError: If the bundle has no such component.
            IntegrityError: If the file was replaced or rewritten after the bundle was loaded.
        """
        components = self._bundle.components
        one_of("component", component, components)
        weights = components[component].weights
        if component in self._files:
            self._bundle.check_unchanged([weights], held=True)
        else:
            self._files[component] = read_tensors(self._bundle.pinned_path(weights))
        return self._files[component]

    def overrides(self, component: str) -> Arrays:
        """Returns the tensors that override those of a component's file, by name."""
        return self._overrides.get(component, FROM_FILE)

    def swaps(self, component: str) -> int:
        """Returns how often a component's weights have changed.

        A result computed with the component is stale if this number differs from then.
        """
        return self._swaps[component]

    def generating(self) -> AbstractContextManager[None]:
        """Returns a context in which no other thread changes weights."""
        return self._lock.read()

    def changing(self) -> AbstractContextManager[None]:
        """Returns a context in which this thread may change weights and no other generates."""
        return self._lock.write()

    @property
    def generates_here(self) -> bool:
        """Whether this thread is generating."""
        return self._lock.reads_here()

    def alone(self) -> AbstractContextManager[bool]:
        """Returns a context in which no other thread generates, if none does; says whether so."""
        return self._lock.try_write()

    def set(self, component: str, overrides: Arrays) -> None:
        """Sets the overrides of one component; see `set_all`."""
        self.set_all({component: overrides})

    def set_all(self, overrides: Mapping[str, Arrays]) -> None:
        """Replaces all overrides of the given components; other components keep theirs.

        Waits until other threads have finished their images. Writeable arrays are copied. Only
        tensors whose bytes change are sent to the engine. A component that is not open is opened,
        so that the engine's errors occur here. If an error is raised, nothing has changed.

        Args:
            overrides: The tensors by component and name, in the file's types and shapes.

        Raises:
            UsageError: If a component has no such tensor, or not in this type and shape.
            BackendError: If an engine cannot take the weights.
            IntegrityError: If a file was replaced or rewritten after the bundle was loaded.
        """
        for component, tensors in overrides.items():
            check_tensors(component, tensors, self.stored(component))
        with self._lock.write(), ExitStack() as undo:
            self._collect(*self._background.names)
            new = {name: self._minimal(name, tensors) for name, tensors in overrides.items()}
            changed = {name: new[name] for name in new if self._differs(name, new[name])}
            for component, tensors in changed.items():
                self._apply(component, tensors, undo)
            self._overrides.update(changed)
            self._swaps.update(changed.keys())
            undo.pop_all()

    def close(self) -> None:
        """Closes everything; components reopen with the same weights when next needed.

        Waits until other threads have finished their images.

        Raises:
            UsageError: If this thread is generating while another one is.
        """
        with self._lock.write("close"), ExitStack() as closing:
            self._collect(*self._background.names)
            for opened in (*self._executors.values(), self._stepper, self._parts):
                if opened is not None:
                    closing.callback(opened.close)
            self._executors.clear()
            self._stepper = self._parts = None

    def _differs(self, component: str, tensors: Arrays) -> bool:
        """Returns whether `tensors` are not the arrays that already override the component."""
        return bool(changed_tensors(self.overrides(component), tensors))

    def _minimal(self, component: str, tensors: Arrays) -> Arrays:
        """Drops tensors equal to the file's, reuses equal overrides, and copies writeable ones."""
        before, stored, minimal = self.overrides(component), self.stored(component), {}
        for name, values in tensors.items():
            if name in before and same_bytes(values, before[name]):
                minimal[name] = before[name]
            elif not same_bytes(values, stored[name]):
                minimal[name] = values if is_immutable(values) else np.array(values, order="C")
        return minimal

    def _apply(self, component: str, overrides: Arrays, undo: ExitStack) -> None:
        """Sends a component's overrides to all its open forms; opens it if necessary."""
        before, opened = self.overrides(component), self._opened(component)
        for each in opened:
            undo.callback(self._restore, each, before)
            each.replace(overrides)
        if not opened and overrides:
            self._open_now(component, overrides, undo)

    def _open_now(self, component: str, overrides: Arrays, undo: ExitStack) -> None:
        """Opens a component, so that an engine that cannot take new weights raises now."""
        if component == DENOISER:
            self._stepper = self._open_step(overrides)
            if self._stepper is not None:
                undo.callback(self._forget, self._stepper)
                return
        self._executors[component] = self._open(component, overrides)
        undo.callback(self._forget, self._executors[component])

    def _restore(self, opened: Refittable, overrides: Arrays) -> None:
        """Puts the previous weights back; closes the component if the engine refuses them."""
        try:
            opened.replace(overrides)
        except EriError as error:
            log.warning("opened anew, as the old weights could not be put back: %s", error)
            self._forget(opened)

    def _forget(self, opened: Refittable) -> None:
        """Closes an executor or step graph, which is opened again when next needed."""
        self._executors = {k: v for k, v in self._executors.items() if v is not opened}
        self._stepper = None if self._stepper is opened else self._stepper
        self._parts = None if self._parts is opened else self._parts
        opened.close()


def encoder_state(bundle: Bundle, live: LiveWeights) -> Hashable | None:
    """Returns what identifies the text encoders' weights, or None if they are the bundle's own."""
    encoders = [name for name in bundle.components if name.startswith("text_encoder")]
    changed = any(live.overrides(name) for name in encoders)
    return tuple(live.swaps(name) for name in encoders) if changed else None
