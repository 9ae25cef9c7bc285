"""How an export is compared with PyTorch before it is published: how much of it, in what memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from eri_runtime.bundle import GateKind
from eri_runtime.errors import UnknownNameError, UsageError, short
from eri_runtime.units import parse_bytes

GATES: tuple[GateKind, ...] = get_args(GateKind)
USUAL_MEMORY = "2GB"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What the comparison with PyTorch runs, and the memory that it may take.

    Attributes:
        kind: "full" compares every case of each component, "quick" one case of each.
        memory: Bytes that the process may take while it compares, with all that it has loaded.
            Networks that need more are run a part at a time, at least one layer.
    """

    kind: GateKind = "full"
    memory: int = parse_bytes("gate_memory", USUAL_MEMORY)


USUAL_GATE = Gate()


def make_gate(kind: str, memory: int | str) -> Gate:
    """Returns the gate that a user asks for.

    Args:
        kind: "full" or "quick".
        memory: Bytes, or text such as "4GB".

    Raises:
        UnknownNameError: If `kind` is another word.
        UsageError: If `memory` is no number of bytes.
    """
    if kind not in GATES:
        raise UnknownNameError("gate", got=short(kind), expected=" or ".join(GATES))
    text = str(memory) if isinstance(memory, int | str) else ""
    if isinstance(memory, bool) or not text:
        expected = "a number of bytes, such as 4GB or 4GiB"
        raise UsageError("gate_memory", got=short(memory), expected=expected)
    return Gate(kind=GATES[GATES.index(kind)], memory=parse_bytes("gate_memory", text))
