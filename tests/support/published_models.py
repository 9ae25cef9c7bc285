"""Every name and shape of the published models' single files, at full size."""

from __future__ import annotations

from tests.support import single_files as made


def shapes(state, prefix=""):
    return {prefix + name: tuple(tensor.shape) for name, tensor in state.items()}


def sdxl(model):
    clip = made.wrapped_clip(made.full_size(model, "text_encoder"))
    return {
        **shapes(made.ldm_unet(made.full_size(model, "unet")), made.LDM),
        **shapes(made.ldm_vae(made.full_size(model, "vae")), made.VAE),
        **shapes(clip, made.SDXL_CLIP_L),
        **shapes(made.open_clip(made.full_size(model, "text_encoder_2")), made.SDXL_CLIP_G),
    }


def sd3(model):
    return {
        **shapes(made.sd3_mmdit(made.full_size(model, "transformer")), made.LDM),
        **shapes(made.ldm_vae(made.full_size(model, "vae")), made.VAE),
    }


def sd3_with_encoders(model):
    clip = made.full_size(model, "text_encoder")
    del clip["text_projection.weight"]
    return {
        **sd3(model),
        **shapes(clip, made.CLIP_L),
        **shapes(made.full_size(model, "text_encoder_2"), made.CLIP_G),
        **shapes(made.full_size(model, "text_encoder_3"), made.T5),
    }


def flux(model):
    return shapes(made.bfl_flux(made.full_size(model, "transformer")))


PUBLISHED = {
    "sdxl-base": (sdxl, "sdxl", 4),
    "sd3-medium": (sd3_with_encoders, "sd35", 5),
    "sd3.5-medium": (sd3, "sd35", 2),
    "sd3.5-large": (sd3, "sd35", 2),
    "flux-dev": (flux, "flux", 1),
    "flux-schnell": (flux, "flux", 1),
}
