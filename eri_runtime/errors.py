"""The exception tree: every error that eri raises on purpose.

The message names the offender, the value it got, the value it expected and, where there is one,
the fix. The command line exits with status 2 for what it was given (`UsageError`,
`CheckpointError`, `BundleError`, `LoraError`), and with 1 for every other `EriError`.

    EriError
    ├── UsageError               an invalid argument; also a ValueError
    │   ├── SizeError            a height, width, batch or length that the bundle does not support
    │   └── UnknownNameError     an unknown sampler, family, backend or component
    │       └── UnknownAttributeError  a name that pipelines lack; also an AttributeError
    ├── CheckpointError          an unusable checkpoint or weights file; also a ValueError
    │   ├── NotACheckpointError  a missing path, or a file or folder that is not a checkpoint
    │   ├── PickleError          a pickled .ckpt, .pt or .bin file, refused without unpickling it
    │   ├── DamagedWeightsError  truncated, inconsistent or non-finite weights
    │   └── HubError             a missing, private or unreachable Hugging Face Hub repository
    ├── ExportError              tracing, comparing or publishing failed
    │   ├── ParityError          the exported graph disagrees with PyTorch
    │   └── DiskError            the disk is full or fails
    ├── BundleError              an unusable bundle; also a ValueError
    │   ├── NotABundleError      no such folder, or no manifest in it
    │   ├── ManifestError        an invalid manifest
    │   └── IntegrityError       a file that differs from the manifest, or changed after loading
    ├── LoraError                a damaged LoRA, or one that does not fit; also a ValueError
    │   └── UnmatchedKeysError   LoRA keys that match no weight of the model
    ├── BackendError             a missing engine, or one that cannot run the component
    ├── OutOfMemoryError         not enough memory; also a MemoryError
    ├── ServingError             a request that an engine did not finish
    │   ├── OverloadedError      the queue is full
    │   ├── DeadlineError        it took longer than it may
    │   ├── CancelledError       its client gave it up, or an operator
    │   ├── StoppingError        the engine is being shut down
    │   └── WorkerLostError      the workers that ran it died or hung, every time
    ├── BenchmarkError           a failed benchmark
    │   ├── WorkerError          a measured process died, timed out or reported a failure
    │   └── RegressionError      a measurement became slower
    └── NonFiniteError           NaN or Inf in inputs, latents or images
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

SHOWN = 160  # characters of a value that a message repeats
LONGEST = 1200  # characters of each part of a message


def short(value: object) -> str:
    """Returns `repr(value)`, with the middle cut out if it is longer than `SHOWN` characters.

    Returns the type's name for a value that Python cannot print.
    """
    if isinstance(value, str) and len(value) > 2 * SHOWN:
        value = value[:SHOWN] + value[-SHOWN:]  # the middle is cut out anyway
    return cut(_text(value, repr), SHOWN)


def _text(value: object, convert: Callable[[object], str]) -> str:
    """Returns `value` as text, or its type's name if that fails.

    It fails for integers of thousands of digits and for lists that are nested too deep.
    """
    try:
        return convert(value)
    except Exception:
        return f"a value of type {type(value).__name__}"


def cut(text: str, longest: int = LONGEST) -> str:
    """Returns `text`, with the middle cut out if it is longer than `longest` characters."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Returns the one of `names` that is most like `name`, or None if none is like it."""
    from difflib import get_close_matches  # slow to import, and seldom needed

    return next(iter(get_close_matches(name, [*names], 1)), None)


