"""Plans an export: reads headers and configs only, and finds errors before any long work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from eri_export.checkpoints import Checkpoint, manifest_facts
from eri_export.checkpoints.config_keys import check_keys
from eri_export.checkpoints.sources import open_checkpoint
from eri_export.checkpoints.tokenizers import ReadTokenizer, read_tokenizers
from eri_export.choices import USUAL, Policy, Ranges, make_policy
from eri_export.graphs.recipes import recipes_for
from eri_export.graphs.recipes.base import Recipe
from eri_export.graphs.weight_names import check_names
from eri_export.weights.merged_loras import Lora, merge_loras, with_merged_loras
from eri_runtime.bundle import Bundle, ComponentSpec, hub
from eri_runtime.errors import UsageError, short
from eri_runtime.weights import find_lora

# the prefixes of each half's weights in the checkpoint's VAE
VAE_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "vae_encoder": ("encoder.", "quant_conv."),
    "vae_decoder": ("decoder.", "post_quant_conv."),
}
SLICED = ("denoiser", *VAE_PREFIXES)

# heads of attention at a time: a number, "max" for one, "auto" for half of them, None for all
Slice = int | Literal["max", "auto"] | None


class Sources(TypedDict, total=False):
    """What a checkpoint is read from in addition to its own path; see `open_checkpoint`.

    Attributes:
        config: A folder of configs and tokenizers, for a single file.
        vae: A file or folder, or a file of the Hub, with a VAE to add or replace.
        text_encoders: Files or folders, or files of the Hub, with text encoders to add or replace.
        variant: The variant of a folder's weights to read, such as "fp16".
        revision: The branch, tag or commit of the Hub's repository.
        scheduler: A preset for a distilled model, or the path of a scheduler's config.
    """

    config: Path | None
    vae: str | Path | None
    text_encoders: Sequence[str | Path]
    variant: str | None
    revision: str | None
    scheduler: str | Path | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of an export, which `make_plan` returns.

    Attributes:
        checkpoint: The opened checkpoint, with LoRAs merged in.
        bundle: The bundle to build. It has no folder and no files yet, and its components have no
            parameter counts and no errors.
        recipes: How each component is exported.
        tokenizers: The bundle's tokenizers.
        weights: Bytes of each component's weights file, an upper bound: a graph omits weights that
            its outputs do not need.
    """

    checkpoint: Checkpoint
    bundle: Bundle
    recipes: tuple[Recipe, ...]
    tokenizers: Mapping[str, ReadTokenizer]
    weights: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """The bytes of all weights."""
        return sum(self.weights.values())


def make_plan(
    checkpoint: str | Path,
    *,
    precision: str | Mapping[str, str] = "fp32",
    ranges: Ranges = USUAL,
    lora_rank: int | None = None,
    attention_slice: Slice = None,
    loras: Sequence[Lora] = (),
    lora_partial: bool = False,
    **sources: Unpack[Sources],
) -> Plan:
    """Plans an export from headers and configs, without reading weights.

    It makes all the checks that `export` makes before it traces, except those of the output
    folder.

    Args:
        checkpoint: A diffusers folder, a safetensors file, or an id of the Hugging Face Hub.
        precision: "fp32", "fp16" or "bf16", or one per component, such as "fp16,vae=fp32" or
            {"*": "fp16", "vae": "fp32"}.
        ranges: Sizes to serve, made by `make_ranges`; default: the family's usual ones.
        lora_rank: The highest rank of LoRAs that the denoiser takes as inputs; default: it takes
            none.
        attention_slice: Attention heads to compute at a time: a number, "max" for one, "auto" for
            half of them; default: all.
        loras: Files and scales of LoRAs to merge into the weights.
        lora_partial: Whether to leave out keys of a LoRA that match no weight, with a warning.
        **sources: Where the checkpoint's parts are read from, as for `open_checkpoint`.

    Returns:
        The plan.

    Raises:
        NotACheckpointError: If the path is no checkpoint, or a file of it is missing.
        PickleError: If the weights are pickled.
        CheckpointError: If the model cannot be exported or its configs do not fit.
        DamagedWeightsError: If weights are missing, unknown or of the wrong shape.
        HubError: If the Hub's repository cannot be downloaded.
        LoraError: If a LoRA does not fit the checkpoint.
        SizeError: If the networks do not support the requested sizes.
        UnknownNameError: If a precision or component is unknown.
        UsageError: If another argument is invalid.

    Example:
        With a checkpoint in `./sdxl`:

            plan = make_plan("./sdxl", precision="fp16")
            print(plan.nbytes, [recipe.name for recipe in plan.recipes])
    """
    policy = make_policy(precision)
    opened = open_checkpoint(checkpoint, **sources)
    heads = slice_of(attention_slice, manifest_facts.attention_heads(opened))
    files = _lora_files(loras)
    plan = _plan(merge_loras(opened, files, lora_partial), policy, ranges, lora_rank)
    bundle = with_merged_loras(_with_slices(plan.bundle, heads), files)
    return dataclasses.replace(plan, bundle=bundle)


