"""Names of weights in published single-file checkpoints, mapped to diffusers' and transformers'.

One file per network: `unet`, `mmdit`, `flux`, `vae` and `text`; `omi` has the names that only
LoRAs of OneTrainer have. Start with `parts`, which defines the tables they consist of.
"""

from eri_runtime.weights.published_keys import flux, mmdit, omi, text, unet, vae

__all__ = ["flux", "mmdit", "omi", "text", "unet", "vae"]
