"""The fields of OpenAI's Images API, and eri's extras, which stand beside them.

A field that is unknown is refused, as OpenAI does: a misspelt one would otherwise change nothing
and say nothing. Fields that only OpenAI's own models use are accepted without effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from eri_runtime.sampling import MAX_SEED
from eri_runtime.serve.http.pictures import Format

SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"
MOST_PARTIAL = 3


def _encodable(value: str) -> str:
    """Returns a text; raises `ValueError` if UTF-8 cannot encode it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("text in UTF-8, without lone surrogates") from error
    return value


def _whole(value: Any) -> Any:
    """Returns a float without a fraction as an integer, as JSON means it; else the value itself."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[Text, Field(max_length=256)]
Positive = Annotated[float, Field(gt=0)]


class Fields(BaseModel):
    """What generations and edits have in common.

    Attributes:
        prompt: The prompt.
        model: Name of a bundle. Default: the server's first.
        n: Number of pictures.
        size: `WIDTHxHEIGHT` or `auto`: the bundle's, or for an edit the picture's.
        stream: Answers with server-sent events.
        partial_images: With `stream`: number of previews.
        response_format: `b64_json`, or `url` for addresses that last an hour.
        output_format: File format of the pictures.
        output_compression: Quality of JPEG and WebP, 0 to 100.
        background: No effect.
        quality: No effect.
        moderation: No effect.
        user: No effect.
        safety_identifier: No effect.
        negative_prompt: What to steer away from.
        steps: Denoising steps.
        num_inference_steps: Another name of `steps`.
        guidance_scale: Guidance scale.
        cfg_scale: Another name of `guidance_scale`.
        true_cfg_scale: Scale of CFG for models that embed their guidance.
        seed: Seed of the first picture; picture i has seed + i. Default, or -1: a random one.
        prompt_syntax: `plain`, or `a1111` for AUTOMATIC1111's weights, schedules and LoRA tags.
        sampler: Name of the sampler.
        sigmas: Noise levels: a name or a list.
        loras: LoRAs of the server: scales by name, or a list of `NAME` or `NAME:SCALE`.
        timeout: Seconds after which the request is given up.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: Text
    model: Name | None = None
    n: Annotated[Whole, Field(ge=1)] | None = None
    size: Annotated[str, Field(pattern=SIZE)] | None = None
    stream: bool | None = None
    partial_images: Annotated[Whole, Field(ge=0, le=MOST_PARTIAL)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format | None = None
    output_compression: Annotated[Whole, Field(ge=0, le=100)] | None = None
    background: Name | None = None
    quality: Name | None = None
    moderation: Name | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    negative_prompt: Text | None = None
    steps: Annotated[Whole, Field(ge=1)] | None = None
    num_inference_steps: Annotated[Whole, Field(ge=1)] | None = None
    guidance_scale: float | None = None
    cfg_scale: float | None = None
    true_cfg_scale: float | None = None
    seed: Annotated[Whole, Field(ge=-1, le=MAX_SEED)] | None = None
    prompt_syntax: Literal["plain", "a1111"] | None = None
    sampler: Name | None = None
    sigmas: Name | Annotated[list[float], Field(max_length=1000)] | None = None
    loras: dict[Name, float] | Annotated[list[Name], Field(max_length=64)] | None = None
    timeout: Positive | None = None

    @property
    def form(self) -> Format:
        """The file format of the pictures."""
        return self.output_format or "png"

    @property
    def compression(self) -> int:
        """The quality of JPEG and WebP."""
        return 100 if self.output_compression is None else self.output_compression

    @property
    def previews(self) -> int:
        """The number of previews to make."""
        return (self.partial_images or 0) if self.stream else 0


class GenerationFields(Fields):
    """The body of `POST /v1/images/generations`. JSON has types: "2" is no number there.

    Attributes:
        style: No effect.
    """

    model_config = ConfigDict(strict=True)

    style: Name | None = None


class EditFields(Fields):
    """The fields of `POST /v1/images/edits`, without its files.

    Attributes:
        input_fidelity: No effect; `strength` says how far the picture may change.
        strength: Share of the steps to run on the picture. Default: 0.6, or 1 with a mask.
        overlay: Keeps the picture's own pixels outside the mask. Default: with a mask.
        padding_mask_crop: Paints only the part around the mask, with so many pixels on each side.
    """

    input_fidelity: Name | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    overlay: bool | None = None
    padding_mask_crop: Annotated[Whole, Field(ge=0)] | None = None
