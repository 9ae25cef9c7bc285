"""Starts the process that reads a pickle, checks what it wrote, and publishes it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eri_export.disk import disk_faults
from eri_runtime import checks
from eri_runtime.bundle import read_header, starts_as_pickle
from eri_runtime.errors import (
    CheckpointError,
    DamagedWeightsError,
    NotACheckpointError,
    PickleError,
    UsageError,
    short,
)
from eri_runtime.files import check_regular
from eri_runtime.partial_files import claim, complete, partial_file
from eri_runtime.unfinished import run_child

READER = "eri_export.pickles.reader"
SUFFIX = ".safetensors"
SHOWN = 8  # names in a message
ASK = "do not load it anywhere; ask its author for safetensors"


@dataclass(frozen=True)
class Converted:
    """A converted file.

    Attributes:
        file: The safetensors file.
        tensors: The number of its tensors.
        nbytes: Its size.
        left_out: Names of the pickle's entries that are no weights, which it does not have.
        network: Why the reading process kept its network; None if it had none.
    """

    file: Path
    tensors: int
    nbytes: int
    left_out: tuple[str, ...]
    network: str | None


def convert(
    source: str | Path, output: str | Path | None = None, *, force: bool = False
) -> Converted:
    """Converts a pickled weights file to safetensors, with the same names, types and values.

    torch's weights-only loader reads the pickle in a process of its own, which has no network where
    the kernel allows that (Linux). It calls nothing that the pickle names.

    Args:
        source: A .ckpt, .pt, .pth or .bin file, as `torch.save` wrote it.
        output: The file to write; default: `source` with the suffix .safetensors.
        force: Replace an existing file.

    Returns:
        What was written, and what was not.

    Raises:
        UsageError: If `output` exists and `force` is not set, or is no .safetensors file.
        NotACheckpointError: If `source` is missing or no file.
        PickleError: If the pickle needs more than weights, such as a function to call.
        DamagedWeightsError: If it cannot be read.
        CheckpointError: If it has no weights, or some of a type that safetensors lacks.
        DiskError: If the disk is full or fails.

    Example:
        With a checkpoint in `./model.ckpt`:

            converted = convert("./model.ckpt")
            print(converted.file, converted.tensors)
    """
    source = checks.path("source", source)
    target = source.with_suffix(SUFFIX) if output is None else checks.path("output", output)
    force = checks.boolean("force", force)
    _check_source(source)
    _check_target(target, force)
    with disk_faults(target.absolute().parent), partial_file(target) as (file, partial):
        answer = _read(source, file.fileno())
        _check_answer(source, answer)
        header = read_header(partial)  # the reader is not trusted: what it wrote is checked
        nbytes = partial.stat().st_size
        if force:
            complete(partial, target)
        else:
            _claim(partial, target)
    left_out = tuple(answer["left_out"])
    return Converted(target, len(header.entries), nbytes, left_out, answer["network"])


def _check_source(source: Path) -> None:
    """Raises the error of a path that is no pickle, as far as its first bytes tell."""
    try:
        check_regular(source)
        with source.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise NotACheckpointError(source, got=got, expected="a pickled weights file") from error
    if head[:1] != b"{" and head[8:9] == b"{":
        fix = "it needs no conversion"
        raise UsageError(source, got="a safetensors file", expected="a pickle", fix=fix)
    if not starts_as_pickle(head):
        raise NotACheckpointError(source, got="no pickle", expected="a file of torch.save")


def _check_target(target: Path, force: bool) -> None:
    """Raises `UsageError` for a target of another kind, or one that exists."""
    if target.suffix != SUFFIX:
        raise UsageError("--output", got=target, expected=f"a name that ends in {SUFFIX}")
    if target.is_dir() or (target.exists() and not force):
        raise _exists(target)


def _exists(target: Path) -> UsageError:
    fix = "add --force to replace it, or give another name with -o"
    if target.is_dir():
        return UsageError(target, got="a folder", expected="a file")
    return UsageError(target, got="a file that exists", expected="a new name", fix=fix)


def _claim(partial: Path, target: Path) -> None:
    """Publishes a file under a free name; raises `UsageError` if it was taken meanwhile."""
    try:
        claim(partial, target)
    except FileExistsError as error:
        raise _exists(target) from error


def _read(source: Path, descriptor: int) -> Mapping[str, Any]:
    """Runs the reader; returns its answer. Raises `DamagedWeightsError` if it died."""
    command = [sys.executable, "-m", READER, str(source.absolute()), str(descriptor)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = run_child(command, pass_fds=[descriptor], **pipes)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if done.returncode or not isinstance(answer, dict):
        lines = done.stderr.strip().splitlines()
        got = f"a reader that ended with status {done.returncode}: {lines[-1] if lines else ''}"
        raise DamagedWeightsError(source, got=short(got), expected="pickled weights")
    return answer


def _check_answer(source: Path, answer: Mapping[str, Any]) -> None:
    """Raises the error that the reader reports, if any."""
    kind, text = answer.get("error"), answer.get("text", "")
    if kind == "OSError":
        raise OSError(answer["errno"], text)
    if named := answer.get("named"):
        got = f"a pickle that calls {', '.join(dict.fromkeys(named))}"
        raise PickleError(source, got=got, expected="weights alone", fix=ASK)
    if kind is not None:
        fix = "copy or download the file again"
        raise DamagedWeightsError(
            source, got=f"{kind}: {short(text)}", expected="pickled weights", fix=fix
        )
    if answer.get("unusual"):
        got = f"tensors that safetensors cannot hold: {', '.join(answer['unusual'][:SHOWN])}"
        raise CheckpointError(source, got=got, expected="dense tensors of a type it has")
    if not answer["tensors"]:
        got = f"no weights, only {', '.join(answer['left_out'][:SHOWN]) or 'nothing'}"
        raise CheckpointError(source, got=got, expected="tensors by name")
