"""What stands in place of a safetensors file, told by its first bytes, and how to get the real one.

A pickle may run code when it is read, so none is: its first bytes are all that is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from eri_runtime.errors import CheckpointError, DamagedWeightsError, PickleError

LOOKED_AT = 64  # bytes


@dataclass(frozen=True)
class Kind:
    """Files that begin with `magic`: what they are, their error, and the way out."""

    magic: re.Pattern[bytes]
    what: str
    error: type[CheckpointError]
    fix: str


PICKLED = "pickled weights, which may run code when they are read"
SAVE = "load it where you trust it and save with `safe_serialization=True`"

KINDS = (
    Kind(re.compile(rb"PK\x03\x04"), f"a zip archive of {PICKLED}", PickleError, SAVE),
    Kind(re.compile(rb"\x80[\x02-\x05]"), PICKLED, PickleError, SAVE),
    Kind(
        re.compile(rb"version https://git-lfs"),
        "a git-lfs pointer in place of the file",
        DamagedWeightsError,
        "fetch the file with `git lfs pull`",
    ),
    Kind(
        re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE),
        "a web page",
        DamagedWeightsError,
        "download the file itself; its address may need a login",
    ),
    Kind(
        re.compile(rb"GGUF"),
        "a GGUF file",
        DamagedWeightsError,
        "use the safetensors file it was made from",
    ),
)


def foreign_error(file: Path, head: bytes) -> CheckpointError | None:
    """The error for a file whose first bytes are those of something else, or None."""
    for kind in KINDS:
        if kind.magic.match(head):
            return kind.error(file, got=kind.what, expected="safetensors", fix=kind.fix)
    return None
