"""Recognises other formats by their first bytes where a safetensors file was expected.

Only the first bytes are read: a pickle is never unpickled, because that can run arbitrary code.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from eri_runtime.errors import (
    CheckpointError,
    DamagedWeightsError,
    NotACheckpointError,
    PickleError,
)

LOOKED_AT = 64  # bytes at the start of a file that are compared with the magic bytes


@dataclass(frozen=True)
class OtherFormat:
    """A format other than safetensors.

    Attributes:
        magic: Matches the first bytes of such files.
        what: The format's name in the error message.
        error: The class of the error.
        fix: How to get a safetensors file instead. `{convert}` stands for the command for that.
    """

    magic: re.Pattern[bytes]
    what: str
    error: type[CheckpointError]
    fix: str


PICKLED_WEIGHTS = "pickled weights, which may run code when they are read"
CONVERT = "convert it with {convert}"

KINDS = (
    OtherFormat(
        re.compile(rb"PK\x03\x04"), f"a zip archive of {PICKLED_WEIGHTS}", PickleError, CONVERT
    ),
    OtherFormat(re.compile(rb"\x80[\x02-\x05]"), PICKLED_WEIGHTS, PickleError, CONVERT),
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
    OtherFormat(
        re.compile(rb"[\t\n\r -~]{8}"),  # as the length of a header: more than any file has
        "a text file, which is not a safetensors file",
        NotACheckpointError,
        "name the file of the weights",
    ),
)


def other_format_error(file: Path, head: bytes) -> CheckpointError | None:
    """Returns the error for a file whose first bytes (`head`) belong to another known format.

    Returns None for any other file.
    """
    for kind in KINDS:
        if kind.magic.match(head):
            fix = kind.fix.replace("{convert}", convert_command(file))
            return kind.error(file, got=kind.what, expected="safetensors", fix=fix)
    return None


def starts_as_pickle(head: bytes) -> bool:
    """Returns whether the first bytes of a file are those of pickled weights."""
    return any(kind.error is PickleError and kind.magic.match(head) for kind in KINDS)


def convert_command(file: str | Path) -> str:
    """Returns the command that converts a pickled file, in backquotes."""
    source = Path(file)
    names = shlex.join([str(source), "-o", str(source.with_suffix(".safetensors"))])
    return f"`eri convert {names}`"


def pickle_error(file: object, name: str | Path) -> PickleError:
    """Returns the error for a file that is pickled by its name; reads nothing.

    `file` is how the caller names it, and `name` its path here, or once it is downloaded.
    """
    fix = CONVERT.replace("{convert}", convert_command(name))
    if not Path(name).exists():
        fix = f"download it, then {fix}"
    return PickleError(file, got=PICKLED_WEIGHTS, expected="safetensors", fix=fix)
