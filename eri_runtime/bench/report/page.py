"""Renders a record with the template `page.html`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eri_runtime.bench.record import STAGES, Distance, Kind, Picture, Record, Row, Subject
from eri_runtime.bench.report import charts
from eri_runtime.bench.report.cards import HEADINGS, cards
from eri_runtime.bench.report.charts import Bar
from eri_runtime.bench.report.tables import Table, tables
from eri_runtime.bench.statistics import STEP, WHOLE, spread, values
from eri_runtime.bench.summary import Size, busy_machine
from eri_runtime.errors import BackendError
from eri_runtime.install_hint import install_hint

HERE = Path(__file__).parent
MEGABYTE = 1e6
KINDS: dict[Kind, str] = {
    "eri": "eri",
    "torch": "PyTorch",
    "peer": "peers",
    "cached": "step cache (lossy)",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """The part of the page about one size.

    Attributes:
        title: Heading.
        charts: Heading, SVG and caption of each chart.
        pictures: What the template needs for each picture.
        tables: All figures.
    """

    title: str
    charts: tuple[tuple[str, str, str], ...]
    pictures: tuple[dict[str, Any], ...]
    tables: tuple[Table, ...]


def page(record: Record) -> str:
    """Renders a record as HTML.

    Args:
        record: The record.

    Returns:
        The whole page, which needs no other file.

    Raises:
        BackendError: If Jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        fix = install_hint("bench")
        raise BackendError("--report", got="no Jinja2", expected="the bench extra", fix=fix)
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(HERE)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        record=record,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        cards=cards(record),
        others=others(record),
        sections=[section(record, number) for number in range(len(record.workload.sizes))],
        start=starts(record),
        memory=tuple(memories(record)),
        facts=list(facts(record)),
        busy=busy_machine(record),
        failed=[each for each in record.subjects if each.status != "ok"],
        kinds={kind: KINDS[kind] for kind in dict.fromkeys(s.kind for s in record.subjects)},
        stages=STAGES,
    )


def others(record: Record) -> str:
    """Returns what the bundle is compared with, for the heading; empty if nothing else ran."""
    kinds = {each.kind for each in record.subjects}
    return " and ".join(KINDS[kind] for kind in KINDS if kind in kinds - {"eri", "cached"})


def section(record: Record, number: int) -> Section:
    """Returns the section of one size."""
    size = record.workload.sizes[number]
    rows = [row for row in record.rows if (row.width, row.height) == size]
    drawings = []
    for name in (STEP, WHOLE):
        heading = HEADINGS[name]
        drawing = charts.bars(
            f"{name}-{number}", f"{heading}, ms", "ms", [bar(record, row, name) for row in rows]
        )
        caption = "Bar: median. Whisker: 10th to 90th percentile. Dots: every sample."
        drawings.append((heading, drawing, caption))
    stages = [(bar(record, row, WHOLE), medians(row)) for row in rows]
    drawing = charts.stacked(f"stages-{number}", "Stages of a picture, ms", stages)
    caption = "Median of each stage. Their sum may differ from the median of the whole call."
    drawings.append(("Where the time goes", drawing, caption))
    return Section(
        title=f"{size[0]} × {size[1]} pixels",
        charts=tuple(drawings),
        pictures=tuple(shown(record, size)),
        tables=tables(record, rows),
    )


def bar(record: Record, row: Row, name: str) -> Bar:
    """Returns a row's figure as a bar."""
    samples = values(row, name)
    return Bar(
        label=row.subject,
        kind=record.subject(row.subject).kind,
        times=spread(samples),
        samples=samples,
        counts=row.counts,
        note=note(record, row),
    )


def note(record: Record, row: Row) -> str:
    """Returns the remark next to a row's name; the page's header says why a subject failed."""
    if row.status != "ok":
        return f"({row.status})"
    if row.subject == record.reference:
        return "(reference)"
    return "" if row.counts else "(parity failed)"


def medians(row: Row) -> list[float]:
    """Returns the median of each stage, or an empty list if there are no samples."""
    samples = [values(row, name) for name in STAGES]
    return [float(np.median(each)) for each in samples] if all(samples) else []


