"""Upgrades a bundle: adds what bundles exported now have, and publishes the result.

That is a step graph for a row per image, and the denoiser's parts for step caching. Everything
comes from the bundle itself: the denoiser's graph and its weights stay as they are. The new bundle
holds hard links to the old one's files and the new graphs; one exchange of the two folders' names
publishes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from eri_export.gate.segments import check_parts
from eri_export.gate.step_graph import STEP
from eri_export.gate.upgraded_step import compare_step_graphs
from eri_export.graphs.load_graph import load_graph
from eri_export.graphs.passes.first_block import find_cut, write_cache_parts
from eri_export.graphs.step_graph import compose
from eri_export.progress import WHOLE, Listener, silent, stage
from eri_export.publishing.atomic_publish import records, staging, write_manifest
from eri_export.publishing.linked_files import current_bundle, link_files, locked
from eri_runtime.bundle import (
    DENOISER,
    Bundle,
    ComponentSpec,
    SegmentSpec,
    manifest,
    verify_hashes,
    verify_sizes,
)
from eri_runtime.errors import ExportError
from eri_runtime.executors.ort.provider import DEVICES, form_of


@dataclass(frozen=True)
class Upgrade:
    """The result of an upgrade.

    Attributes:
        bundle: The bundle, as it is now.
        error: Largest relative error of the new step graph, against its formula and the older one.
            None: the bundle had a step graph for a row per image.
        parts: Whether the bundle got the denoiser's parts for step caching.
        dropped: The plans that were built from the older step graph, which the bundle has no more.
    """

    bundle: Bundle
    error: float | None = None
    parts: bool = False
    dropped: tuple[str, ...] = ()


def upgrade(root: str | Path, *, progress: Listener = silent) -> Upgrade:
    """Gives an older bundle a step graph that takes a row, and any conditions, for each image.

    And the denoiser's parts for step caching, if it has two blocks. The step graph's CUDA form is
    composed too, if the denoiser has one. TensorRT plans of the older step graph are dropped: they
    take other inputs. On an error or interrupt the bundle stays as it was.

    Args:
        root: The bundle's folder.
        progress: A function to call with each `Progress` event.

    Returns:
        The upgraded bundle, and what changed.

    Raises:
        NotABundleError: If there is no bundle.
        ManifestError: If its manifest is invalid.
        IntegrityError: If a file of the bundle is damaged.
        ExportError: If the denoiser's graph is none, or the bundle was replaced meanwhile.
        ParityError: If the new step graph does not compute what the older one does.
        BackendError: If ONNX Runtime refuses a graph.
        DiskError: If the disk is full or fails.
    """
    bundle, root = manifest.read(root), Path(root)
    spec = bundle.components[DENOISER]
    made = {} if spec.step_per_image else dict(_step_graphs(bundle))
    if not made and spec.step_cache:
        return Upgrade(bundle)
    older = () if spec.step is None or not made else (spec.step,)
    sources = {spec.graph, spec.weights, *older, *made.values()}
    verify_sizes(bundle)
    verify_hashes(bundle, sorted(sources))
    cuttable = not spec.step_cache and find_cut(load_graph(bundle.path(spec.graph))) is not None
    if not made and not cuttable:
        return Upgrade(bundle)
    with contextlib.ExitStack() as until_placed, staging(root) as folder:
        link_files(bundle, {spec.graph, spec.weights}, folder)
        with stage(progress, DENOISER, "write"):
            for step, graph in made.items():
                _compose(bundle.path(graph), folder / step)
            parted = _with_parts(bundle, folder) if cuttable else spec
        with stage(progress, DENOISER, "compare"):
            if cuttable:
                check_parts(folder / spec.graph, parted.step_cache)
            before = bundle.path(spec.step) if spec.step else None
            report = made and compare_step_graphs(
                spec, folder / spec.graph, folder / _step(spec.graph), before
            )
        with stage(progress, WHOLE, "publish"):
            until_placed.enter_context(locked(root))
            current = _unchanged(root, bundle, sources)
            changed, dropped = _changed(current, folder, made.keys(), parted.step_cache)
            write_manifest(changed)
    error = report.worst(DENOISER) if report else None
    return Upgrade(replace(changed, root=bundle.root), error, cuttable, dropped)


def _step(graph: str) -> str:
    """Returns where the step graph of a denoiser's graph lies."""
    return PurePosixPath(graph).with_name(STEP).as_posix()


def _step_graphs(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Yields each step graph to compose, and the graph to compose it from."""
    graph = bundle.components[DENOISER].graph
    yield _step(graph), graph
    for device in DEVICES:
        form, step = (form_of(Path(each), device).as_posix() for each in (graph, _step(graph)))
        if form in bundle.files:
            yield step, form


def _compose(graph: Path, step: Path) -> None:
    """Composes the step graph of `graph`; raises `ExportError` if it is not a denoiser's."""
    model = load_graph(graph)
    try:
        compose(model)
    except ExportError as error:
        raise ExportError(graph, got=error.got, expected=str(error.expected)) from error
    ir.save(model, step)


def _with_parts(bundle: Bundle, folder: Path) -> ComponentSpec:
    """Writes the denoiser's parts for step caching; returns its spec with them."""
    spec = bundle.components[DENOISER]
    model = load_graph(bundle.path(spec.graph))
    return write_cache_parts(model, folder / spec.graph, spec)


def _unchanged(root: Path, bundle: Bundle, sources: Set[str]) -> Bundle:
    """Returns the bundle now at `root`; raises `ExportError` if its denoiser is another one."""
    return current_bundle(
        bundle,
        root,
        sources,
        got="a bundle that was replaced during the upgrade",
        expected="the one that was read",
        fix=f"run `eri upgrade {root}` again",
    )


def _changed(
    current: Bundle, folder: Path, made: Set[str], parts: tuple[SegmentSpec, ...]
) -> tuple[Bundle, tuple[str, ...]]:
    """Links what stays into `folder`; returns the new bundle, and the plans that it drops."""
    spec = current.components[DENOISER]
    step = _step(spec.graph)
    dropped = tuple(
        file for file, plan in current.plans.items() if made and plan.graph == spec.step
    )
    reports = {PurePosixPath(file).with_suffix(".json").as_posix() for file in dropped}
    forms = {form_of(Path(spec.step or step), device).as_posix() for device in DEVICES}
    older = {spec.step, *forms}
    new = {part.graph for part in parts} - {part.graph for part in spec.step_cache}
    stays = current.files.keys() - {*dropped, *reports, *(older if made else ()), *made, *new}
    denoiser = replace(spec, step=step, step_per_image=True, step_cache=parts)
    link_files(current, stays, folder)
    changed = replace(
        current,
        root=folder,
        components={**current.components, DENOISER: denoiser},
        plans={file: plan for file, plan in current.plans.items() if file not in dropped},
        files=records(folder, {name: current.files[name] for name in stays}),
    )
    return changed, dropped
