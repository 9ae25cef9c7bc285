"""What each family's denoiser is conditioned on, as its graph inputs.

A `Condition` is a batch of one prompt's embeddings; each family is a function from prompts to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import SizeError, UsageError
from eri_runtime.executors.base import check_finite
from eri_runtime.latents import image_ids, latent_shape
from eri_runtime.spec import Bundle
from eri_runtime.text import PromptTokenizer

Array = NDArray[np.float32]
Run = Callable[[str, Mapping[str, NDArray]], dict[str, NDArray]]


@dataclass(frozen=True)
class Condition:
    """`embeds` (B, T, D) and `pooled` (B, P), both float32: what the text encoders give."""

    embeds: Array
    pooled: Array

    def repeat(self, count: int) -> Condition:
        """Each prompt `count` times in a row, for several images a prompt."""
        return Condition(np.repeat(self.embeds, count, 0), np.repeat(self.pooled, count, 0))

    def zeros(self) -> Condition:
        """SDXL's missing negative prompt."""
        return Condition(np.zeros_like(self.embeds), np.zeros_like(self.pooled))

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """(K·B, …): one condition after the other."""
        embeds, pooled = zip(*((c.embeds, c.pooled) for c in conditions), strict=True)
        return Condition(np.concatenate(embeds), np.concatenate(pooled))


# No family has prompts without these two. SD3.5's third, a T5, may be absent, as in diffusers.
NEEDED = ("text_encoder", "text_encoder_2")


def check_encoders(bundle: Bundle, prompt: str = "prompt") -> None:
    """Raise `UsageError` where the argument `prompt` has to be encoded and the bundle cannot."""
    missing = [name for name in NEEDED if name not in bundle.components]
    if missing:
        prefix = prompt.removesuffix("prompt")
        embeds = f"`{prefix}prompt_embeds` and `{prefix}pooled_prompt_embeds`"
        raise UsageError(
            prompt,
            got=f"a bundle without {' and '.join(missing)}",
            expected="the text encoders",
            fix=f"pass {embeds}, or export again with `--text-encoders`",
        )


class TextEncoders:
    """Prompts to a `Condition`, through the tokenizers and encoders of one bundle."""

    def __init__(self, bundle: Bundle, run: Run) -> None:
        self._bundle = bundle
        self._run = run
        self._tokenizers = {name: PromptTokenizer(bundle, name) for name in bundle.tokenizers}

    def __call__(self, prompts: Sequence[str], max_sequence_length: int) -> Condition:
        """The condition of a batch of prompts; `max_sequence_length` is T5's number of tokens.

        Raises `UsageError` where the bundle has not the encoders, `SizeError` for a length that
        they do not take.
        """
        check_encoders(self._bundle)
        encode = {"sdxl": self._sdxl, "sd35": self._sd35, "flux": self._flux}[self._bundle.family]
        condition = encode(prompts, max_sequence_length)
        check_finite("prompt embeddings", condition.embeds)
        check_finite("pooled prompt embeddings", condition.pooled)
        return condition

    def _encode(
        self, suffix: str, prompts: Sequence[str], length: int | None = None
    ) -> dict[str, NDArray]:
        name, tokenize = f"text_encoder{suffix}", self._tokenizers[f"tokenizer{suffix}"]
        spare = max(0, self._bundle.components[name].ranges["batch"].min - len(prompts))
        ids = tokenize([*prompts, *[""] * spare], length)  # an encoder of one size is filled up
        outputs = self._run(name, {"input_ids": ids})
        return {key: value[: len(prompts)] for key, value in outputs.items()}

    def _sdxl(self, prompts: Sequence[str], _: int) -> Condition:
        """CLIP-L beside CLIP-G, (B, 77, 768 + 1280); pooled is CLIP-G's."""
        first, second = self._encode("", prompts), self._encode("_2", prompts)
        embeds = np.concatenate([first["hidden_states"], second["hidden_states"]], axis=-1)
        return Condition(embeds, second["pooled"])

    def _sd35(self, prompts: Sequence[str], length: int) -> Condition:
        """CLIP-L beside CLIP-G, filled to T5's width, before T5's tokens; pooled is both CLIPs'."""
        t5 = self._t5_or_zeros(prompts, length)
        first, second = self._encode("", prompts), self._encode("_2", prompts)
        clip = np.concatenate([first["hidden_states"], second["hidden_states"]], axis=-1)
        clip = np.pad(clip, ((0, 0), (0, 0), (0, t5.shape[-1] - clip.shape[-1])))
        pooled = np.concatenate([first["pooled"], second["pooled"]], axis=-1)
        return Condition(np.concatenate([clip, t5], axis=1), pooled)

    def _t5_or_zeros(self, prompts: Sequence[str], length: int) -> Array:
        """(B, length, D): T5's tokens, or as many zeros from a bundle that has no T5."""
        if "text_encoder_3" in self._bundle.components:
            return self._encode("_3", prompts, length)["hidden_states"]
        width, most = _width_and_most_tokens(self._bundle)
        most -= self._bundle.tokenizers["tokenizer"].max_length
        if not 1 <= length <= most:
            raise SizeError("max_sequence_length", got=length, expected=f"1 to {most}")
        return np.zeros((len(prompts), length, width), np.float32)

    def _flux(self, prompts: Sequence[str], length: int) -> Condition:
        """T5's tokens; pooled is CLIP-L's."""
        t5 = self._encode("_2", prompts, length)["hidden_states"]
        return Condition(t5, self._encode("", prompts)["pooled"])


