"""Embeddings of weighted texts: windows of tokens through the text encoders, then the weights.

With z (T, D) the hidden states of one window and w (T,) the weights of its tokens, the embeddings
are z' = w·z·mean(z)/mean(w·z), so that the mean of all T·D values stays as it was. Source:
`EmphasisOriginal` in `modules/sd_emphasis.py` of AUTOMATIC1111's stable-diffusion-webui. Pooled
embeddings are those of the first window, without weights, as there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import SizeError, short
from eri_runtime.text.syntax import WeightedText
from eri_runtime.text.tokenizer import PromptTokenizer
from eri_runtime.text.windows import cut_windows, one_window

Array = NDArray[np.float32]
Outputs = Mapping[str, NDArray[Any]]
RunEncoder = Callable[[str, NDArray[np.int64]], Outputs]  # component and ids (B, T) -> outputs

CLIPS = ("text_encoder", "text_encoder_2")  # of SDXL and SD3.5

log = logging.getLogger(__name__)


def apply_weights(states: Array, weights: NDArray[np.float64]) -> Array:
    """Returns the hidden states of one window (T, D) times weights (T, 1) or (T, D).

    They keep their mean. Where the weighted mean is 0 it cannot be restored, and stays. Weights of
    1 change no bit.
    """
    if (weights == 1).all():
        return states
    weighted = states * weights
    before, after = states.mean(dtype=np.float64), weighted.mean()
    restored: Array = (weighted * (before / after if after else 1.0)).astype(np.float32)
    return restored


class WeightedEncoding:
    """Runs the text encoders of one bundle on weighted texts.

    Args:
        tokenizers: The tokenizers by component, such as `text_encoder_2`.
        run: Runs a text encoder on token ids.
    """

    def __init__(self, tokenizers: Mapping[str, PromptTokenizer], run: RunEncoder) -> None:
        self._tokenizers, self._run = tokenizers, run

    def count(self, component: str, text: WeightedText) -> int:
        """Returns the number of windows of a CLIP that a text takes."""
        return len(cut_windows(self._tokenizers[component], text).ids)

    def sdxl(self, text: WeightedText) -> tuple[Array, Array]:
        """Returns embeddings (1, n·T, D) and pooled (1, P): each CLIP with a mean of its own."""
        first, second = (self._clip(clip, text) for clip in CLIPS)
        parts = [
            np.concatenate([apply_weights(states, weights) for states, weights in windows])
            for windows in (first.windows, second.windows)
        ]
        return np.concatenate(parts, axis=-1)[None], _pooled(second)

    def sd35_clips(self, text: WeightedText) -> tuple[Array, Array]:
        """Returns the CLIPs' embeddings (1, n·T, D) and pooled (1, P): one mean for both."""
        first, second = (self._clip(clip, text) for clip in CLIPS)
        windows = []
        for own, other in zip(first.windows, second.windows, strict=True):
            states = np.concatenate([own[0], other[0]], axis=-1)
            weights = [np.broadcast_to(weights, states.shape) for states, weights in (own, other)]
            windows.append(apply_weights(states, np.concatenate(weights, axis=-1)))
        pooled = np.concatenate([_pooled(first), _pooled(second)], axis=-1)
        return np.concatenate(windows)[None], pooled

    def pooled(self, component: str, text: WeightedText) -> Array:
        """Returns the pooled embedding (1, P) of a text's first window."""
        ids = cut_windows(self._tokenizers[component], text).ids[:1]
        pooled: Array = self._run(component, ids)["pooled"]
        return pooled

    def t5(self, component: str, text: WeightedText, length: int, *, weighted: bool) -> Array:
        """Returns T5's embeddings (1, length, D) of all of a text, cut with a warning.

        `weighted` says whether its weights act here.
        """
        tokenizer = self._tokenizers[component]
        most = tokenizer.spec.max_length
        if not 2 <= length <= most:
            raise SizeError(f"{tokenizer.name}: token length", got=length, expected=f"2 to {most}")
        window, whole = one_window(tokenizer, text.pieces, length)
        if not whole:
            log.warning("%s: %s is cut to %d tokens", tokenizer.name, short(str(text)), length)
        states: Array = self._run(component, window.ids)["hidden_states"]
        return apply_weights(states[0], window.weights[0][:, None])[None] if weighted else states

    def _clip(self, component: str, text: WeightedText) -> _Encoded:
        """Runs one of two CLIPs on a text's windows, as many as the one takes that takes most."""
        count = max(text.windows, *(self.count(clip, text) for clip in CLIPS))
        windows = cut_windows(self._tokenizers[component], replace(text, windows=count))
        outputs = [self._run(component, ids[None]) for ids in windows.ids]
        states = [each["hidden_states"][0] for each in outputs]
        weights = windows.weights[..., None]
        return _Encoded([*zip(states, weights, strict=True)], outputs[0].get("pooled"))


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What one CLIP makes of a text.

    Attributes:
        windows: Hidden states (T, D) and weights (T, 1) of each window.
        pooled: The first window's pooled embedding, (1, P); SDXL's first CLIP has none.
    """

    windows: list[tuple[Array, NDArray[np.float64]]]
    pooled: Array | None


def _pooled(encoded: _Encoded) -> Array:
    """Returns the pooled embedding of a CLIP that has one."""
    assert encoded.pooled is not None  # noqa: S101 both families pool it
    return encoded.pooled
