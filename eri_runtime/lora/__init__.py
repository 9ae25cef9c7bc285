"""LoRAs: read from any trainer's file, matched to a model's weights, merged into them."""

from eri_runtime.lora.adapter import Adapter
from eri_runtime.lora.keys import parse
from eri_runtime.lora.matching import Adapters, adapters
from eri_runtime.lora.merging import apply_lora_for_inference, merged_weight, merged_weights

__all__ = [
    "Adapter",
    "Adapters",
    "adapters",
    "apply_lora_for_inference",
    "merged_weight",
    "merged_weights",
    "parse",
]
