"""The whole route from a checkpoint to a published bundle."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import onnx_ir as ir

from eri_export import describe
from eri_export.checkpoint import Checkpoint
from eri_export.disk import require_space
from eri_export.names import check_names
from eri_export.parity import Compared, Report, compare
from eri_export.precision import Policy, make_policy
from eri_export.publish import records, staging, write_manifest
from eri_export.ranges import Ranges
from eri_export.real import real_inputs
from eri_export.recipes import recipes_for
from eri_export.recipes.base import Arrays, Recipe
from eri_export.sources import open_checkpoint
from eri_export.tokenizers import write_tokenizers
from eri_export.trace import trace
from eri_export.weights import bind, conversions, size_of, write_weights
from eri_runtime.spec import Bundle, ComponentSpec, FileRecord

log = logging.getLogger(__name__)

REPORT = "parity.json"
ORDER = (
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "vae_encoder",
    "vae_decoder",
    "denoiser",
)
USUAL = Ranges()
STAGES = 3  # of every component: trace, write, compare

# progress(what, done, total): `done` of `total` stages of a component, or of "publish", are over
Progress = Callable[[str, int, int], None]


def silent(_what: str, _done: int, _total: int) -> None:
    """The `Progress` of a caller who does not want to know."""


@dataclass(frozen=True)
class Exported:
    """A component in the bundle, and how it compared."""

    spec: ComponentSpec
    weights: FileRecord
    compared: Compared


class Sources(TypedDict, total=False):
    """What a checkpoint is read from beside its own path.

    `vae` and `text_encoders` are files or folders that supply or replace components; `config` is
    a folder of configs and tokenizers for a single file; `variant` and `revision` choose among
    what a folder or the Hub holds.
    """

    config: Path | None
    vae: Path | None
    text_encoders: Sequence[Path]
    variant: str | None
    revision: str | None


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    precision: str | Mapping[str, str] = "fp32",
    ranges: Ranges = USUAL,
    progress: Progress | None = None,
    **sources: Unpack[Sources],
) -> Bundle:
    """Export every component of a checkpoint into the bundle `output`, and publish it.

    `checkpoint` is a diffusers folder, a Hub id or a single file; `sources` are explained at
    `Sources`. `precision` is one for all, or `fp16,vae=fp32`, or a mapping with `*` for the rest.
    `ranges` are the sizes to serve, by `make_ranges`; the family's usual ones if left.
    Raises `CheckpointError` for what cannot be exported, `ParityError` for a graph that does not
    agree with PyTorch, `DiskError` for no room, `UsageError` for a bad argument; nothing is
    published then.
    """
    policy = make_policy(precision)
    opened = open_checkpoint(checkpoint, **sources)
    target = Path(output)
    with staging(target) as folder:
        bundle = _build(opened, folder, policy, progress or silent)
        write_manifest(bundle)
    return dataclasses.replace(bundle, root=target)


def _build(checkpoint: Checkpoint, folder: Path, policy: Policy, progress: Progress) -> Bundle:
    digest = checkpoint.digest()  # reads every header, so damage is found before hours of work
    tokenizers = write_tokenizers(checkpoint, folder)
    latents = describe.latent_spec(checkpoint)
    defaults = describe.defaults(checkpoint, latents, tokenizers)
    recipes = recipes_for(checkpoint, policy, latents, defaults, tokenizers)
    for recipe in recipes:
        check_names(recipe)  # here, and not after the minutes that tracing the first may take
    require_space(folder.parent, size_of(recipes))
    planned = Bundle(
        root=folder,
        family=checkpoint.family,
        components={recipe.name: _spec(recipe) for recipe in recipes},
        tokenizers=tokenizers,
        schedule=describe.schedule_spec(checkpoint),
        latents=latents,
        defaults=defaults,
        files={},
        guidance_embedding=describe.guidance_embedding(checkpoint),
        zero_empty_negative=describe.zero_empty_negative(checkpoint),
        source_digest=digest,
        built_with=describe.built_with(),
    )
    exported = _components(planned, recipes, progress)
    report = sum((each.compared.report for each in exported.values()), Report(()))
    (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    progress("publish", 0, 1)
    known = {each.spec.weights: each.weights for each in exported.values()}
    bundle = dataclasses.replace(
        planned,
        components={name: exported[name].spec for name in planned.components},
        files=records(folder, known),
    )
    progress("publish", 1, 1)
    return bundle


def _components(
    planned: Bundle, recipes: Iterable[Recipe], progress: Progress
) -> dict[str, Exported]:
    """Every component, the denoiser last: its real inputs are what the others made of theirs."""
    made: dict[str, Arrays] = {}
    exported: dict[str, Exported] = {}
    for recipe in sorted(recipes, key=lambda recipe: ORDER.index(recipe.name)):
        each = _component(recipe, planned, real_inputs(planned, recipe, made), progress)
        exported[recipe.name] = each
        if each.compared.made is not None:
            made[recipe.name] = each.compared.made
    return exported


def _component(
    recipe: Recipe, planned: Bundle, real: Arrays | None, progress: Progress
) -> Exported:
    """Traces, writes and compares one component; raises `ParityError` if it does not agree."""
    spec = planned.components[recipe.name]
    graph, weights = planned.path(spec.graph), planned.path(spec.weights)
    graph.parent.mkdir()
    progress(recipe.name, 0, STAGES)
    model = trace(recipe)
    progress(recipe.name, 1, STAGES)
    written = write_weights(weights, conversions(model, recipe.source.tensors))
    bind(model, written.tensors)
    ir.save(model, graph)
    progress(recipe.name, 2, STAGES)
    compared = compare(recipe, graph, spec, real)
    progress(recipe.name, STAGES, STAGES)
    worst = compared.report.worst(recipe.name)
    log.info("%s: relative error %.2g against PyTorch", recipe.name, worst)
    parameters = sum(math.prod(tensor.shape) for tensor in written.tensors.values())
    spec = dataclasses.replace(spec, parameters=parameters, parity=worst)
    return Exported(spec, written.record, compared)


def _spec(recipe: Recipe) -> ComponentSpec:
    """What the manifest says of a component, but for what is known only once it is written."""
    return ComponentSpec(
        graph=f"{recipe.name}/model.onnx",
        weights=f"{recipe.name}/weights.safetensors",
        precision=recipe.precision,
        kept_float32=recipe.kept_float32,
        inputs=tuple(each.spec for each in recipe.inputs),
        outputs=recipe.outputs,
        ranges=recipe.ranges,
        parameters=0,
        parity=0.0,
    )
