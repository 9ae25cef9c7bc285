"""Finds each of a network's weights in the checkpoint's files; the graph uses the file's name."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from eri_export.checkpoints import TORCH_DTYPES, Component, StoredTensor
from eri_export.graphs.recipes.base import Recipe
from eri_runtime.errors import CheckpointError, DamagedWeightsError, short

# Tensors of published files that the network does not read.
IGNORED = re.compile(
    r"(.*\.)?position_ids"  # once saved, now computed
    r"|decoder\..*|lm_head\.weight"  # a whole T5, of which the encoder is read
    r"|vision_model\..*|visual_projection\.weight|logit_scale"  # a whole CLIP
    r"|(text_model\.)?text_projection\.weight"  # CLIP with a head, read without
)
IGNORED_IN = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"})

WORD = re.compile(r"[\w.-]{1,150}", re.ASCII)

# The VAE's attention since diffusers 0.18 -> before.
LEGACY_VAE = {
    ".to_q.": ".query.",
    ".to_k.": ".key.",
    ".to_v.": ".value.",
    ".to_out.0.": ".proj_attn.",
}
FLOATS = [name for name, dtype in TORCH_DTYPES.items() if dtype.is_floating_point]
SHOWN = 5  # names listed in an error
MOST_WEIGHTS = 10_000  # tensors of a network; SDXL's UNet has the most, 1680


def check_names(recipe: Recipe) -> dict[str, str]:
    """Builds a recipe's network without memory for its weights and returns its `file_names`.

    Raises `DamagedWeightsError` if the checkpoint does not hold exactly the weights of its config,
    and `CheckpointError` if no network can be built from the config.
    """
    source = recipe.source
    try:
        with torch.device("meta"), _at_most(MOST_WEIGHTS):
            network = recipe.build()
    except Exception as error:  # whatever the network's own code raises for a wrong config
        raise CheckpointError(
            source.origin,
            got=f"{type(error).__name__}: {short(str(error))}",
            expected=f"a config that a {source.class_name} can be made from",
        ) from error
    return file_names(network, source)


@contextlib.contextmanager
def _at_most(weights: int) -> Iterator[None]:
    """Stops building a network whose config needs more than so many weights."""
    counted = itertools.count(1)

    def count(_module: nn.Module, _name: str, _weight: nn.Parameter) -> None:
        if next(counted) > weights:
            raise ValueError(f"more than {weights} weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def file_names(network: nn.Module, source: Component) -> dict[str, str]:
    """Returns the name in `source`'s files of every persistent tensor of `network`.

    Raises `DamagedWeightsError` if a name is missing or unknown or a shape differs.
    """
    stored, names, missing = source.tensors, {}, []
    for name, value in network.state_dict().items():
        file_name = next((alias for alias in _aliases(name, network) if alias in stored), None)
        if file_name is None:
            missing.append(name)
            continue
        _check_shape(source, stored[file_name], tuple(value.shape))
        _check_type(stored[file_name], value.dtype)
        names[name] = file_name
    _check_complete(source, missing, set(stored) - set(names.values()))
    return names


def _aliases(name: str, network: nn.Module) -> Iterator[str]:
    """Yields the names under which a weight may have been saved, the current one first."""
    yield name
    yield f"text_model.{name}"  # transformers 4 wrapped CLIP's text model in another module
    yield name.removeprefix("text_model.")
    tied: Mapping[str, str] = getattr(network, "all_tied_weights_keys", None) or {}
    for one, other in tied.items():
        if name in (one, other):
            yield other if name == one else one
    for new, old in LEGACY_VAE.items():
        if new in name:
            yield name.replace(new, old)


def _check_shape(source: Component, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise DamagedWeightsError(
            f"{tensor.file}: {short(tensor.name)}",
            got=f"shape {short(list(tensor.shape))}",
            expected=f"{list(shape)}, by the config of {source.origin}",
        )


def _check_type(tensor: StoredTensor, dtype: torch.dtype) -> None:
    """Raises `DamagedWeightsError` for a real weight stored as integers, which is quantised."""
    if dtype.is_floating_point and tensor.dtype not in FLOATS:
        raise DamagedWeightsError(
            f"{tensor.file}: {short(tensor.name)}",
            got=f"type {tensor.dtype}",
            expected=f"one of {', '.join(FLOATS)}",
            fix="export a checkpoint that is not quantised",
        )


def _check_complete(source: Component, missing: list[str], unread: set[str]) -> None:
    if source.class_name in IGNORED_IN:
        unread = {name for name in unread if not IGNORED.fullmatch(name)}
    for what, names in (("no", missing), ("unknown", sorted(unread))):
        if names:
            raise DamagedWeightsError(
                source.origin,
                got=f"{what} {_listed(names)}",
                expected=f"exactly the weights of a {source.class_name} with this config",
            )


def _listed(names: list[str]) -> str:
    """Returns a few of the names as text; one that is no usual weight name is quoted and cut."""
    shown = [name if WORD.fullmatch(name) else short(name) for name in names[:SHOWN]]
    return ", ".join(shown) + (", ..." if names[SHOWN:] else "")