def starts(record: Record) -> str:
    """Draws the cold starts."""
    rows = [
        Bar(
            label=each.name, kind=each.kind, times=spread(each.cold_s), samples=each.cold_s,
            note="" if each.cold_s else absent(each),
        )
        for each in record.subjects
    ]  # fmt: skip
    return charts.bars("cold", "Cold start, s", "s", rows)


def absent(subject: Subject) -> str:
    """Returns why a subject has no figure."""
    return f"({'not measured' if subject.status == 'ok' else subject.status})"


def memories(record: Record) -> Iterator[tuple[str, str]]:
    """Draws the peaks (`peak`), then the memory of each process over time (`plot`)."""
    rows = []
    for each in record.subjects:
        peak = each.memory.peak if each.memory else None
        value = None if peak is None else spread([peak / MEGABYTE])
        remark = "" if value else absent(each)
        rows.append(Bar(label=each.name, kind=each.kind, times=value, note=remark))
    yield "peak", charts.bars("peak", "Peak memory of one picture, MB", "MB", rows)
    watched = [each for each in record.subjects if each.memory and each.memory.timeline]
    most = max((m.rss for s in watched if s.memory for m in s.memory.timeline), default=1)
    for number, each in enumerate(watched):
        assert each.memory is not None  # noqa: S101 chosen above
        yield "plot", charts.memory(f"memory-{number}", each.name, each.kind, each.memory, most)


def shown(record: Record, size: Size) -> Iterator[dict[str, Any]]:
    """Yields the pictures of a size with their captions, the reference's first."""
    mine = [each for each in record.pictures if (each.width, each.height) == size]
    for each in sorted(mine, key=lambda picture: picture.subject != record.reference):
        yield {**asdict(each), "caption": caption_of(record, each)}


def caption_of(record: Record, picture: Picture) -> str:
    """Returns a picture's distance from the reference as text."""
    row = record.row(picture.subject, (picture.width, picture.height))
    if picture.subject == record.reference:
        return "the reference"
    if row is None or row.parity is None:
        return "not compared"
    found: Distance = row.parity.cases[0]
    psnr = "identical" if found.psnr is None else f"PSNR {found.psnr:.1f} dB"
    verdict = "" if row.parity.passed else " · outside its limit"
    return f"{psnr}, max {found.max} of 255{verdict}"


def facts(record: Record) -> Iterator[tuple[str, str]]:
    """Yields the facts of a run: workload, machine, software, subjects and builds."""
    work, machine = record.workload, record.machine
    yield "Model", f"{work.bundle} ({work.family}), {_parameters(work.parameters)}"
    yield "Checkpoint", work.checkpoint or "none: only our engines"
    yield (
        "Call",
        (
            f"{work.steps} steps of {work.sampler}, guidance {work.guidance:g}, {work.images} "
            f"image{'s' if work.images > 1 else ''} a call, {work.tokens} tokens"
        ),
    )
    yield "Prompts, seeds", "; ".join(f"{prompt!r}, {seed}" for prompt, seed in work.cases)
    yield (
        "Rounds",
        (
            f"{work.rounds} in turns, {work.warm_steps} warm-up steps before each; "
            f"{work.cold_rounds} cold starts of {work.cold_steps} steps"
        ),
    )
    yield "Processor", f"{machine.processor}, {machine.cores} cores; threads {work.threads}"
    yield "Memory", f"{machine.memory / 1e9:.1f} GB"
    for gpu in machine.gpus:
        yield "GPU", ", ".join(gpu.values())
    yield (
        "System",
        f"{machine.system}; load {machine.load_before} before, {machine.load_after} after",
    )
    versions = (f"{name} {version}" for name, version in record.software.versions.items())
    yield "Software", ", ".join([f"Python {record.software.python}", *versions])
    yield "Commit", record.software.commit
    for each in record.subjects:
        if each.words:
            yield each.name, each.words
    for build in record.builds:
        yield f"Build: {build.name}", f"{build.seconds:.1f} s"


def _parameters(counts: Mapping[str, int]) -> str:
    """Returns the number of parameters of each component as text."""
    parts = [f"{name} {count / 1e6:.1f} M" for name, count in counts.items()]
    return ", ".join(parts)
