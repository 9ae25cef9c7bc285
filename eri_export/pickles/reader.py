"""The process that reads a pickle: `python -m eri_export.pickles.reader FILE DESCRIPTOR`.

It gives up the network before it imports torch, reads FILE with the weights-only loader, which
calls nothing that the pickle names, and writes the weights as safetensors to the open file of
number DESCRIPTOR. Its answer is one line of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from eri_export.pickles.isolation import drop_network

if TYPE_CHECKING:
    import torch

# Training frameworks whose objects lie beside the weights in published checkpoints, such as the
# state of a callback. An empty object stands for each: no code of theirs is imported or called.
REPLACED = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "numpy.")
NAMED = re.compile(r"(?:GLOBAL|unrecognized function) (\S+)")  # in the loader's errors
CAUSE = re.compile(r"WeightsUnpickler error:(.*?)(?:Check the documentation|$)")
ZIP = b"PK\x03\x04"


class Placeholder:
    """Stands for an object that is no weight; takes whatever the pickle gives it."""

    def __init__(self, *_: object, **__: object) -> None:
        """Keeps nothing."""

    def __setstate__(self, state: object) -> None:
        """Keeps nothing."""


def main(file: str, descriptor: str) -> None:
    """Reads a pickle, writes the weights, and prints the answer as JSON."""
    network = drop_network()
    sys.stdout.write(json.dumps({"network": network, **read(file, int(descriptor))}))


def read(file: str, descriptor: int) -> dict[str, Any]:
    """Converts a file; returns the answer without `network`. Closes the descriptor."""
    try:
        with os.fdopen(descriptor, "wb") as output:
            return _convert(file, output)
    except OSError as error:
        return {"error": "OSError", "errno": error.errno, "text": str(error)}
    except Exception as error:
        text = " ".join(str(error).split())
        cause = match[1].strip() if (match := CAUSE.search(text)) else text
        return {"error": type(error).__name__, "text": cause, "named": NAMED.findall(text)}


def _convert(file: str, output: BinaryIO) -> dict[str, Any]:
    """Converts a file; returns the names of what was written and of what was not."""
    from eri_export.pickles.contents import find_weights

    tensors, left_out = find_weights(_load(file))
    unusual = [name for name, tensor in tensors.items() if not _is_plain(tensor)]
    if unusual or not tensors:
        return {"unusual": unusual, "left_out": left_out, "tensors": 0}
    _write(tensors, output)
    return {"left_out": left_out, "tensors": len(tensors)}


def _load(file: str) -> Any:
    """Reads a pickle with torch's weights-only loader; objects of `REPLACED` are left empty."""
    import torch

    with open(file, "rb") as stream:  # noqa: PTH123
        is_zip = stream.read(len(ZIP)) == ZIP
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file) if is_zip else []
    stand_ins: list[Any] = [
        (type("Placeholder", (Placeholder,), {}), name)
        for name in names
        if name.startswith(REPLACED)
    ]
    with torch.serialization.safe_globals(stand_ins):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Returns whether safetensors has the tensor's type and layout."""
    import torch

    from eri_export.checkpoints import SAFETENSORS_DTYPES

    dense = tensor.layout is torch.strided and not tensor.is_quantized
    return dense and tensor.dtype in SAFETENSORS_DTYPES


def _write(tensors: dict[str, torch.Tensor], output: BinaryIO) -> None:
    """Writes a safetensors file: the header, then each tensor's bytes."""
    import torch

    from eri_export.checkpoints import safetensors_header

    entries = ((name, each.dtype, each.shape, each.nbytes) for name, each in tensors.items())
    output.write(safetensors_header(entries))
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().reshape(-1)
        if flat.numel():
            output.write(flat.view(torch.uint8).numpy().data)


if __name__ == "__main__":
    main(*sys.argv[1:])
