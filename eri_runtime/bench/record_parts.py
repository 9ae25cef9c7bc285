"""The parts of a benchmark record: machine, workload, subjects, rows, samples, distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

STAGES = ("encode", "denoise", "decode", "png")
Kind = Literal["eri", "torch", "peer", "cached"]
Status = Literal["ok", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a run.

    Attributes:
        processor: Model name of the first processor.
        cores: Cores that the benchmark may use.
        memory: Bytes of main memory.
        system: Operating system and kernel release.
        gpus: What `nvidia-smi` reports, one mapping per GPU.
        load_before: One-minute load average before the run.
        load_after: One-minute load average after the run.
    """

    processor: str
    cores: int
    memory: int
    system: str
    gpus: tuple[Mapping[str, str], ...] = ()
    load_before: float = 0.0
    load_after: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Software:
    """The software of a run.

    Attributes:
        python: Python's version.
        versions: Version of each installed package that matters, by its name.
        commit: The project's commit, followed by `+` if the working tree has changes.
    """

    python: str
    versions: Mapping[str, str]
    commit: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work that every subject gets, and how often.

    Attributes:
        bundle: Name of the bundle's folder.
        family: Model family: `sdxl`, `sd35` or `flux`.
        precision: Precision of each component of the bundle.
        parameters: Number of parameters of each component.
        checkpoint: Name of the checkpoint that PyTorch runs; None without PyTorch.
        sizes: Image sizes as (width, height) in pixels. Cold starts use the first.
        steps: Number of denoising steps.
        guidance: Classifier-free guidance scale.
        sampler: Name of the sampler.
        tokens: Maximum sequence length of the prompt.
        images: Images per call.
        cases: The (prompt, seed) pairs whose images are compared; the first pair is timed.
        threads: CPU threads of every subject.
        device: PyTorch's device, `cpu` or `cuda`.
        rounds: Timed calls of each subject at each size.
        warm_steps: Denoising steps before each timed call.
        cold_rounds: Cold starts of each subject.
        cold_steps: Denoising steps of a cold start's image.
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
    """The milliseconds of one timed call.

    Attributes:
        encode: Text encoding.
        steps: Each denoising step, in order.
        denoise: All denoising steps together.
        decode: VAE decoding.
        png: PNG writing.
        total: The whole call.
    """

    encode: float
    steps: tuple[float, ...]
    denoise: float
    decode: float
    png: float
    total: float


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The difference between the 8-bit pixels of an image and those of the reference's.

    Attributes:
        max: Largest difference in levels of 255.
        psnr: Peak signal-to-noise ratio in dB; None for identical images.
        flip: Mean of NVIDIA's FLIP, 0 to 1; None if `flip-evaluator` is not installed.
    """

    max: int
    psnr: float | None
    flip: float | None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The distance within which an image must stay for its row to count.

    Attributes:
        psnr: Minimum PSNR in dB.
        flip: Maximum FLIP.
    """

    psnr: float
    flip: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A row's images compared with the reference's.

    Attributes:
        against: Name of the reference subject.
        limit: The limit for the row's precision.
        worst: The worst value of each metric over all cases.
        cases: The distance of each case of the workload.
        passed: Whether every case stays within the limit.
    """

    against: str
    limit: Limit
    worst: Distance
    cases: tuple[Distance, ...]
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A process's memory at one time.

    Attributes:
        t: Seconds since the process started.
        rss: Resident bytes (RSS).
        pss: Resident bytes with shared pages divided among their users (PSS), if sampled.
    """

    t: float
    rss: int
    pss: int | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A process's memory over time and at its peak.

    Attributes:
        peak: The kernel's VmHWM after one image in a fresh process, in bytes.
        peak_all: VmHWM after all rounds, in bytes.
        timeline: Samples from the start of the process to its second image.
        events: Seconds since the start at which it was ready (`open`) and had finished its first
            and second image (`first`, `second`).
    """

    peak: int | None
    peak_all: int | None
    timeline: tuple[Moment, ...] = ()
    events: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One engine, or one way to run PyTorch, as it ran in its own process.

    Attributes:
        name: `eri/BACKEND`, `torch/WAY` or the name of a peer.
        kind: Whether it is one of our engines, PyTorch, a peer, or our engine with step caching.
        precision: Precision of the denoiser: `fp32`, `fp16` or `bf16`.
        status: `ok`, `failed`, or `missing` if something it needs is not installed.
        words: The worker's description of its engine and settings.
        reason: Why the status is not `ok`.
        open_s: Seconds from the start of the process until the worker was ready.
        first_s: Seconds of its first call.
        build_s: Seconds that the first call took longer than later ones, for a subject that
            compiles in its first call.
        cold_s: Seconds from the start of a process to its first saved image, per cold start.
        memory: Its memory, if it ran.
        versions: Versions of packages that only this subject uses.
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
    """The figures of one subject at one size.

    Attributes:
        subject: Name of the subject.
        width: Width in pixels.
        height: Height in pixels.
        status: The subject's status.
        counts: Whether its figures may be compared with those of other rows.
        reason: Why it failed or does not count.
        samples: One sample per round.
        parity: Its images compared with the reference's; None for the reference itself.
    """

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
    """A small copy of the image of a subject's first case.

    Attributes:
        subject: Name of the subject.
        width: Width of the original in pixels.
        height: Height of the original in pixels.
        png: The image as PNG in base64.
        difference: Its absolute difference from the reference's image, times `amplified`, as PNG
            in base64; None for the reference.
        amplified: The factor of `difference`.
    """

    subject: str
    width: int
    height: int
    png: str
    difference: str | None
    amplified: int


@dataclass(frozen=True, kw_only=True)
class Build:
    """The time of something that is built once, such as an export or a compiled graph.

    Attributes:
        name: What was built.
        seconds: How long it took.
    """

    name: str
    seconds: float
