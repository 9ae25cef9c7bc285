"""What an export will build: all that is known before a network is traced or a weight is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from eri_export import describe
from eri_export.baking import Lora, bake, with_baked
from eri_export.checkpoint import Checkpoint
from eri_export.names import check_names
from eri_export.precision import Policy, make_policy
from eri_export.ranges import USUAL, Ranges
from eri_export.recipes import recipes_for
from eri_export.recipes.base import Recipe
from eri_export.sources import open_checkpoint
from eri_export.tokenizers import ReadTokenizer, read_tokenizers
from eri_runtime.errors import UsageError
from eri_runtime.spec import Bundle, ComponentSpec

# both are read from the checkpoint's one VAE
HALVES: Mapping[str, tuple[str, ...]] = {
    "vae_encoder": ("encoder.", "quant_conv."),
    "vae_decoder": ("decoder.", "post_quant_conv."),
}
SLICED = ("denoiser", *HALVES)

# heads of attention at a time: a number, one, half of them, or all
Slice = int | Literal["max", "auto"] | None


class Sources(TypedDict, total=False):
    """What a checkpoint is read from beside its own path.

    `vae` and `text_encoders` are files or folders, or files of the Hub, that supply or replace
    components; `config` is a folder of configs and tokenizers for a single file; `variant` and
    `revision` choose among what a folder or the Hub holds.
    """

    config: Path | None
    vae: str | Path | None
    text_encoders: Sequence[str | Path]
    variant: str | None
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checkpoint, and the bundle it will be.

    `bundle` has no place and no files yet, and its components no parameters and no errors.
    `weights` are the bytes of each component's file, or a little more: a graph may leave out the
    weights that its outputs do not need.
    """

    checkpoint: Checkpoint
    bundle: Bundle
    recipes: tuple[Recipe, ...]
    tokenizers: Mapping[str, ReadTokenizer]
    weights: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(self.weights.values())


def make_plan(
    checkpoint: str | Path,
    *,
    precision: str | Mapping[str, str] = "fp32",
    ranges: Ranges = USUAL,
    lora_rank: int | None = None,
    attention_slice: Slice = None,
    loras: Sequence[Lora] = (),
    **sources: Unpack[Sources],
) -> Plan:
    """What `export` with these arguments would build; only headers and configs are read.

    So damage is found before hours of work: this raises all that `export` does before it traces,
    but for what is wrong with its output.
    """
    policy = make_policy(precision)
    opened = open_checkpoint(checkpoint, **sources)
    heads = slice_of(attention_slice, describe.attention_heads(opened))
    plan = _plan(bake(opened, loras), policy, ranges, lora_rank)
    bundle = with_baked(_with_slices(plan.bundle, heads), loras)
    return dataclasses.replace(plan, bundle=bundle)


def _plan(checkpoint: Checkpoint, policy: Policy, ranges: Ranges, lora_rank: int | None) -> Plan:
    digest = checkpoint.digest()
    tokenizers = read_tokenizers(checkpoint)
    specs = {name: each.spec for name, each in tokenizers.items()}
    latents = describe.latent_spec(checkpoint)
    defaults = describe.defaults(checkpoint, latents, specs, ranges)
    recipes = tuple(
        _with_rank(recipe, lora_rank) if recipe.name == "denoiser" else recipe
        for recipe in recipes_for(checkpoint, policy, latents, defaults, specs, ranges)
    )
    bundle = Bundle(
        root=Path(),
        family=checkpoint.family,
        components={recipe.name: spec_of(recipe) for recipe in recipes},
        tokenizers=specs,
        schedule=describe.schedule_spec(checkpoint),
        latents=latents,
        defaults=defaults,
        files={},
        guidance_embedding=describe.guidance_embedding(checkpoint),
        zero_empty_negative=describe.zero_empty_negative(checkpoint),
        source_digest=digest,
        built_with=describe.built_with(),
    )
    return Plan(
        checkpoint=checkpoint,
        bundle=bundle,
        recipes=recipes,
        tokenizers=tokenizers,
        weights={recipe.name: _nbytes(recipe) for recipe in recipes},
    )


def slice_of(wanted: Slice, heads: Sequence[int]) -> int | None:
    """How many heads are computed at a time, by what is wanted and what the denoiser's layers have.

    `max` is one; `auto` is half the heads of the layer that has the fewest, which is the one with
    the most tokens. Raises `UsageError` for what would slice no layer, or is no such number.
    """
    if wanted is None:
        return None
    most = max(heads)
    number = {"max": 1, "auto": max(1, min(heads) // 2)}.get(str(wanted), wanted)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < most:
        named = f"max, auto or a whole number from 1 to {most - 1}, fewer than a layer has heads"
        expected = named if most > 1 else "nothing, as no layer has more than one head"
        raise UsageError("attention_slice", got=repr(wanted), expected=expected)
    return number


def _with_slices(bundle: Bundle, heads: int | None) -> Bundle:
    """The bundle whose networks with images in them compute attention so many heads at a time."""
    components = {
        name: dataclasses.replace(spec, attention_slice=heads if name in SLICED else None)
        for name, spec in bundle.components.items()
    }
    return dataclasses.replace(bundle, components=components)


def _with_rank(recipe: Recipe, rank: int | None) -> Recipe:
    """The recipe of a graph that takes LoRAs up to `rank`; raises `UsageError` for none such."""
    if rank is None:
        return recipe
    most = max(min(shape) for shape in lora_targets(recipe).values())
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        expected = f"a whole number from 1 to {most}, the smaller side of the largest layer"
        raise UsageError("lora_rank", got=repr(rank), expected=expected)
    loose = None if recipe.loose is None else _with_rank(recipe.loose, rank)
    return dataclasses.replace(recipe, lora_rank=rank, loose=loose)


def lora_targets(recipe: Recipe) -> Mapping[str, tuple[int, int]]:
    """The linear weights (out, in) of a denoiser by name: all its matrices."""
    shapes = ((name, tensor.shape) for name, tensor in recipe.source.tensors.items())
    return {name: (shape[0], shape[1]) for name, shape in shapes if len(shape) == 2}


def unneeded(recipe: Recipe, written: Collection[str]) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the weights of a network that are not `written`, as its graph needs them not."""
    own, tensors = HALVES.get(recipe.name, ("",)), recipe.source.tensors
    return {
        stored: tensors[stored].shape
        for name, stored in check_names(recipe).items()
        if name.startswith(own) and stored not in written
    }


def _nbytes(recipe: Recipe) -> int:
    """Bytes of the weights that a network has, each once, in the types of its export."""
    own = HALVES.get(recipe.name, ("",))
    sizes = {
        stored: math.prod(recipe.source.tensors[stored].shape) * recipe.weight_dtype(name).itemsize
        for name, stored in check_names(recipe).items()
        if name.startswith(own)
    }
    return sum(sizes.values())


def spec_of(recipe: Recipe) -> ComponentSpec:
    """What the manifest says of a component, but for what is known only once it is written."""
    return ComponentSpec(
        graph=f"{recipe.name}/model.onnx",
        step=f"{recipe.name}/step.onnx" if recipe.name == "denoiser" else None,
        weights=f"{recipe.name}/weights.safetensors",
        precision=recipe.precision,
        kept_float32=recipe.kept_float32,
        inputs=tuple(each.spec for each in recipe.inputs),
        outputs=recipe.outputs,
        ranges=recipe.ranges,
        parameters=0,
        parity=0.0,
    )
