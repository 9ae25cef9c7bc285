"""Why a builder returned no plan, by its error messages, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from eri_runtime.errors import BackendError

Kind = Literal["attention", "workspace", "memory", "lean", "driver", "type", "other"]

# in order: the first pattern found is the cause, as messages of later ones also appear with it
PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("attention", re.compile("not supported by a dedicated kernel")),
    ("workspace", re.compile("within workspace limit")),
    ("memory", re.compile(r"(?i)out ?of ?memory|bad_alloc|FAILED_ALLOCATION|insufficient memory")),
    ("type", re.compile("model contains HW-specific data")),
    ("lean", re.compile("libnvinfer_lean")),
    ("driver", re.compile(r"CUDA_SUCCESS|CUDA driver version is insufficient")),
)
FIXES: dict[Kind, str] = {
    "attention": "report it, naming the checkpoint",
    "workspace": "give the builder more --workspace, or leave the limit out",
    "memory": "export with a smaller --size and --batch, or build on a machine with more memory",
    "type": "export with --precision fp16 for this GPU",
    "lean": "build without --version-compatible, or install the engine's lean runtime",
    "driver": "build --refit and --strip plans on the machine with the GPU: they need its driver",
    "other": "run again with --verbose, and report what it says",
}
SHOWN = 300  # characters of an engine's message to quote


def failure_kind(errors: Iterable[str]) -> Kind:
    """Returns why there is no plan, by the engine's error messages."""
    text = "\n".join(errors)
    return next((kind for kind, pattern in PATTERNS if pattern.search(text)), "other")


def build_error(where: str, errors: list[str]) -> BackendError:
    """Returns the error to raise for a failed build, with the message that names its cause."""
    kind = failure_kind(errors)
    pattern = dict(PATTERNS).get(kind)
    causes = [each for each in errors if pattern is not None and pattern.search(each)] or errors
    got = causes[0][:SHOWN] if causes else "no plan and no reason"
    return BackendError(where, got=got, expected="a plan", fix=FIXES[kind])
