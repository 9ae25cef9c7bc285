"""LoRAs: files of any trainer are parsed, matched to a model's weights, and merged into them.

`lora_file` opens a file or folder, and `hub_lora` downloads one. `keys` splits a file's keys into
modules and factors, and `selected` is a choice of them. `scaled` multiplies the scales of 8-bit
factors in, and `bundled_tokens` finds embeddings of tokens. `targets` finds the weights of a
module, `factors` and `deltas` build the updates, `matching` puts these together and `merging`
applies them. `flux_variants` has what differs between Flux models. `inputs` passes LoRAs to the
denoiser as inputs instead of merging them. Start with `matching`.
"""

from eri_runtime.weights.lora.adapter import Adapter
from eri_runtime.weights.lora.keys import parse
from eri_runtime.weights.lora.lora_file import find_lora, is_lora, lora_files, lora_name, read_lora
from eri_runtime.weights.lora.matching import Adapters, adapters
from eri_runtime.weights.lora.merging import apply_lora_for_inference, merged_weight, merged_weights

__all__ = [
    "Adapter",
    "Adapters",
    "adapters",
    "apply_lora_for_inference",
    "find_lora",
    "is_lora",
    "lora_files",
    "lora_name",
    "merged_weight",
    "merged_weights",
    "parse",
    "read_lora",
]
