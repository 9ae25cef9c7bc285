"""Plans are added to a bundle as a whole new bundle of the same files, which takes its place.

So a killed or failed build leaves the bundle as it was: nothing in it is written to, its files are
linked into the new one, and one exchange of two names publishes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eri_export.disk import require_space
from eri_export.progress import WHOLE, Listener, Progress, silent, stage
from eri_export.publish import records, staging, write_manifest
from eri_export.trt.attention import fused_layers
from eri_export.trt.build import Built, build
from eri_export.trt.engine import Engine, load_engine
from eri_export.trt.options import BuildOptions, check_options
from eri_runtime import manifest
from eri_runtime.errors import ExportError, UnknownNameError
from eri_runtime.integrity import verify_hashes, verify_sizes
from eri_runtime.spec import Bundle, PlanSpec

FOLDER = "plans"


@dataclass(frozen=True)
class Job:
    """A graph of a component to build, and the plan's name."""

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
    """Build a plan of every graph of the named components, or of all, and publish them in `root`.

    Raises `UsageError` for options this engine or bundle has not, `BackendError` where the engine
    is missing or gives no plan, `IntegrityError` for a damaged bundle and `DiskError` for no room.
    The bundle is then as it was.
    """
    root = Path(root)
    bundle = manifest.read(root)
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
            until_placed.enter_context(_turn(root))
            current = _adopt(root, bundle, needed, folder)
            anew = {*plans, *map(_report, plans)}
            known = {name: each for name, each in current.files.items() if name not in anew}
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
    for name in components:
        if name not in bundle.components:
            expected = ", ".join(bundle.components)
            raise UnknownNameError("component", got=repr(name), expected=expected)
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
    bundle: Bundle, job: Job, folder: Path, engine: Engine, options: BuildOptions, tell: Listener
) -> PlanSpec:
    """Build one plan into `folder`, with the report of its attention layers beside it."""
    spec = bundle.components[job.component]
    name = Path(job.file).stem

    def advance(done: int, total: int) -> None:
        tell(Progress(name, "build", min(done, total - 1), total))

    with stage(tell, name, "build"):
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


def _adopt(root: Path, built_from: Bundle, needed: set[str], folder: Path) -> Bundle:
    """Link the files of the bundle that is at `root` now, but for plans that were built anew.

    Raises `ExportError` if an export has replaced what the plans were built from.
    """
    current = manifest.read(root)
    if any(current.files.get(name) != built_from.files[name] for name in needed):
        raise ExportError(
            root,
            got="a bundle that was exported anew during the build",
            expected="the one the plans were built from",
            fix="run `eri build` again",
        )
    for name in current.files:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            _link(current.path(name), copy)
    return current


@contextlib.contextmanager
def _turn(root: Path) -> Iterator[None]:
    """One build at a time takes what is at `root` and puts its own in its place.

    The lock is on the folder, so a build that waited finds another there, and waits for that one.
    """
    while True:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), root.stat()):
                yield
                return
        finally:
            os.close(descriptor)


def _link(file: Path, copy: Path) -> None:
    """A second name for a file, or a second file where its disk has no such thing."""
    with contextlib.suppress(OSError):
        os.link(file.resolve(), copy)
        return
    shutil.copyfile(file, copy)
