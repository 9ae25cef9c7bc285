"""Picks the weights out of what a training run saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# where trainers keep the weights, beside the step, the optimiser and so on
NESTED = ("state_dict", "model_state_dict", "module", "model", "params_ema", "params")
EMBEDDINGS, EMBEDDING = (
    "string_to_param",
    "emb_params",
)  # AUTOMATIC1111's names, .pt and safetensors


def find_weights(loaded: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the tensors by name, and the names of all entries that are not among them.

    Takes the mapping under the first of `NESTED` that holds tensors, else the tensors of `loaded`
    itself; of a textual inversion of AUTOMATIC1111 its embedding, as `emb_params`. Names stay as
    they are.
    """
    if not isinstance(loaded, Mapping):
        return {}, [type(loaded).__name__]
    if isinstance(embeddings := loaded.get(EMBEDDINGS), Mapping) and len(embeddings) == 1:
        (value,) = embeddings.values()
        tensors = {EMBEDDING: value} if _is_tensor(value) else {}
        return tensors, [str(name) for name in loaded if name != EMBEDDINGS]
    key = next((key for key in NESTED if _has_tensors(loaded.get(key))), None)
    inner = loaded if key is None else loaded[key]
    left_out = [str(name) for name in loaded if key is not None and name != key]
    tensors = {name: value for name, value in inner.items() if _is_weight(name, value)}
    return tensors, left_out + [str(name) for name in inner if name not in tensors]


def _is_tensor(value: object) -> bool:
    """Returns whether a value is a tensor whose elements lie in memory."""
    return isinstance(value, torch.Tensor) and value.device.type != "meta"


def _is_weight(name: object, value: object) -> bool:
    """Returns whether an entry is a tensor with a name."""
    return isinstance(name, str) and _is_tensor(value)


def _has_tensors(value: object) -> bool:
    """Returns whether a value is a mapping that holds a tensor."""
    return isinstance(value, Mapping) and any(map(_is_tensor, value.values()))
