"""The exit codes of `eri`: one table, which `--help` shows, the docs repeat and errors obey."""

from __future__ import annotations

from eri_runtime.errors import BundleError, CheckpointError, LoraError, UsageError

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 130

EXIT_CODES = {
    DONE: "all that was asked for is done",
    FAILED: "it failed, or a part of it did: an engine is missing, a subject of a benchmark or a "
    "prompt of a file failed, memory or disk is full",
    WRONG: "what was passed cannot be used: an option, a value, a path, a checkpoint, a bundle, a "
    "LoRA, or a file in the way",
    STOPPED: "stopped with Ctrl-C",
}
"""What each exit code means."""

PASSED = (UsageError, CheckpointError, BundleError, LoraError)  # faults in what was passed


def code_of(error: Exception) -> int:
    """Returns the exit code of an error that ends a command."""
    return WRONG if isinstance(error, PASSED) else FAILED


def describe_codes() -> str:
    """Returns the table as one paragraph, for the end of a command's help."""
    return "Exit codes: " + "; ".join(f"{code}: {text}" for code, text in EXIT_CODES.items()) + "."
