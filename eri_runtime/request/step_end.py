"""`callback_on_step_end`: a function that sees, changes and stops a call between its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from eri_runtime.bundle import Bundle
from eri_runtime.checks import function, items, one_of
from eri_runtime.errors import UsageError

POOLED = {"sdxl": "add_text_embeds", "sd35": "pooled_prompt_embeds", "flux": "pooled_prompt_embeds"}
MICRO = "add_time_ids"  # SDXL's micro-conditioning


@dataclass(frozen=True)
class StepEnd:
    """The checked `callback_on_step_end` of a call.

    Attributes:
        function: Called as `function(pipe, step, timestep, arrays)`.
        inputs: Names of the arrays that it gets.
        torch: Whether it gets torch tensors instead of NumPy arrays.
    """

    function: Callable[..., Any]
    inputs: tuple[str, ...]
    torch: bool


def tensor_inputs(family: str) -> tuple[str, ...]:
    """Returns the names of the arrays that a callback may ask for."""
    own = (MICRO,) if family == "sdxl" else ()
    return ("latents", "prompt_embeds", POOLED[family], *own)


def check_step_end(bundle: Bundle, words: Mapping[str, Any]) -> StepEnd | None:
    """Returns the callback of a call, or None.

    A callback object of diffusers names its arrays itself, in `tensor_inputs`. Raises `UsageError`
    for what is no function and `UnknownNameError` for arrays that no callback gets.
    """
    callback = words.get("callback_on_step_end")
    name = "callback_on_step_end_tensor_inputs"
    names = words.get(name, getattr(callback, "tensor_inputs", ["latents"]))
    listed = items(name, names, "a list of names")
    allowed = tensor_inputs(bundle.family)
    checked = tuple(one_of(name, each, allowed) for each in listed)
    if callback is None:
        if name in words and checked != ("latents",):
            raise UsageError(name, got="no callback_on_step_end", expected="one to go with it")
        return None
    function("callback_on_step_end", callback, "a function (pipe, step, timestep, arrays)")
    return StepEnd(callback, checked, _speaks_torch(words))


def _speaks_torch(words: Mapping[str, Any]) -> bool:
    """Returns whether a call brings something of torch, or asks for tensors."""
    values = [words.get("generator"), words.get("latents"), words.get("prompt_embeds")]
    if isinstance(values[0], list | tuple) and values[0]:
        values.append(values[0][0])
    kinds = {type(value).__module__.partition(".")[0] for value in values}
    return "torch" in kinds or words.get("output_type") == "pt"
