"""Checkpoints in any layout, opened without reading a weight.

`checkpoint` has the opened checkpoint's types, `sources` opens folders, single files and Hub ids
into them, `stored_tensors` are tensors as byte ranges of files, and `safetensors_header` writes the
header of such a file. `config_from_shapes` derives the config of a file that has none;
`shipped_configs` supplies configs and tokenizers that a file lacks; `tokenizers` converts them;
`manifest_facts` reads schedule, latents and defaults from the configs. Start with `checkpoint`,
then `sources`.

The names below need torch alone; `sources` and `manifest_facts`, which load diffusers, do not
belong to them.
"""

from eri_export.checkpoints.checkpoint import (
    DENOISERS,
    PARTS,
    Checkpoint,
    Component,
    Config,
    Tensors,
)
from eri_export.checkpoints.safetensors_header import safetensors_header
from eri_export.checkpoints.stored_tensors import (
    SAFETENSORS_DTYPES,
    TORCH_DTYPES,
    Span,
    StoredTensor,
    read_headers,
)

__all__ = [
    "DENOISERS",
    "PARTS",
    "SAFETENSORS_DTYPES",
    "TORCH_DTYPES",
    "Checkpoint",
    "Component",
    "Config",
    "Span",
    "StoredTensor",
    "Tensors",
    "read_headers",
    "safetensors_header",
]
