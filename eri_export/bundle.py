"""The whole route from a checkpoint to a published bundle."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import onnx_ir as ir

from eri_export import describe
from eri_export.checkpoint import Checkpoint
from eri_export.disk import require_space
from eri_export.names import check_names
from eri_export.parity import Metric, Report, compare
from eri_export.publish import records, staging, write_manifest
from eri_export.recipes import recipes_for
from eri_export.recipes.base import Recipe
from eri_export.sources import open_checkpoint
from eri_export.tokenizers import write_tokenizers
from eri_export.trace import trace
from eri_export.weights import bind, conversions, size_of, write_weights
from eri_runtime.errors import UnknownNameError
from eri_runtime.spec import Bundle, ComponentSpec, FileRecord, Precision

log = logging.getLogger(__name__)

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
REPORT = "parity.json"
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
    metrics: tuple[Metric, ...]


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    precision: Precision = "fp32",
    progress: Progress | None = None,
) -> Bundle:
    """Export every component of a diffusers folder into the bundle `output`, and publish it.

    Raises `CheckpointError` for what cannot be exported, `ParityError` for a graph that does not
    agree with PyTorch, `UsageError` for a bad argument; nothing is published then.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", got=precision, expected=" or ".join(PRECISIONS))
    opened = open_checkpoint(checkpoint)
    target = Path(output)
    with staging(target) as folder:
        bundle = _build(opened, folder, precision, progress or silent)
        write_manifest(bundle)
    return dataclasses.replace(bundle, root=target)


def _build(
    checkpoint: Checkpoint, folder: Path, precision: Precision, progress: Progress
) -> Bundle:
    digest = checkpoint.digest()  # reads every header, so damage is found before hours of work
    tokenizers = write_tokenizers(checkpoint, folder)
    latents = describe.latent_spec(checkpoint)
    defaults = describe.defaults(checkpoint, latents, tokenizers)
    schedule = describe.schedule_spec(checkpoint)
    recipes = recipes_for(checkpoint, precision, latents, defaults, tokenizers)
    for recipe in recipes:
        check_names(recipe)  # here, and not after the minutes that tracing the first may take
    require_space(folder.parent, size_of(recipes))
    exported = {recipe.name: _component(recipe, folder, progress) for recipe in recipes}
    progress("publish", 0, 1)
    metrics = tuple(metric for each in exported.values() for metric in each.metrics)
    (folder / REPORT).write_text(Report.of(metrics).to_json(), encoding="utf-8")
    bundle = Bundle(
        root=folder,
        family=checkpoint.family,
        components={name: each.spec for name, each in exported.items()},
        tokenizers=tokenizers,
        schedule=schedule,
        latents=latents,
        defaults=defaults,
        files=records(folder, {each.spec.weights: each.weights for each in exported.values()}),
        guidance_embedding=describe.guidance_embedding(checkpoint),
        zero_empty_negative=describe.zero_empty_negative(checkpoint),
        source_digest=digest,
        built_with=describe.built_with(),
    )
    progress("publish", 1, 1)
    return bundle


def _component(recipe: Recipe, folder: Path, progress: Progress) -> Exported:
    """Traces, writes and compares one component; raises `ParityError` if it does not agree."""
    home = folder / recipe.name
    home.mkdir()
    progress(recipe.name, 0, STAGES)
    model = trace(recipe)
    progress(recipe.name, 1, STAGES)
    written = write_weights(home / "weights.safetensors", conversions(model, recipe.source.tensors))
    bind(model, written.tensors)
    ir.save(model, home / "model.onnx")
    progress(recipe.name, 2, STAGES)
    spec = ComponentSpec(
        graph=f"{recipe.name}/model.onnx",
        weights=f"{recipe.name}/weights.safetensors",
        precision=recipe.precision,
        inputs=tuple(each.spec for each in recipe.inputs),
        outputs=recipe.outputs,
        ranges=recipe.ranges,
        parameters=sum(math.prod(tensor.shape) for tensor in written.tensors.values()),
        parity=0.0,
    )
    report = Report.of(compare(recipe, home / "model.onnx", spec))
    report.check()
    progress(recipe.name, STAGES, STAGES)
    worst = report.worst(recipe.name)
    log.info("%s: relative error %.2g against PyTorch", recipe.name, worst)
    return Exported(dataclasses.replace(spec, parity=worst), written.record, report.metrics)