class EriError(Exception):
    """Base class of all errors that eri raises on purpose.

    The message is one sentence: `offender: got …, expected …; fix`. Long values are shortened, so
    that it stays readable whatever was given.

    Args:
        offender: The argument, file or component at fault.
        got: The value or state it had.
        expected: The values or the state it may have.
        fix: A way to solve the problem, if there is an obvious one.

    Attributes:
        offender: The argument, file or component at fault, as text.
        got: The value or state it had, as text.
        expected: The values or the state it may have, as text.
        fix: A way to solve the problem, or None.

    Example:
        >>> try:
        ...     eri.get_linear_schedule(0)
        ... except eri.EriError as error:
        ...     print(error)
        num_steps: got 0, expected an integer, 1 to 1000000
    """

    def __init__(
        self, offender: object, *, got: object, expected: object, fix: str | None = None
    ) -> None:
        parts = (offender, got, expected)
        self.offender, self.got, self.expected = (cut(_text(each, str), LONGEST) for each in parts)
        self.fix = fix
        sentence = f"{self.offender}: got {self.got}, expected {self.expected}"
        super().__init__(f"{sentence}; {fix}" if fix else sentence)

    def __reduce__(self) -> tuple[Any, ...]:
        """Lets errors be pickled, and so pass from one process to another."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[EriError], args: tuple[Any, ...]) -> EriError:
    """Returns an error of this kind with these arguments of `Exception`; see `__reduce__`."""
    error: EriError = Exception.__new__(kind)  # `MemoryError.__new__` refuses its subclasses
    error.args = args
    return error


class UsageError(EriError, ValueError):
    """An invalid argument. The command line exits with status 2."""


class SizeError(UsageError):
    """A height, width, batch size or sequence length that the bundle does not support."""


class UnknownNameError(UsageError):
    """An unknown name, for example of a sampler, family, backend or component."""


class UnknownAttributeError(UnknownNameError, AttributeError):
    """A method or attribute that pipelines do not have, such as one of diffusers' pipelines."""


class CheckpointError(EriError, ValueError):
    """A checkpoint or weights file that cannot be used."""


class NotACheckpointError(CheckpointError):
    """A path that does not exist, or that holds no checkpoint."""


class PickleError(CheckpointError):
    """A pickled file. Unpickling can run arbitrary code, so eri never reads one."""


class DamagedWeightsError(CheckpointError):
    """A weights file that is missing, truncated, inconsistent or not finite."""


class HubError(CheckpointError):
    """A Hugging Face Hub repository that is missing, private or unreachable."""


class ExportError(EriError):
    """An export that failed."""


class ParityError(ExportError):
    """An exported graph whose outputs differ too much from PyTorch's."""


class DiskError(ExportError):
    """A disk that is full, or that fails while a bundle is written."""


class BundleError(EriError, ValueError):
    """A bundle that cannot be used."""


class NotABundleError(BundleError):
    """A path that does not exist, or that holds no bundle."""


class ManifestError(BundleError):
    """A manifest with a missing, unknown or contradictory entry."""


class IntegrityError(BundleError):
    """A bundle file that is missing, differs from the manifest, or changed after it was loaded."""


class LoraError(EriError, ValueError):
    """A LoRA or textual inversion that is damaged, or that does not fit this model."""


class UnmatchedKeysError(LoraError):
    """A LoRA with keys that match no weight of the model.

    Attributes:
        keys: All unmatched keys; the message lists only the first ones.
    """

    keys: tuple[str, ...] = ()


class BackendError(EriError):
    """An engine that is not installed, or that cannot run the component."""


class BenchmarkError(EriError):
    """A benchmark that failed."""


class WorkerError(BenchmarkError):
    """A measured process that died, timed out or reported a failure."""


class RegressionError(BenchmarkError):
    """A measurement that became slower than the baseline allows."""


class NonFiniteError(EriError):
    """NaN or Inf in an input, in latents, in weights or in an image."""


class OutOfMemoryError(EriError, MemoryError):
    """Memory ran out, or an estimate shows that it would run out.

    Attributes:
        component: The component that needs the memory, or None if unknown.
        needed: The bytes that the component needs, or None if unknown.
    """

    component: str | None = None
    needed: int | None = None


class ServingError(EriError):
    """A request that an engine accepted or refused, and did not finish."""


class OverloadedError(ServingError):
    """A request that was refused because the queue is full.

    Attributes:
        retry_after: Seconds after which there should be room, from measured times.
    """

    retry_after: float = 1.0


class DeadlineError(ServingError):
    """A request that took longer than it may."""


class CancelledError(ServingError):
    """A request that was cancelled."""


class StoppingError(ServingError):
    """A request that an engine refused or gave up because it is being shut down."""


class WorkerLostError(ServingError):
    """A request under which worker processes died or hung, as often as it may be begun."""
