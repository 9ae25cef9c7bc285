"""The page: what a record says, as the words and drawings of `page.html`."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eri_runtime.bench.record import STAGES, Distance, Kind, Picture, Record, Row, Subject
from eri_runtime.bench.report import charts
from eri_runtime.bench.report.charts import Bar
from eri_runtime.bench.statistics import STEP, WHOLE, spread, values
from eri_runtime.bench.summary import COLD, Best, Size, beside_reference, bests, busy
from eri_runtime.bench.table import MISSING, mark, psnr_text, ratio_text, spread_text
from eri_runtime.errors import BackendError

HERE = Path(__file__).parent
MEGABYTE = 1e6
HEADINGS = {STEP: "One denoising step", WHOLE: "A picture, end to end", COLD: "A cold start"}
KINDS: dict[Kind, str] = {"eri": "eri", "torch": "PyTorch", "peer": "peers"}
COLUMNS = ("Subject", "Precision", "Step, ms", "Ratio", "Encode, ms", "Decode, ms", "PNG, ms",
           "End to end, ms", "Ratio", "Cold start, s", "Peak, MB", "Max of 255", "PSNR, dB", "FLIP",
           "Limit", "")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Section:
    """A size: its charts, its pictures, its table."""

    title: str
    charts: tuple[tuple[str, str, str], ...]  # heading, drawing, what is seen
    pictures: tuple[dict[str, Any], ...]
    table: tuple[tuple[str, ...], ...]


def page(record: Record) -> str:
    """The whole HTML; raises `BackendError` where Jinja2 is not installed."""
    if importlib.util.find_spec("jinja2") is None:
        fix = "pip install 'eri-diffusion[bench]', then `eri bench --render FILE.json`"
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
        claims=claims(record),
        sections=[section(record, number) for number in range(len(record.workload.sizes))],
        start=starts(record),
        memory=tuple(memories(record)),
        facts=list(facts(record)),
        busy=busy(record),
        unwell=[each for each in record.subjects if each.status != "ok"],
        columns=COLUMNS,
        kinds={kind: KINDS[kind] for kind in dict.fromkeys(s.kind for s in record.subjects)},
        stages=STAGES,
    )


def claims(record: Record) -> list[tuple[str, list[dict[str, str]]]]:
    """By figure, at the first size: how many times as fast, than what, and which beside which."""
    found = [each for each in bests(record) if each.size == record.workload.sizes[0]]
    return [
        (heading, [claim(each) for each in found if each.figure == figure])
        for figure, heading in HEADINGS.items()
        if any(each.figure == figure for each in found)
    ]


def claim(best: Best) -> dict[str, str]:
    """One of them."""
    times = 1 / best.ratio.median
    return {
        "times": f"{times:.0f}"
        if times >= 10
        else f"{times:.1f}"
        if times >= 2
        else f"{times:.2f}",
        "than": best.claim,
        "pair": f"{best.ours} beside {best.theirs}",
        "ratio": ratio_text(best.ratio),
    }


def section(record: Record, number: int) -> Section:
    """Everything of one size."""
    size = record.workload.sizes[number]
    rows = [row for row in record.rows if (row.width, row.height) == size]
    drawn = []
    for name in (STEP, WHOLE):
        heading = HEADINGS[name]
        made = charts.bars(
            f"{name}-{number}", f"{heading}, ms", "ms", [bar(record, row, name) for row in rows]
        )
        seen = "Bar: median. Whisker: 10th to 90th percentile. Dots: every sample."
        drawn.append((heading, made, seen))
    stages = [(bar(record, row, WHOLE), medians(row)) for row in rows]
    made = charts.stacked(f"stages-{number}", "Stages of a picture, ms", stages)
    seen = "Medians of each stage; their sum need not be that of the whole."
    drawn.append(("Where the time goes", made, seen))
    return Section(
        title=f"{size[0]} × {size[1]} pixels",
        charts=tuple(drawn),
        pictures=tuple(shown(record, size)),
        table=tuple(cells(record, row) for row in rows),
    )


def bar(record: Record, row: Row, name: str) -> Bar:
    """A row's figure; of one that failed, why."""
    found = values(row, name)
    return Bar(
        label=row.subject,
        kind=record.subject(row.subject).kind,
        found=spread(found),
        samples=found,
        counts=row.counts,
        note=noted(record, row),
    )


