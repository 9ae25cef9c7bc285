"""The inputs and outputs of the model that runs the whole pipeline, and their values.

Every input is optional. A text is UTF-8; a prompt per image makes several images at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from eri_runtime.errors import UsageError, short
from eri_runtime.triton.config import DYNAMIC, DataType, Tensor

Array = NDArray[Any]
Read = Callable[[str], Array | None]  # the value of an input by name, None if it was left out

PREVIEWS = "previews"
ONE, MANY = (1,), (DYNAMIC,)


@dataclass(frozen=True)
class Argument:
    """An argument of a call of `Pipeline`, as an input.

    Attributes:
        name: The input's name.
        keyword: The argument's.
        data_type: The input's dtype.
        dims: `ONE` value, or `MANY`.
    """

    name: str
    keyword: str
    data_type: DataType
    dims: tuple[int, ...] = ONE


ARGUMENTS = (
    Argument("prompt", "prompt", "TYPE_STRING", MANY),
    Argument("negative_prompt", "negative_prompt", "TYPE_STRING", MANY),
    Argument("seed", "seed", "TYPE_UINT64", MANY),
    Argument("steps", "num_inference_steps", "TYPE_INT32"),
    Argument("guidance_scale", "guidance_scale", "TYPE_FP64"),
    Argument("height", "height", "TYPE_INT32"),
    Argument("width", "width", "TYPE_INT32"),
    Argument("sampler", "sampler", "TYPE_STRING"),
    Argument("images_per_prompt", "num_images_per_prompt", "TYPE_INT32"),
)
ANSWER = (
    Tensor(name="image", data_type="TYPE_UINT8", dims=(DYNAMIC, DYNAMIC, DYNAMIC, 3)),
    Tensor(name="parameters", data_type="TYPE_STRING", dims=MANY),
    Tensor(name="seeds", data_type="TYPE_UINT64", dims=MANY),
)
STEP = (
    Tensor(name="step", data_type="TYPE_INT32", dims=ONE),
    Tensor(name="total", data_type="TYPE_INT32", dims=ONE),
)


def pipeline_inputs(previews: bool) -> tuple[Tensor, ...]:
    """Returns the pipeline's inputs; with `previews`, also how many a request is to have."""
    inputs = tuple(
        Tensor(name=each.name, data_type=each.data_type, dims=each.dims, optional=True)
        for each in ARGUMENTS
    )
    wanted = Tensor(name=PREVIEWS, data_type="TYPE_INT32", dims=ONE, optional=True)
    return (*inputs, wanted) if previews else inputs


def pipeline_outputs(previews: bool) -> tuple[Tensor, ...]:
    """Returns the pipeline's outputs; with `previews`, also the step that an image shows."""
    return (*ANSWER, *STEP) if previews else ANSWER


def call_words(read: Read) -> dict[str, Any]:
    """Returns the arguments of a call from the inputs that a request has.

    Raises `UsageError` for a text that is not UTF-8, and for no value or several where one is
    expected. `Pipeline.request` checks the rest.
    """
    values = {each: read(each.name) for each in ARGUMENTS}
    return {each.keyword: _value(each, v) for each, v in values.items() if v is not None}


def previews_of(read: Read) -> int:
    """Returns how many previews a request asks for; raises `UsageError` unless it is 0 or more."""
    array = read(PREVIEWS)
    if array is None:
        return 0
    if array.size != 1 or array.item() < 0:
        raise UsageError(PREVIEWS, got=short(array.tolist()), expected="one integer, 0 or more")
    return int(array.item())


def answer(
    images: Sequence[Any], parameters: Sequence[str], seeds: Sequence[int], step: int, total: int
) -> dict[str, Array]:
    """Returns the outputs' values.

    Args:
        images: PIL images of one size.
        parameters: The `parameters` text of each; empty for a preview.
        seeds: The seed of each.
        step: Number of steps made.
        total: Number of steps in all.
    """
    return {
        "image": np.stack([np.asarray(image.convert("RGB"), np.uint8) for image in images]),
        "parameters": np.array([text.encode() for text in parameters], object),
        "seeds": np.array(seeds, np.uint64),
        "step": np.array([step], np.int32),
        "total": np.array([total], np.int32),
    }


def _value(argument: Argument, array: Array) -> Any:
    """Returns the value of an argument: one, or a list of several."""
    flat = array.reshape(-1).tolist()
    if argument.data_type == "TYPE_STRING":
        flat = [_text(argument.name, each) for each in flat]
    if len(flat) == 1:
        return flat[0]
    if argument.dims == ONE or not flat:
        raise UsageError(argument.name, got=f"{len(flat)} values", expected="one value")
    return flat


def _text(name: str, value: bytes | str) -> str:
    """Returns a text that Triton gives as bytes; raises `UsageError` if it is not UTF-8."""
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UsageError(name, got=short(value), expected="text in UTF-8") from error


def parameter(config: Mapping[str, Any], key: str) -> str:
    """Returns a parameter of a model's configuration, as Triton hands it over in JSON."""
    return cast("str", config["parameters"][key]["string_value"])
