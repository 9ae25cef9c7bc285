"""The bodies of requests to `/sdapi/v1`. Other fields are ignored, as by AUTOMATIC1111."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from eri_runtime.errors import UsageError, short
from eri_runtime.serve.http.openai_fields import Positive, Text

Side = Annotated[int, Field(ge=1, le=2**16)]


class TextToImage(BaseModel):
    """What `/txt2img` takes. A field that is missing or null has the bundle's default.

    Attributes:
        prompt: The prompt; `<lora:name:weight>` in it chooses LoRAs.
        negative_prompt: What to avoid.
        seed: Seed of the first picture; image i has seed + i. −1: a random one.
        sampler_name: Label of the sampler.
        sampler_index: Another name of `sampler_name`, which precedes it.
        scheduler: Name of the scheduler.
        batch_size: Pictures at once.
        n_iter: Times `batch_size` pictures are made.
        steps: Number of steps.
        cfg_scale: Scale of CFG.
        distilled_cfg_scale: Embedded guidance, for models that embed it (Forge's name).
        width: Width in pixels.
        height: Height in pixels.
        eta: Noise of the samplers that add some; others ignore it.
        s_churn: Churn of Heun; others ignore it. Likewise `s_tmin`, `s_tmax` (0: no limit).
        s_noise: Scale of the samplers' noise; those without any ignore it.
        override_settings: Options for this request only: see `/options`.
        override_settings_restore_afterwards: Whether later requests do without these.
        send_images: Whether the reply has the pictures.
        timeout: Seconds after which the request is given up.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    prompt: Text = ""
    negative_prompt: Text | None = None
    seed: int | None = -1
    sampler_name: Text | None = None
    sampler_index: Text | None = None
    scheduler: Text | None = None
    batch_size: int = Field(1, ge=1)
    n_iter: int = Field(1, ge=1)
    steps: int | None = None
    cfg_scale: float | None = None
    distilled_cfg_scale: float | None = None
    width: Side | None = None
    height: Side | None = None
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool = True
    send_images: bool = True
    timeout: Positive | None = None
    # what this server cannot do: see `check_possible`
    enable_hr: bool = False
    restore_faces: bool | None = False
    tiling: bool | None = False
    styles: list[Text] | None = None
    subseed_strength: float | None = 0
    seed_resize_from_w: int | None = 0
    seed_resize_from_h: int | None = 0
    clip_skip: int | None = None
    refiner_checkpoint: Text | None = None
    script_name: Text | None = None
    alwayson_scripts: dict[str, Any] | None = None
    hr_second_pass_steps: int | None = None

    @property
    def pictures(self) -> int:
        """Number of pictures."""
        return self.batch_size * self.n_iter


class ImageToImage(TextToImage):
    """What `/img2img` takes: `/txt2img`'s fields, and the picture to start from.

    Attributes:
        init_images: The pictures in base64, with or without a data URL's start.
        mask: Where to repaint in base64: what is white, or opaque if it has an alpha channel.
        denoising_strength: Share of the steps that is run.
        resize_mode: 0 stretches the picture to the size, 1 cuts it to the size's proportions.
        mask_blur: Pixels by which the edge of the mask is blurred.
        inpainting_fill: What is under the mask at first. 0 and 1: the picture.
        inpaint_full_res: Whether only the part around the mask is painted.
        inpaint_full_res_padding: Pixels around that part.
        inpainting_mask_invert: 1: repaint what is black.
        initial_noise_multiplier: Scale of the first noise; only 1.
        include_init_images: Whether the reply's `parameters` repeat the pictures.
    """

    init_images: list[Text] = Field(min_length=1)
    mask: Text | None = None
    denoising_strength: float = 0.75
    resize_mode: int = 0
    mask_blur: int = 4
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = Field(0, ge=0, le=1)
    initial_noise_multiplier: float | None = 1
    include_init_images: bool = False


class PngInfo(BaseModel):
    """What `/png-info` takes: a PNG in base64."""

    image: str


# what a field may be, besides null, an empty text and an empty list
POSSIBLE: Mapping[str, Sequence[object]] = {
    "enable_hr": (False,),
    "restore_faces": (False,),
    "tiling": (False,),
    "styles": (),
    "subseed_strength": (0,),
    "seed_resize_from_w": (0, -1),
    "seed_resize_from_h": (0, -1),
    "clip_skip": (0, 1, 2),
    "refiner_checkpoint": ("None",),
    "script_name": ("None",),
    "alwayson_scripts": (),
    "resize_mode": (0, 1),
    "inpainting_fill": (0, 1),
    "initial_noise_multiplier": (1,),
}


def check_possible(body: TextToImage) -> None:
    """Raises `UsageError` for the first field that asks for what this server cannot do."""
    for name, allowed in POSSIBLE.items():
        value = getattr(body, name, None)
        if value not in (None, "", [], {}, *allowed):
            expected = " or ".join(map(str, allowed)) or "nothing"
            raise UsageError(name, got=short(value), expected=f"{expected}, as eri has no other")