def _lora_files(loras: Sequence[Lora]) -> list[Lora]:
    """Returns the LoRAs' files with their scales; raises `UsageError` for a file given twice."""
    found: dict[Path, Lora] = {}
    for path, scale in loras:
        file = find_lora(path)
        place = file.resolve() if hub.path_exists(file) else file
        if place in found:
            got = f"{path} twice"
            fix = "give it once, with the sum of its scales"
            raise UsageError("loras", got=got, expected="each LoRA once", fix=fix)
        found[place] = file, scale
    return list(found.values())


def _plan(checkpoint: Checkpoint, policy: Policy, ranges: Ranges, lora_rank: int | None) -> Plan:
    check_keys(checkpoint)
    digest = checkpoint.digest()
    tokenizers = read_tokenizers(checkpoint)
    specs = {name: each.spec for name, each in tokenizers.items()}
    latents = manifest_facts.latent_spec(checkpoint)
    defaults = manifest_facts.defaults(checkpoint, latents, specs, ranges)
    recipes = tuple(
        _with_rank(recipe, lora_rank) if recipe.name == "denoiser" else recipe
        for recipe in recipes_for(checkpoint, policy, latents, defaults, specs, ranges)
    )
    bundle = Bundle(
        root=Path(),
        family=checkpoint.family,
        components={recipe.name: spec_of(recipe) for recipe in recipes},
        tokenizers=specs,
        schedule=manifest_facts.schedule_spec(checkpoint),
        latents=latents,
        defaults=defaults,
        files={},
        guidance_embedding=manifest_facts.guidance_embedding(checkpoint),
        zero_empty_negative=manifest_facts.zero_empty_negative(checkpoint),
        source_digest=digest,
        built_with=manifest_facts.built_with(),
    )
    return Plan(
        checkpoint=checkpoint,
        bundle=bundle,
        recipes=recipes,
        tokenizers=tokenizers,
        weights={recipe.name: _nbytes(recipe) for recipe in recipes},
    )


def slice_of(wanted: Slice, heads: Sequence[int]) -> int | None:
    """Returns how many heads to compute at a time; `heads` are those of the denoiser's layers.

    "max" means one; "auto" is half the heads of the layer that has the fewest, which has the most
    tokens. Raises `UsageError` for a number that slices no layer, and for anything else.
    """
    if wanted is None:
        return None
    most = max(heads)
    number = {"max": 1, "auto": max(1, min(heads) // 2)}.get(str(wanted), wanted)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < most:
        named = f"max, auto or a whole number from 1 to {most - 1}, fewer than a layer has heads"
        expected = named if most > 1 else "nothing, as no layer has more than one head"
        raise UsageError("attention_slice", got=short(wanted), expected=expected)
    return number


def _with_slices(bundle: Bundle, heads: int | None) -> Bundle:
    """Returns the bundle with this attention slice for its denoiser and VAE."""
    components = {
        name: dataclasses.replace(spec, attention_slice=heads if name in SLICED else None)
        for name, spec in bundle.components.items()
    }
    return dataclasses.replace(bundle, components=components)


def _with_rank(recipe: Recipe, rank: int | None) -> Recipe:
    """Returns the recipe of a graph that takes LoRAs up to `rank`; `UsageError` for a bad rank."""
    if rank is None:
        return recipe
    most = max(min(shape) for shape in lora_targets(recipe).values())
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        expected = f"a whole number from 1 to {most}, the smaller side of the largest layer"
        raise UsageError("lora_rank", got=short(rank), expected=expected)
    loose = None if recipe.loose is None else _with_rank(recipe.loose, rank)
    return dataclasses.replace(recipe, lora_rank=rank, loose=loose)


def lora_targets(recipe: Recipe) -> Mapping[str, tuple[int, int]]:
    """Returns the shapes (out, in) of a denoiser's linear weights by name: all its matrices."""
    shapes = ((name, tensor.shape) for name, tensor in recipe.source.tensors.items())
    return {name: (shape[0], shape[1]) for name, shape in shapes if len(shape) == 2}


def unneeded(recipe: Recipe, written: Collection[str]) -> Mapping[str, tuple[int, ...]]:
    """Returns the shapes of a network's weights that its graph does not need: not in `written`."""
    prefixes, tensors = VAE_PREFIXES.get(recipe.name, ("",)), recipe.source.tensors
    return {
        stored: tensors[stored].shape
        for name, stored in check_names(recipe).items()
        if name.startswith(prefixes) and stored not in written
    }


def _nbytes(recipe: Recipe) -> int:
    """Returns the bytes of a network's weights, each once, in the types of the export."""
    prefixes = VAE_PREFIXES.get(recipe.name, ("",))
    sizes = {
        stored: math.prod(recipe.source.tensors[stored].shape) * recipe.weight_dtype(name).itemsize
        for name, stored in check_names(recipe).items()
        if name.startswith(prefixes)
    }
    return sum(sizes.values())


def spec_of(recipe: Recipe) -> ComponentSpec:
    """Returns a component's entry of the manifest, without what is known only after writing it."""
    return ComponentSpec(
        graph=f"{recipe.name}/model.onnx",
        step=f"{recipe.name}/step.onnx" if recipe.name == "denoiser" else None,
        step_per_image=recipe.name == "denoiser",
        weights=f"{recipe.name}/weights.safetensors",
        precision=recipe.precision,
        kept_float32=recipe.kept_float32,
        inputs=tuple(each.spec for each in recipe.inputs),
        outputs=recipe.outputs,
        ranges=recipe.ranges,
        parameters=0,
        parity=0.0,
    )
