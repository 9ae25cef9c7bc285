"""Adds plans to a bundle by publishing a new bundle that replaces it.

The new bundle holds hard links to the old one's files and the new plans; one exchange of the two
folders' names publishes it. Nothing is written into the old bundle, so a killed or failed build
leaves it unchanged.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eri_export.disk import require_space
from eri_export.progress import WHOLE, Listener, Progress, silent, stage
from eri_export.publishing.atomic_publish import records, staging, write_manifest
from eri_export.publishing.linked_files import current_bundle, link_files, locked
from eri_export.tensorrt.attention import fused_layers
from eri_export.tensorrt.build_options import BuildOptions, check_options
from eri_export.tensorrt.build_plan import Built, build
from eri_export.tensorrt.library import Engine, load_engine
from eri_runtime.bundle import Bundle, PlanSpec, manifest, verify_hashes, verify_sizes
from eri_runtime.errors import UnknownNameError, short

FOLDER = "plans"


@dataclass(frozen=True)
class Job:
    """One plan to build: the component, its graph and the plan's file."""

    component: str
    graph: str
    file: str


def add_plans(
    root: str | Path,
    options: BuildOptions,
    *,
    components: Iterable[str] = (),
    progress: Listener = silent,
) -> Bundle:
    """Builds a plan of every graph of the chosen components and publishes them in the bundle.

    On an error or interrupt the bundle stays as it was.

    Args:
        root: The bundle's folder.
        options: How to build.
        components: Names of the components to build; default: all.
        progress: A function to call with each `Progress` event.

    Returns:
        The bundle with its new plans.

    Raises:
        UsageError: If the engine does not support an option.
        UnknownNameError: If the engine or a component is unknown.
        BackendError: If the engine is not installed or builds no plan.
        IntegrityError: If a file of the bundle is damaged.
        DiskError: If the disk is full or fails.
    """
    bundle = manifest.read(root)
    root = Path(root)
    engine = load_engine(options.engine)
    options = replace(options, capabilities=check_options(options, engine))
    jobs = list(_jobs(bundle, engine, options, tuple(components)))
    needed = {name for job in jobs for name in _sources(bundle, job)}
    verify_sizes(bundle)
    verify_hashes(bundle, sorted(needed))
    with contextlib.ExitStack() as until_placed, staging(root) as folder:
        require_space(folder.parent, sum(bundle.files[name].size for name in needed))
        (folder / FOLDER).mkdir()
        plans = {job.file: _build(bundle, job, folder, engine, options, progress) for job in jobs}
        with stage(progress, WHOLE, "publish"):
            until_placed.enter_context(locked(root))
            current = _link_current(root, bundle, needed, folder)
            rebuilt = {*plans, *map(_report, plans)}
            known = {name: file for name, file in current.files.items() if name not in rebuilt}
            changed = replace(
                current,
                root=folder,
                plans={**current.plans, **plans},
                files=records(folder, known),
            )
            write_manifest(changed)
    return replace(changed, root=root)


def _jobs(
    bundle: Bundle, engine: Engine, options: BuildOptions, components: tuple[str, ...]
) -> Iterator[Job]:
    """Yields the plans to build; raises `UnknownNameError` for a component the bundle lacks."""
    for name in components:
        if name not in bundle.components:
            expected = ", ".join(bundle.components)
            raise UnknownNameError("component", got=short(name), expected=expected)
    targets = "-".join("sm" + each.replace(".", "") for each in options.capabilities)
    tail = "-".join([targets, engine.tag, *options.flags])
    for name, spec in bundle.components.items():
        if components and name not in components:
            continue
        yield Job(name, spec.graph, f"{FOLDER}/{name}-{tail}.plan")
        if spec.step is not None:
            yield Job(name, spec.step, f"{FOLDER}/{name}-step-{tail}.plan")


def _sources(bundle: Bundle, job: Job) -> tuple[str, str]:
    return job.graph, bundle.components[job.component].weights


def _report(plan: str) -> str:
    return plan.removesuffix(".plan") + ".json"


def _build(
    bundle: Bundle,
    job: Job,
    folder: Path,
    engine: Engine,
    options: BuildOptions,
    listener: Listener,
) -> PlanSpec:
    """Builds one plan into `folder`, with a JSON report of its attention layers next to it."""
    spec = bundle.components[job.component]
    name = Path(job.file).stem

    def advance(done: int, total: int) -> None:
        listener(Progress(name, "build", min(done, total - 1), total))

    with stage(listener, name, "build"):
        built = build(engine, bundle.path(job.graph), spec, options, advance)
        file = folder / job.file
        file.write_bytes(built.plan)
        fused = fused_layers(built.attention, file)
        report = folder / _report(job.file)
        report.write_text(_attention_report(built, fused), encoding="utf-8")
    return PlanSpec(
        component=job.component,
        graph=job.graph,
        engine=engine.name,
        version=engine.version,
        capabilities=options.capabilities,
        profiles=built.profiles,
        flags=options.flags,
        level=built.attempt.level,
        workspace=built.attempt.workspace,
        attention=len(built.attention),
        fused=len(fused),
    )


def _attention_report(built: Built, fused: tuple[str, ...]) -> str:
    layers = [{**asdict(each), "fused": each.name in fused} for each in built.attention]
    return json.dumps({"attention": layers}, indent=2) + "\n"


def _link_current(root: Path, built_from: Bundle, needed: set[str], folder: Path) -> Bundle:
    """Links the files of the bundle now at `root` into `folder`, except rebuilt plans.

    Raises `ExportError` if an export has meanwhile replaced what the plans were built from.
    """
    current = current_bundle(
        built_from,
        root,
        needed,
        got="a bundle that was exported anew during the build",
        expected="the one the plans were built from",
        fix=f"run the same `eri build {root}` again",
    )
    link_files(current, current.files, folder)
    return current
