"""Encodes prompts for each family and names the embeddings as the denoiser's graph inputs.

A `Condition` holds the embeddings of a batch of prompts; `TextEncoders` has one method per family
that computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eri_runtime.bundle import Bundle
from eri_runtime.checks import check_finite, float32, to_numpy
from eri_runtime.errors import SizeError, UsageError
from eri_runtime.latents import image_ids, latent_shape, run_in_chunks
from eri_runtime.text.prompts import PlainText, Text, text_of
from eri_runtime.text.syntax import Piece, WeightedText
from eri_runtime.text.tokenizer import PromptTokenizer
from eri_runtime.text.weighted_encoding import WeightedEncoding

Array = NDArray[np.float32]
Run = Callable[[str, Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Condition:
    """The text encoders' embeddings of a batch of prompts.

    Attributes:
        embeds: Embedding of each token, (B, T, D) float32.
        pooled: Pooled embedding of each prompt, (B, P) float32.

    Example:
        >>> from eri_runtime.text import Condition
        >>> pair = Condition(np.zeros((2, 77, 32), np.float32), np.zeros((2, 16), np.float32))
        >>> pair.repeat(3).pooled.shape
        (6, 16)
    """

    embeds: Array
    pooled: Array

    def repeat(self, count: int) -> Condition:
        """Returns each prompt `count` times in a row, for several images per prompt."""
        return Condition(np.repeat(self.embeds, count, 0), np.repeat(self.pooled, count, 0))

    def zeros(self) -> Condition:
        """Returns zeros of the same shapes, which SDXL uses if there is no negative prompt."""
        return Condition(np.zeros_like(self.embeds), np.zeros_like(self.pooled))

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """Concatenates K conditions along the batch, (K·B, …)."""
        embeds, pooled = zip(*((c.embeds, c.pooled) for c in conditions), strict=True)
        return Condition(np.concatenate(embeds), np.concatenate(pooled))


class Encode(Protocol):
    """Encodes texts; `TextEncoders`, and `EmbeddingCache` around it."""

    def __call__(self, prompts: Sequence[Text], max_sequence_length: int, /) -> Condition:
        """Returns the condition of a batch of texts, which take equally many windows.

        A plain text is padded or truncated to one window.
        """

    def windows(self, text: WeightedText) -> int:
        """Returns how many windows of CLIP's tokens a weighted text takes."""


# Every family needs these two for prompts. SD3.5's third, a T5, is optional, as in diffusers.
REQUIRED_ENCODERS = ("text_encoder", "text_encoder_2")


