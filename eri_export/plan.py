"""What an export will build: all that is known before a network is traced or a weight is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

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
    loras: Sequence[Lora] = (),
    **sources: Unpack[Sources],
) -> Plan:
    """What `export` with these arguments would build; only headers and configs are read.

    So damage is found before hours of work: this raises all that `export` does before it traces,
    but for what is wrong with its output.
    """
    policy = make_policy(precision)
    opened = open_checkpoint(checkpoint, **sources)
    plan = _plan(bake(opened, loras), policy, ranges, lora_rank)
    return dataclasses.replace(plan, bundle=with_baked(plan.bundle, loras))


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