def noted(record: Record, row: Row) -> str:
    """What is said beside a row's name; why it failed is told once, above."""
    if row.status != "ok":
        return f"({row.status})"
    if row.subject == record.reference:
        return "(reference)"
    return "" if row.counts else "(parity failed)"


def medians(row: Row) -> list[float]:
    """Of each stage, or none."""
    found = [values(row, name) for name in STAGES]
    return [float(np.median(each)) for each in found] if all(found) else []


def starts(record: Record) -> str:
    """Cold starts, as a chart."""
    rows = [
        Bar(
            label=each.name, kind=each.kind, found=spread(each.cold_s), samples=each.cold_s,
            note="" if each.cold_s else absent(each),
        )
        for each in record.subjects
    ]  # fmt: skip
    return charts.bars("cold", "Cold start, s", "s", rows)


def absent(subject: Subject) -> str:
    """Why a subject has no figure."""
    return f"({'not measured' if subject.status == 'ok' else subject.status})"


def memories(record: Record) -> Iterator[tuple[str, str]]:
    """Peaks, then each process over time."""
    rows = []
    for each in record.subjects:
        peak = each.memory.peak if each.memory else None
        found = None if peak is None else spread([peak / MEGABYTE])
        note = "" if found else absent(each)
        rows.append(Bar(label=each.name, kind=each.kind, found=found, note=note))
    yield "peak", charts.bars("peak", "Peak memory of one picture, MB", "MB", rows)
    told = [each for each in record.subjects if each.memory and each.memory.timeline]
    most = max((m.rss for s in told if s.memory for m in s.memory.timeline), default=1)
    for number, each in enumerate(told):
        assert each.memory is not None  # noqa: S101 chosen above
        yield "plot", charts.memory(f"memory-{number}", each.name, each.kind, each.memory, most)


def shown(record: Record, size: Size) -> Iterator[dict[str, Any]]:
    """Pictures with what is said of them, the reference's first."""
    mine = [each for each in record.pictures if (each.width, each.height) == size]
    for each in sorted(mine, key=lambda picture: picture.subject != record.reference):
        yield {**asdict(each), "side": _side(each), "said": said_of(record, each)}


def said_of(record: Record, picture: Picture) -> str:
    """How far a picture is off."""
    row = record.row(picture.subject, (picture.width, picture.height))
    if picture.subject == record.reference:
        return "the reference"
    if row is None or row.parity is None:
        return "not compared"
    found: Distance = row.parity.cases[0]
    psnr = "identical" if found.psnr is None else f"PSNR {found.psnr:.1f} dB"
    verdict = "" if row.parity.passed else " · outside its limit"
    return f"{psnr}, max {found.max} of 255{verdict}"


def _side(picture: Picture) -> int:
    """Pixels to show it at: small pictures twice as large."""
    return 2 * picture.width if picture.width <= 96 else 192


def cells(record: Record, row: Row) -> tuple[str, ...]:
    """A row of the table."""
    subject = record.subject(row.subject)
    cold, peak = spread(subject.cold_s), subject.memory.peak if subject.memory else None
    worst = row.parity.worst if row.parity else None
    limit = row.parity.limit if row.parity else None

    def timed(name: str) -> str:
        return spread_text(spread(values(row, name)))

    return (
        row.subject,
        subject.precision,
        timed(STEP),
        ratio_text(beside_reference(record, row, STEP)),
        timed("encode"),
        timed("decode"),
        timed("png"),
        timed(WHOLE),
        ratio_text(beside_reference(record, row, WHOLE)),
        spread_text(cold),
        MISSING if peak is None else f"{peak / MEGABYTE:,.0f}",
        MISSING if worst is None else str(worst.max),
        MISSING if worst is None else psnr_text(worst.psnr),
        MISSING if worst is None or worst.flip is None else f"{worst.flip:.4f}",
        MISSING if limit is None else f"≥ {limit.psnr:g} dB, ≤ {limit.flip:g}",
        mark(record, row),
    )


def facts(record: Record) -> Iterator[tuple[str, str]]:
    """What was measured, on what and with what."""
    work, machine = record.workload, record.machine
    yield "Model", f"{work.bundle} ({work.family}), {_parameters(work.parameters)}"
    yield "Checkpoint", work.checkpoint or "none: our engines only"
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
            f"{work.rounds} in turns, {work.warm_steps} warming steps before each; "
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


def _parameters(counts: Any) -> str:
    parts: Sequence[str] = [f"{name} {count / 1e6:.1f} M" for name, count in counts.items()]
    return ", ".join(parts)
