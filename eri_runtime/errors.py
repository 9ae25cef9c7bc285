"""Every error this project raises on purpose.

EriError                     exit status 1 on the command line
├── UsageError               the caller's argument; exit status 2; also a ValueError
│   ├── SizeError            a height, width, batch or length outside what the bundle holds
│   └── UnknownNameError     a sampler, family, backend or component that does not exist
├── CheckpointError          a checkpoint or a file of weights; also a ValueError
│   ├── NotACheckpointError  a path that is missing, or a file or folder that is none
│   ├── PickleError          a .ckpt, .pt or .bin: refused unread
│   ├── DamagedWeightsError  truncated, overlapping or non-finite weights
│   └── HubError             a Hub repository that is missing, closed or out of reach
├── ExportError              tracing, comparing or publishing went wrong
│   ├── ParityError          the exported graph does not agree with PyTorch
│   └── DiskError            a disk that is full, or fails
├── BundleError              what `eri.load` was pointed at; also a ValueError
│   ├── NotABundleError      no folder, or no manifest in it
│   ├── ManifestError        a manifest that does not say what it must
│   └── IntegrityError       a file whose size or sha256 is not the manifest's
├── LoraError                a LoRA that is damaged, or does not fit; also a ValueError
│   └── UnmatchedKeysError   keys of a LoRA that no weight of the model answers to
├── BackendError             an engine that is missing or cannot run this component
├── OutOfMemoryError         memory that has ended, or would; also a MemoryError
├── BenchmarkError           a benchmark that found what must not be
│   ├── WorkerError          a process that is measured ended, was silent, or said that it failed
│   └── RegressionError      something became slower
└── NonFiniteError           NaN or Inf where numbers must be; never a black picture
"""

from __future__ import annotations

SHOWN = 160  # characters of what was found that a message repeats


def short(value: object) -> str:
    """The `repr` of what a file or a caller gave, cut where it would fill the screen."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"


class EriError(Exception):
    """One sentence: the offender, what was found, what was expected, the way out."""

    def __init__(
        self, offender: object, *, got: object, expected: object, fix: str | None = None
    ) -> None:
        self.offender = str(offender)
        self.got = str(got)
        self.expected = str(expected)
        self.fix = fix
        sentence = f"{self.offender}: got {self.got}, expected {self.expected}"
        super().__init__(f"{sentence}; {fix}" if fix else sentence)


class UsageError(EriError, ValueError):
    """A bad argument."""


class SizeError(UsageError):
    """A size the bundle does not hold."""


class UnknownNameError(UsageError):
    """A name that is none of the known ones."""


class CheckpointError(EriError, ValueError):
    """A checkpoint that cannot be exported."""


class NotACheckpointError(CheckpointError):
    """A path that holds no checkpoint."""


class PickleError(CheckpointError):
    """A pickle, which may run code when it is read."""


class DamagedWeightsError(CheckpointError):
    """A weights file that is truncated, inconsistent or not finite."""


class HubError(CheckpointError):
    """A repository of the Hugging Face Hub that cannot be had."""


class ExportError(EriError):
    """An export that did not finish."""


class ParityError(ExportError):
    """A graph whose outputs are not PyTorch's."""


class DiskError(ExportError):
    """A disk that has no room for a bundle, or fails while one is written."""


class BundleError(EriError, ValueError):
    """A bundle that cannot be used."""


class NotABundleError(BundleError):
    """A path that holds no bundle."""


class ManifestError(BundleError):
    """A manifest with a missing, unknown or contradictory entry."""


class IntegrityError(BundleError):
    """A bundle file that is not the one that was published."""


class LoraError(EriError, ValueError):
    """A LoRA that cannot be applied to this model."""


class UnmatchedKeysError(LoraError):
    """Keys of a LoRA that match no weight; all of them are in `keys`."""

    keys: tuple[str, ...] = ()


class BackendError(EriError):
    """An engine that is not installed, or cannot run what it was given."""


class BenchmarkError(EriError):
    """A benchmark that found what must not be."""


class WorkerError(BenchmarkError):
    """A process that is measured ended, was silent for too long, or said that it failed."""


class RegressionError(BenchmarkError):
    """Something became slower by more than it may."""


class NonFiniteError(EriError):
    """NaN or Inf in latents or in an image."""


class OutOfMemoryError(EriError, MemoryError):
    """Memory that has ended, or would have: `needed` is the bytes a `component` takes, if known."""

    component: str | None = None
    needed: int | None = None
