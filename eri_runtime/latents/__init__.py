"""Latents: their shapes, encoding and decoding with the VAE, and previews without a decoder.

`geometry` has shapes, Flux's packing and the VAE's scale; `vae` encodes and decodes whole images,
slices of a batch or tiles (`tiling`); `chunks` splits a batch into the sizes a graph accepts;
`size_limits` checks sizes against the bundle; `preview` maps latents to RGB. Uses `executors`,
`images` and the rooms below. Start with `geometry`, then `vae`.
"""

from eri_runtime.latents.chunks import row_chunks, run_in_chunks
from eri_runtime.latents.geometry import (
    Array,
    from_vae,
    image_ids,
    latent_shape,
    patchify,
    token_count,
    unpatchify,
)
from eri_runtime.latents.preview import block_means, enlarge, fit_rgb, to_rgb
from eri_runtime.latents.size_limits import (
    check_count,
    check_size,
    images_at_once,
    latent_side_range,
    nearest_size,
)
from eri_runtime.latents.vae import DECODER, ENCODER, WHOLE, VaeMode, pack

__all__ = [
    "DECODER",
    "ENCODER",
    "WHOLE",
    "Array",
    "VaeMode",
    "block_means",
    "check_count",
    "check_size",
    "enlarge",
    "fit_rgb",
    "from_vae",
    "image_ids",
    "images_at_once",
    "latent_shape",
    "latent_side_range",
    "nearest_size",
    "pack",
    "patchify",
    "row_chunks",
    "run_in_chunks",
    "to_rgb",
    "token_count",
    "unpatchify",
]