def check_encoders(bundle: Bundle, prompt: str = "prompt") -> None:
    """Raises `UsageError` if the bundle lacks the text encoders that a prompt needs.

    `prompt` is the argument that the message names.
    """
    missing = [name for name in REQUIRED_ENCODERS if name not in bundle.components]
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
    """Encodes prompts to a `Condition` with a bundle's tokenizers and text encoders.

    Args:
        bundle: The bundle.
        run: Runs a component, by name, on inputs by name.
    """

    def __init__(self, bundle: Bundle, run: Run) -> None:
        self._bundle = bundle
        self._run = run
        self._tokenizers = {name: PromptTokenizer(bundle, name) for name in bundle.tokenizers}
        by_component = {
            name.replace("tokenizer", "text_encoder"): each
            for name, each in self._tokenizers.items()
        }
        self._weighted = WeightedEncoding(by_component, partial(_run_encoder, bundle, run))

    def tokenizer(self, component: str) -> PromptTokenizer:
        """Returns the tokenizer of a text encoder."""
        return self._tokenizers[component.replace("text_encoder", "tokenizer")]

    def __call__(self, prompts: Sequence[Text], max_sequence_length: int) -> Condition:
        """Returns the condition of a batch of prompts.

        Args:
            prompts: The prompts, B texts, or for each one text per encoder; with one that has
                weights, they are encoded one by one.
            max_sequence_length: Number of T5 tokens; SDXL ignores it.

        Raises:
            UsageError: If the bundle has no text encoders.
            SizeError: If the text encoders do not accept this length.
            NonFiniteError: If an encoder returns NaN or Inf.
        """
        check_encoders(self._bundle)
        plain = [text for text in prompts if not isinstance(text, WeightedText)]
        if len(plain) == len(prompts):
            encode = {"sdxl": self._sdxl, "sd35": self._sd35, "flux": self._flux}
            condition = encode[self._bundle.family](plain, max_sequence_length)
        else:
            parts = [self._with_weights(text, max_sequence_length) for text in prompts]
            condition = Condition.stack(parts)
        check_finite("prompt embeddings", condition.embeds)
        check_finite("pooled prompt embeddings", condition.pooled)
        return condition

    def windows(self, text: WeightedText) -> int:
        """Returns how many windows of CLIP's tokens a weighted text takes.

        Flux's denoiser reads none of them; there only the first one counts, for the pooled
        embedding.
        """
        clips = REQUIRED_ENCODERS[:1] if self._bundle.family == "flux" else REQUIRED_ENCODERS
        return max(self._weighted.count(clip, text) for clip in clips)

    def _with_weights(self, text: Text, length: int) -> Condition:
        """Returns the condition of one text.

        Weights act on both CLIPs, and on T5 where no CLIP's states are read (Flux, as in Forge).
        """
        if not isinstance(text, WeightedText):
            text = WeightedText(((Piece(text_of(text, 1), 1.0),),))
        if self._bundle.family == "flux":
            t5 = self._weighted.t5("text_encoder_2", text, length, weighted=True)
            return Condition(t5, self._weighted.pooled("text_encoder", text))
        if self._bundle.family == "sdxl":
            return Condition(*self._weighted.sdxl(text))
        clip, pooled = self._weighted.sd35_clips(text)
        if "text_encoder_3" in self._bundle.components:
            t5 = self._weighted.t5("text_encoder_3", text, length, weighted=False)
        else:
            t5 = self._t5_or_zeros([""], length)
        return Condition(_clip_before_t5(clip, t5), pooled)

    def _encode(
        self, suffix: str, prompts: Sequence[PlainText], length: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """Tokenizes the prompts and runs one text encoder; returns its outputs (B, …) by name."""
        name, tokenize = f"text_encoder{suffix}", self._tokenizers[f"tokenizer{suffix}"]
        texts = [text_of(prompt, int(suffix[1:] or 1)) for prompt in prompts]
        padding = max(0, self._bundle.components[name].ranges["batch"].min - len(prompts))
        ids = tokenize([*texts, *[""] * padding], length)
        outputs = self._run(name, {"input_ids": ids})
        return {key: value[: len(prompts)] for key, value in outputs.items()}

    def _sdxl(self, prompts: Sequence[PlainText], _: int) -> Condition:
        """Concatenates CLIP-L and CLIP-G, (B, 77, 768 + 1280); pooled is CLIP-G's."""
        first, second = self._encode("", prompts), self._encode("_2", prompts)
        embeds = np.concatenate([first["hidden_states"], second["hidden_states"]], axis=-1)
        return Condition(embeds, second["pooled"])

    def _sd35(self, prompts: Sequence[PlainText], length: int) -> Condition:
        """Puts CLIP's tokens before T5's; pooled is the concatenation of both CLIPs'.

        CLIP-L and CLIP-G are concatenated along the width and zero-padded to T5's.
        """
        t5 = self._t5_or_zeros(prompts, length)
        first, second = self._encode("", prompts), self._encode("_2", prompts)
        clip = np.concatenate([first["hidden_states"], second["hidden_states"]], axis=-1)
        pooled = np.concatenate([first["pooled"], second["pooled"]], axis=-1)
        return Condition(_clip_before_t5(clip, t5), pooled)

    def _t5_or_zeros(self, prompts: Sequence[PlainText], length: int) -> Array:
        """Returns T5's embeddings (B, length, D), or zeros if the bundle has no T5."""
        if "text_encoder_3" in self._bundle.components:
            return self._encode("_3", prompts, length)["hidden_states"]
        width, most = _width_and_most_tokens(self._bundle)
        most -= self._bundle.tokenizers["tokenizer"].max_length
        if not 1 <= length <= most:
            raise SizeError("max_sequence_length", got=length, expected=f"1 to {most}")
        return np.zeros((len(prompts), length, width), np.float32)

    def _flux(self, prompts: Sequence[PlainText], length: int) -> Condition:
        """Returns T5's embeddings; pooled is CLIP-L's."""
        t5 = self._encode("_2", prompts, length)["hidden_states"]
        return Condition(t5, self._encode("", prompts)["pooled"])


def _run_encoder(
    bundle: Bundle, run: Run, name: str, ids: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Runs a text encoder on token ids (B, T), of any B; returns its outputs (B, …) by name."""
    ranges = bundle.components[name].ranges["batch"]
    return run_in_chunks(partial(run, name), ranges, {"input_ids": ids})


def _clip_before_t5(clip: Array, t5: Array) -> Array:
    """Returns CLIP's embeddings (B, T, D), zero-padded to T5's width, before T5's (B, T', D')."""
    clip = np.pad(clip, ((0, 0), (0, 0), (0, t5.shape[-1] - clip.shape[-1])))
    return np.concatenate([clip, t5], axis=1)


def _width_and_most_tokens(bundle: Bundle) -> tuple[int, int]:
    """Returns the width and the maximum number of text tokens that the denoiser accepts."""
    denoiser = bundle.components["denoiser"]
    (shape,) = (each.shape for each in denoiser.inputs if each.name == "encoder_hidden_states")
    return int(shape[-1]), denoiser.ranges["tokens"].max


def condition_inputs(
    bundle: Bundle,
    condition: Condition,
    height: int,
    width: int,
    guidance: Array,
    micro: Sequence[float] | None = None,
) -> dict[str, Array]:
    """Returns the denoiser's inputs that have one row per row of a condition, by name.

    `guidance` (B,) float32 is used only by a denoiser that embeds the guidance scale (Meng et al.
    2023, arXiv 2210.03142). `micro` are SDXL's six numbers of micro-conditioning (default: those of
    an uncropped picture of this size).
    """
    inputs = {"encoder_hidden_states": condition.embeds}
    if bundle.family == "sdxl":
        inputs["text_embeds"] = condition.pooled
        inputs["time_ids"] = _time_ids(len(condition.pooled), height, width, micro)
    else:
        inputs["pooled_projections"] = condition.pooled
    if bundle.guidance_embedding:
        inputs["guidance"] = guidance
    return inputs


def shared_inputs(bundle: Bundle, height: int, width: int, tokens: int) -> dict[str, Array]:
    """Returns the denoiser's inputs that all rows share, by name.

    These are Flux's position ids of patches (h/p·w/p, 3) and text tokens (tokens, 3); other
    families have none.
    """
    if bundle.family != "flux":
        return {}
    _, h, w = latent_shape(bundle.latents, height, width)
    return {
        "img_ids": image_ids(h, w, bundle.latents.patch),
        "txt_ids": np.zeros((tokens, 3), dtype=np.float32),
    }


def _time_ids(batch: int, height: int, width: int, micro: Sequence[float] | None) -> Array:
    """Returns SDXL's micro-conditioning (B, 6): original size, crop offset, target size.

    Source: Podell et al. 2023, arXiv 2307.01952, section 2.2.
    """
    whole = (height, width, 0, 0, height, width)
    time_ids = np.array(whole if micro is None else micro, dtype=np.float32)
    return np.tile(time_ids, (batch, 1))


def condition_from_embeds(
    name: str, embeds: NDArray[Any] | None, pooled: NDArray[Any] | None
) -> Condition | None:
    """Returns the caller's own embeddings as a `Condition`, or None if there are none.

    `name` is the argument that the message names. Any finite numbers become float32. Raises
    `SizeError` if only one of the two is there, or they have a different number of prompts,
    `UsageError` if they are no numbers and `NonFiniteError` for NaN or Inf.
    """
    if embeds is None and pooled is None:
        return None
    twin = name.replace("prompt_embeds", "pooled_prompt_embeds")
    first, second = (
        None if each is None else float32(what, to_numpy(what, each))
        for what, each in ((name, embeds), (twin, pooled))
    )
    dims = (getattr(first, "ndim", 0), getattr(second, "ndim", 0))
    if first is None or second is None or dims != (3, 2) or len(first) != len(second):
        got = " and ".join("none" if a is None else str(a.shape) for a in (first, second))
        expected = "(B, T, D) and (B, P) together"
        raise SizeError(f"{name} and {twin}", got=got, expected=expected)
    return Condition(first, second)
