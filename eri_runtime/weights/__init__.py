"""Weights: the open components of a pipeline, and the weights they run with.

`live_weights` opens components and swaps their weights; `overlays` combines the bundle's weights,
updates and LoRAs; `lora` reads, matches and merges LoRA files; `textual_inversion` reads embeddings
of new tokens, and `token_rows` puts them into a table. `published_keys` maps the names in published
checkpoints; `state_dict` converts a caller's weights; `tensor_checks` compares tensors with a
weights file. `read_write_lock` lets many threads generate, or one change weights. Uses `executors`
and `bundle`. Start with `overlays`, then `lora`.
"""

from eri_runtime.weights.live_weights import (
    LiveWeights,
    OpenComponent,
    OpenParts,
    OpenStep,
    encoder_state,
    no_parts,
)
from eri_runtime.weights.lora import (
    Adapter,
    adapters,
    apply_lora_for_inference,
    find_lora,
    lora_files,
    lora_name,
    merged_weight,
    merged_weights,
    read_lora,
)
from eri_runtime.weights.lora.inputs import LoraInputs, check_loras, zero_lora_inputs
from eri_runtime.weights.overlays import Scale, Source, WeightOverlays, describe_loras
from eri_runtime.weights.published_keys.parts import Entry, Form, Part, Rows, count_numbered
from eri_runtime.weights.state_dict import StateDict, to_stored_types
from eri_runtime.weights.textual_inversion import TextualInversion, read_textual_inversions
from eri_runtime.weights.token_rows import token_table

__all__ = [
    "Adapter",
    "Entry",
    "Form",
    "LiveWeights",
    "LoraInputs",
    "OpenComponent",
    "OpenParts",
    "OpenStep",
    "Part",
    "Rows",
    "Scale",
    "Source",
    "StateDict",
    "TextualInversion",
    "WeightOverlays",
    "adapters",
    "apply_lora_for_inference",
    "check_loras",
    "count_numbered",
    "describe_loras",
    "encoder_state",
    "find_lora",
    "lora_files",
    "lora_name",
    "merged_weight",
    "merged_weights",
    "no_parts",
    "read_lora",
    "read_textual_inversions",
    "to_stored_types",
    "token_table",
    "zero_lora_inputs",
]
