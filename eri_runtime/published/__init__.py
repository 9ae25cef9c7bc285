"""How published files name the weights that diffusers and transformers name otherwise."""

from eri_runtime.published import flux, mmdit, text, unet, vae

__all__ = ["flux", "mmdit", "text", "unet", "vae"]
