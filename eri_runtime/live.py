"""The open components of a pipeline, and the weights that stand in the place of their files'."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import EriError, UnknownNameError, UsageError
from eri_runtime.executors.base import FROM_FILE, Arrays, Closeable, Executor, Weighted, moved
from eri_runtime.executors.stepper import Stepper
from eri_runtime.opening import Opening
from eri_runtime.spec import Bundle
from eri_runtime.tensors import TensorFile, read_tensors
from eri_runtime.turns import Turns

DENOISER = "denoiser"
PIECE = 1 << 20  # bytes that are compared at once: most weights that differ do so in the first
NAMED = 20  # tensors that a message names

log = logging.getLogger(__name__)


OpenComponent = Callable[[str, Arrays], Executor]
OpenStep = Callable[[Arrays], Stepper | None]


class LiveWeights(Closeable):
    """Components and step graph, each opened when first needed, kept, and served with weights.

    Each component has a set of `overrides`: tensors by the names of its weights file, in the file's
    types and shapes. They outlive `close`. While `one_at_a_time`, opening a component closes the
    others, but for those that a loop is `using`.
    """

    one_at_a_time = False

    def __init__(self, bundle: Bundle, open_component: OpenComponent, open_step: OpenStep) -> None:
        self._bundle, self._open, self._open_step = bundle, open_component, open_step
        self._executors: dict[str, Executor] = {}
        self._stepper: Stepper | None = None
        self._opening = Opening()
        self._overrides: dict[str, Arrays] = {}
        self._files: dict[str, TensorFile] = {}
        self._swaps: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._turns = Turns()

    def executor(self, name: str) -> Executor:
        """A component."""
        self._take(name)
        if name not in self._executors:
            self._make_room(name)
            self._executors[name] = self._open(name, self.overrides(name))
        return self._executors[name]

    def stepper(self) -> Stepper | None:
        """The step graph, or None where there is none."""
        self._take(DENOISER)
        if self._stepper is None:
            self._make_room(DENOISER)
            self._stepper = self._open_step(self.overrides(DENOISER))
        return self._stepper

    def open_ahead(self, name: str, sizes: Mapping[str, int], *, stepping: bool) -> None:
        """Begin to open a component in another thread, and make it ready for inputs of `sizes`.

        It is not `at_hand`. Of the denoiser the step graph is opened, where there is one and
        `stepping`. Nothing is done while one is open at a time.
        """
        if self.one_at_a_time:
            return
        overrides, stepping = self.overrides(name), stepping and name == DENOISER

        def opened() -> Weighted:
            stepper = self._open_step(overrides) if stepping else None
            if stepper is not None:
                return stepper
            with ExitStack() as undo:
                executor = undo.enter_context(self._open(name, overrides))
                executor.prepare(sizes)
                undo.pop_all()
            return executor

        self._opening.begin(name, opened)

    def _take(self, *names: str) -> None:
        """Have what was opened ahead; it is waited for."""
        for name in names:
            opened = self._opening.take(name)
            if isinstance(opened, Stepper):
                self._stepper = opened
            elif isinstance(opened, Executor):
                self._executors[name] = opened

    def is_open(self, component: str) -> bool:
        """Whether a component's weights are held by an engine; one that opens is waited for."""
        self._take(component)
        return self._held(component)

    def at_hand(self, component: str) -> bool:
        """Whether a component is open or being opened; nothing is waited for."""
        return component in self._opening.names or self._held(component)

    def _held(self, component: str) -> bool:
        stepping = component == DENOISER and self._stepper is not None
        return stepping or component in self._executors

    @contextmanager
    def using(self, component: str) -> Iterator[None]:
        """A context in which nobody closes a component for want of room."""
        self._used[component] += 1
        try:
            yield
        finally:
            self._used[component] -= 1

    def open_with(self, open_component: OpenComponent, open_step: OpenStep) -> None:
        """Close all, and open with these from now on."""
        self.close()
        self._open, self._open_step = open_component, open_step

    def close_idle(self, but: str = "") -> None:
        """Close every component that is neither named nor in use."""
        self._take(*self._opening.names)
        for name in list(self._executors):
            if name != but and not self._used[name]:
                self._executors.pop(name).close()
        if self._stepper is not None and but != DENOISER and not self._used[DENOISER]:
            self._stepper.close()
            self._stepper = None

    def _make_room(self, name: str) -> None:
        if self.one_at_a_time:
            self.close_idle(but=name)

    def stored(self, component: str) -> TensorFile:
        """The tensors of a component's weights file; `UnknownNameError` for none of the bundle."""
        components = self._bundle.components
        if component not in components:
            expected = f"one of {', '.join(components)}"
            raise UnknownNameError("component", got=repr(component), expected=expected)
        if component not in self._files:
            weights = self._bundle.path(components[component].weights)
            self._files[component] = read_tensors(weights)
        return self._files[component]

    def overrides(self, component: str) -> Arrays:
        """What stands in the place of a component's tensors, by name."""
        return self._overrides.get(component, FROM_FILE)

    def swaps(self, component: str) -> int:
        """How often weights of a component changed: what was made with it may be stale after."""
        return self._swaps[component]

    def generating(self) -> Any:
        """A context in which no other thread changes weights."""
        return self._turns.shared()

    @property
    def is_shared(self) -> bool:
        """Whether another thread generates."""
        return self._turns.others()

    def set(self, component: str, overrides: Arrays) -> None:
        """`set_all` of one component."""
        self.set_all({component: overrides})

    def set_all(self, overrides: Mapping[str, Arrays]) -> None:
        """Let these be all that stands in the place of the files' tensors, by component and name.

        Components that are not named keep theirs. Arrays that can be written to are copied; those
        that have the bytes of what serves already are left out, and nothing else is moved. A
        component that is not open is opened, so that whatever is refused is refused here. Waits for
        images under way in other threads. Raises `UsageError` for a tensor that the component has
        not, or not in this type and shape, and `BackendError` where an engine refuses; nothing has
        changed then.
        """
        for component, tensors in overrides.items():
            check_fits(component, tensors, self.stored(component))
        with self._turns.alone(), ExitStack() as undo:
            self._take(*self._opening.names)
            new = {name: self._kept(name, each) for name, each in overrides.items()}
            changed = {name: each for name, each in new.items() if self._differs(name, each)}
            for component, tensors in changed.items():
                self._serve(component, tensors, undo)
            self._overrides.update(changed)
            self._swaps.update(changed.keys())
            undo.pop_all()

    def close(self) -> None:
        """Close all that is open; it is opened anew, with the same weights, when next needed."""
        self._take(*self._opening.names)
        with ExitStack() as closing:
            for each in (*self._executors.values(), self._stepper):
                if each is not None:
                    closing.callback(each.close)
            self._executors.clear()
            self._stepper = None

    def _differs(self, component: str, tensors: Arrays) -> bool:
        return bool(moved(self.overrides(component), tensors))

    def _kept(self, component: str, tensors: Arrays) -> Arrays:
        """Copies of what is neither the file's nor serves already, and of that itself."""
        before, stored, kept = self.overrides(component), self.stored(component), {}
        for name, values in tensors.items():
            if name in before and same_bytes(values, before[name]):
                kept[name] = before[name]
            elif not same_bytes(values, stored[name]):
                kept[name] = values if is_constant(values) else np.array(values, order="C")
        return kept

    def _serve(self, component: str, overrides: Arrays, undo: ExitStack) -> None:
        """Give a component's weights to all that is open of it."""
        before = self.overrides(component)
        stepper = self._stepper if component == DENOISER else None
        either = (self._executors.get(component), stepper)
        opened = [each for each in either if each is not None]
        for each in opened:
            undo.callback(self._restore, each, before)
            each.replace(overrides)
        if not opened and overrides:
            self._open_with(component, overrides, undo)

    def _open_with(self, component: str, overrides: Arrays, undo: ExitStack) -> None:
        """Open what runs a component, so that an engine which takes no weights says so now."""
        if component == DENOISER:
            self._stepper = self._open_step(overrides)
            if self._stepper is not None:
                undo.callback(self._forget, self._stepper)
                return
        self._executors[component] = self._open(component, overrides)
        undo.callback(self._forget, self._executors[component])

    def _restore(self, opened: Weighted, overrides: Arrays) -> None:
        """Back to the weights it had, if need be by opening it anew."""
        try:
            opened.replace(overrides)
        except EriError as error:
            log.warning("opened anew, as the old weights could not be put back: %s", error)
            self._forget(opened)

    def _forget(self, opened: Weighted) -> None:
        self._executors = {k: v for k, v in self._executors.items() if v is not opened}
        self._stepper = None if self._stepper is opened else self._stepper
        opened.close()