def _width_and_most_tokens(bundle: Bundle) -> tuple[int, int]:
    """What the denoiser reads of a text."""
    denoiser = bundle.components["denoiser"]
    (shape,) = (each.shape for each in denoiser.inputs if each.name == "encoder_hidden_states")
    return int(shape[-1]), denoiser.ranges["tokens"].max


def condition_inputs(
    bundle: Bundle, condition: Condition, height: int, width: int, guidance: Array
) -> dict[str, Array]:
    """What the denoiser takes for each row of a condition.

    `guidance` (B,) is for a denoiser that embeds it (Meng et al. 2023, arXiv 2210.03142).
    """
    if bundle.family == "sdxl":
        return {
            "encoder_hidden_states": condition.embeds,
            "text_embeds": condition.pooled,
            "time_ids": _time_ids(len(condition.pooled), height, width),
        }
    inputs = {"encoder_hidden_states": condition.embeds, "pooled_projections": condition.pooled}
    if bundle.guidance_embedding:
        inputs["guidance"] = guidance
    return inputs


def shared_inputs(bundle: Bundle, height: int, width: int, tokens: int) -> dict[str, Array]:
    """What the denoiser takes once for all rows: Flux's positions of patches and of text tokens."""
    if bundle.family != "flux":
        return {}
    _, h, w = latent_shape(bundle.latents, height, width)
    return {
        "img_ids": image_ids(h, w, bundle.latents.patch),
        "txt_ids": np.zeros((tokens, 3), dtype=np.float32),
    }


def _time_ids(batch: int, height: int, width: int) -> Array:
    """(B, 6) micro-conditioning (Podell et al. 2023, arXiv 2307.01952): original, crop, target."""
    time_ids = np.array([height, width, 0, 0, height, width], dtype=np.float32)
    return np.tile(time_ids, (batch, 1))


def given_condition(name: str, embeds: NDArray | None, pooled: NDArray | None) -> Condition | None:
    """Embeddings the caller brought, or None; both are needed, for the same number of prompts."""
    if embeds is None and pooled is None:
        return None
    if embeds is None or pooled is None or len(embeds) != len(pooled):
        got = " and ".join("none" if a is None else str(a.shape) for a in (embeds, pooled))
        expected = "(B, T, D) and (B, P) together"
        raise SizeError(f"{name} and its pooled twin", got=got, expected=expected)
    return Condition(np.asarray(embeds, np.float32), np.asarray(pooled, np.float32))
