"""The peers that `eri bench --peers` measures, and the environment that they are installed in.

Their packages need older versions of transformers and diffusers than the exporter does, so they
have a Python environment of their own, which `make peers` makes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from eri_runtime.errors import UnknownNameError, UsageError, short

ENVIRONMENT = Path("build/peers/bin/python")  # of `make peers`
BF16 = "+bf16"
# the precisions that each peer can be told to compute in, by the end of its name
PEERS: Mapping[str, tuple[str, ...]] = {
    "openvino-genai": ("", BF16),
    "optimum-intel": ("", BF16),
    "optimum-onnx": ("",),
}


def peer_names() -> tuple[str, ...]:
    """Returns every name that `--peers` understands."""
    return tuple(name + end for name, ends in PEERS.items() for end in ends)


def check_peer(name: str) -> str:
    """Returns the name of a peer; raises UnknownNameError if there is no such peer."""
    if name not in peer_names():
        raise UnknownNameError("--peers", got=short(name), expected=", ".join(peer_names()))
    return name


def peer_python(given: Path | None) -> str:
    """Returns the Python that runs the peers.

    Args:
        given: The one that the user named; default: that of `make peers` if it is there, else the
            one that runs this.

    Raises:
        UsageError: If the one that the user named is not a file.
    """
    if given is None:
        return str(ENVIRONMENT.absolute()) if ENVIRONMENT.is_file() else sys.executable
    if not given.is_file():
        expected = "the python of an environment with the peers"
        raise UsageError(
            "--peers-python", got=f"no file {given}", expected=expected, fix="run `make peers`"
        )
    return str(given.absolute())