def check_fits(component: str, tensors: Arrays, stored: TensorFile) -> None:
    """Raise `UsageError` for a tensor that a file has not, or not in this type and shape."""
    check_names(component, tensors, stored)
    for name, values in tensors.items():
        wanted = stored[name]
        if (values.dtype, values.shape) != (wanted.dtype, wanted.shape):
            got, expected = _described(values), _described(wanted)
            raise UsageError(f"{component}: {name}", got=got, expected=expected)


def check_names(component: str, tensors: Mapping[str, object], stored: TensorFile) -> None:
    """Raise `UnknownNameError` that lists the names which a file has not."""
    unknown = [name for name in tensors if name not in stored]
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        got = f"{len(unknown)} unknown: {', '.join(map(str, unknown[:NAMED]))}{more}"
        first = ", ".join(list(stored)[:2])
        expected = f"names of its weights file, such as {first}"
        raise UnknownNameError(f"weights of {component}", got=got, expected=expected)


def same_bytes(one: NDArray, other: NDArray) -> bool:
    """Whether two arrays of one type and shape hold the same bits, NaN and −0 told apart."""
    if one is other:
        return True
    first, second = (np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in (one, other))
    return all(
        np.array_equal(first[i : i + PIECE], second[i : i + PIECE])
        for i in range(0, len(first), PIECE)
    )


def is_constant(values: NDArray) -> bool:
    """Whether nobody can write to an array: it owns its memory, and neither it nor a view may."""
    return values.flags.c_contiguous and values.flags.owndata and not values.flags.writeable


def _described(values: NDArray) -> str:
    return f"{values.dtype} {values.shape}"
