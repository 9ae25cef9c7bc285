"""What a benchmark found, as data: one JSON file whose schema is `schema.json` beside this.

Times are milliseconds but for fields that end in `_s`; memory is bytes. Raw samples are kept, so
that every figure of a report can be computed again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from eri_runtime.errors import UsageError

VERSION = 1
SCHEMA = Path(__file__).with_name("schema.json")
STAGES = ("encode", "denoise", "decode", "png")
Kind = Literal["eri", "torch", "peer"]
Status = Literal["ok", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured; `gpus` are nvidia-smi's words of each."""

    processor: str
    cores: int
    memory: int
    system: str
    gpus: tuple[Mapping[str, str], ...] = ()
    load_before: float = 0.0
    load_after: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Software:
    """With what: `versions` by package, the project's `commit`, `+` where files differ from it."""

    python: str
    versions: Mapping[str, str]
    commit: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The call that every subject gets, and how often.

    `cases` are the (prompt, seed) pairs whose pictures are compared; the first is what is timed.
    """

    bundle: str
    family: str
    precision: Mapping[str, str]
    parameters: Mapping[str, int]
    checkpoint: str | None
    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance: float
    sampler: str
    tokens: int
    images: int
    cases: tuple[tuple[str, int], ...]
    threads: int
    device: str
    rounds: int
    warm_steps: int
    cold_rounds: int
    cold_steps: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Milliseconds of one timed call: `steps` are those of `denoise`, in order."""

    encode: float
    steps: tuple[float, ...]
    denoise: float
    decode: float
    png: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far a picture's 8-bit pixels are from the reference's.

    `max` in levels of 255, `psnr` in dB (None for identical ones), `flip` is the mean of NVIDIA's
    FLIP, 0 to 1 (None where `flip-evaluator` is not installed).
    """

    max: int
    psnr: float | None
    flip: float | None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a picture must keep to count: `psnr` at least, `flip` at most."""

    psnr: float
    flip: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The worst of all cases against a row's limit, and each case."""

    against: str
    limit: Limit
    worst: Distance
    cases: tuple[Distance, ...]
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A look at a process: seconds since its start, resident bytes, its share of what is shared."""

    t: float
    rss: int
    pss: int | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """`peak` is the kernel's VmHWM after one picture in a fresh process, `peak_all` after all
    rounds; `timeline` begins with the process and ends with its first pictures, whose `events`
    are named by their time."""

    peak: int | None
    peak_all: int | None
    timeline: tuple[Moment, ...] = ()
    events: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An engine or a way to run PyTorch: a process, what it says of itself, its start and memory.

    `cold_s` are seconds from a process's start to its first picture written. `open_s` is how long
    the worker took to be ready, `first_s` its first call; `build_s` what that took more than a
    later one, where something is compiled then. `reason` says why a status is not ok.
    """

    name: str
    kind: Kind
    precision: str
    status: Status
    words: str = ""
    reason: str | None = None
    open_s: float | None = None
    first_s: float | None = None
    build_s: float | None = None
    cold_s: tuple[float, ...] = ()
    memory: Memory | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A subject at a size. `counts` is whether its figures may be compared with others'."""

    subject: str
    width: int
    height: int
    status: Status
    counts: bool
    reason: str | None = None
    samples: tuple[Sample, ...] = ()
    parity: Parity | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """PNG bytes in base64, small: a subject's first case, and `amplified` times its difference
    from the reference's."""

    subject: str
    width: int
    height: int
    png: str
    difference: str | None
    amplified: int


@dataclass(frozen=True, kw_only=True)
class Build:
    """Something that was made once before: its seconds."""

    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run. `reference` is the subject whose pictures the others are compared with."""

    created: str
    command: str
    machine: Machine
    software: Software
    workload: Workload
    reference: str
    subjects: tuple[Subject, ...]
    rows: tuple[Row, ...]
    builds: tuple[Build, ...] = ()
    pictures: tuple[Picture, ...] = ()
    version: int = VERSION

    def subject(self, name: str) -> Subject:
        """The subject of a name."""
        return next(each for each in self.subjects if each.name == name)

    def row(self, subject: str, size: tuple[int, int]) -> Row | None:
        """The row of a subject at a (width, height), or None."""
        rows = (each for each in self.rows if each.subject == subject)
        return next((each for each in rows if (each.width, each.height) == size), None)


def to_json(record: Record) -> str:
    """The file's text."""
    return json.dumps(asdict(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write(file: Path, text: str) -> None:
    """Write, so that a reader finds the old file or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read(file: Path) -> Record:
    """The record in a file; raises `UsageError` for another kind of file."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["version"] != VERSION:
            got = f"version {values['version']}"
            raise UsageError(file, got=got, expected=f"version {VERSION} of results")
        return made(Record, values)
    except OSError as error:
        raise UsageError(file, got=error.strerror or error, expected="a results file") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise UsageError(file, got=got, expected="results of `eri bench`") from error


_PARTS: Mapping[type, Mapping[str, type]] = {
    Record: {
        "machine": Machine,
        "software": Software,
        "workload": Workload,
        "subjects": Subject,
        "rows": Row,
        "builds": Build,
        "pictures": Picture,
    },
    Subject: {"memory": Memory},
    Memory: {"timeline": Moment},
    Row: {"samples": Sample, "parity": Parity},
    Parity: {"limit": Limit, "worst": Distance, "cases": Distance},
}


def made(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A dataclass of plain values, those within it too; a field that is unknown is a KeyError."""
    unknown = values.keys() - {each.name for each in fields(kind)}
    if unknown:
        raise KeyError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    parts = _PARTS.get(kind, {})
    return kind(**{name: _part(parts.get(name), value) for name, value in values.items()})


def _part(kind: type | None, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_part(kind, each) for each in value)
    return made(kind, value) if kind is not None and value is not None else value
