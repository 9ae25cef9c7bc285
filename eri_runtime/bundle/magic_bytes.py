"""Recognises other formats by their first bytes where a safetensors file was expected.

Only the first bytes are read: a pickle is never unpickled, because that can run arbitrary code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from eri_runtime.errors import CheckpointError, DamagedWeightsError, PickleError

LOOKED_AT = 64  # bytes at the start of a file that are compared with the magic bytes


@dataclass(frozen=True)
class OtherFormat:
    """A format other than safetensors.

    Attributes:
        magic: Matches the first bytes of such files.
        what: The format's name in the error message.
        error: The class of the error.
        fix: How to get a safetensors file instead.
    """

    magic: re.Pattern[bytes]
    what: str
    error: type[CheckpointError]
    fix: str


PICKLED_WEIGHTS = "pickled weights, which may run code when they are read"
PICKLE_FIX = "load it where you trust it and save with `safe_serialization=True`"

KINDS = (
    OtherFormat(
        re.compile(rb"PK\x03\x04"), f"a zip archive of {PICKLED_WEIGHTS}", PickleError, PICKLE_FIX
    ),
    OtherFormat(re.compile(rb"\x80[\x02-\x05]"), PICKLED_WEIGHTS, PickleError, PICKLE_FIX),
    OtherFormat(
        re.compile(rb"version https://git-lfs"),
        "a git-lfs pointer instead of the file",
        DamagedWeightsError,
        "fetch the file with `git lfs pull`",
    ),
    OtherFormat(
        re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE),
        "a web page",
        DamagedWeightsError,
        "download the file itself; its address may need a login",
    ),
    OtherFormat(
        re.compile(rb"GGUF"),
        "a GGUF file",
        DamagedWeightsError,
        "use the safetensors file it was made from",
    ),
)


def other_format_error(file: Path, head: bytes) -> CheckpointError | None:
    """Returns the error for a file whose first bytes (`head`) belong to another known format.

    Returns None for any other file.
    """
    for kind in KINDS:
        if kind.magic.match(head):
            return kind.error(file, got=kind.what, expected="safetensors", fix=kind.fix)
    return None
