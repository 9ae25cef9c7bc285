"""The flags that a build sets, in one table: `eri build` sets and prints them, a guide shows it.

No flag chooses a precision. Every network is strongly typed: the graph says which tensors are fp16
or bf16. TensorRT 11 has removed the flags with which TensorRT 10 let the builder choose.
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/api/migration/tensorrt-10x-to-11x.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from eri_export.tensorrt.build_options import BuildOptions
from eri_export.tensorrt.library import Engine
from eri_runtime.bundle import PlanFlag
from eri_runtime.errors import UsageError

Enumeration = Literal[
    "NetworkDefinitionCreationFlag",
    "BuilderFlag",
    "ProfilingVerbosity",
    "HardwareCompatibilityLevel",
]
LIBRARIES = ("TensorRT 10", "TensorRT 11", "TensorRT for RTX")
# the option of `eri build` for each plan flag
OPTIONS: dict[PlanFlag, str] = {
    "refit": "--refit",
    "stripped": "--strip",
    "streaming": "--streaming",
    "hardware-compatible": "--hardware-compatible",
    "version-compatible": "--version-compatible",
}
SET, IF_THERE, REFUSED = "set", "set if the version has it", "refused"


@dataclass(frozen=True)
class Flag:
    """A flag of the network or of the builder's configuration.

    Attributes:
        enumeration: The library's enumeration.
        name: The flag's name in it.
        asked: The plan flag that asks for it. None: it is always set.
        effect: What it does, in a few words.
        never_with: The plan flag that the builder does not take beside it, or None.
        steps_only: Whether it is set for step graphs alone.
        libraries: What a build with each of `LIBRARIES` does with it.
    """

    enumeration: Enumeration
    name: str
    asked: PlanFlag | None
    effect: str
    libraries: tuple[str, str, str] = (SET, SET, SET)
    never_with: PlanFlag | None = None
    steps_only: bool = False

    def __str__(self) -> str:
        return f"{self.enumeration}.{self.name}"


FLAGS = (
    Flag(
        "NetworkDefinitionCreationFlag",
        "STRONGLY_TYPED",
        None,
        "keeps the types of the graph",
        (SET, "set; it is always so", SET),
    ),
    Flag(
        "BuilderFlag",
        "REQUIRE_USER_ALLOCATION",
        None,
        "lets a step be captured as a CUDA graph: the engine allocates nothing while it runs",
        (IF_THERE, IF_THERE, "set since 1.2"),
        steps_only=True,
        never_with="streaming",  # "Weight streaming requires runtime allocation", says the builder
    ),
    Flag("ProfilingVerbosity", "DETAILED", None, "keeps the names of layers in the plan"),
    Flag("BuilderFlag", "REFIT", "refit", "lets weights be replaced in an open plan"),
    Flag("BuilderFlag", "STRIP_PLAN", "stripped", "leaves the weights out of the plan"),
    Flag("BuilderFlag", "WEIGHT_STREAMING", "streaming", "keeps weights in host memory"),
    Flag(
        "BuilderFlag",
        "VERSION_COMPATIBLE",
        "version-compatible",
        "lets later versions of the library open the plan",
    ),
    Flag(
        "HardwareCompatibilityLevel",
        "AMPERE_PLUS",
        "hardware-compatible",
        "lets every GPU since Ampere run the plan",
        (SET, SET, REFUSED),
    ),
)


def flags_of(engine: Engine, options: BuildOptions, *, capturable: bool = True) -> tuple[Flag, ...]:
    """Returns the flags to set: those always set that this version has, and those asked for.

    Flags for step graphs are among them if the plan is to be `capturable` as a CUDA graph.

    Raises `UsageError` if the version lacks a flag that was asked for.
    """
    chosen = []
    for flag in FLAGS:
        if flag.asked not in (None, *options.flags) or flag.never_with in options.flags:
            continue
        if flag.steps_only and not capturable:
            continue
        if _member(engine, flag) is not None:
            chosen.append(flag)
        elif flag.asked is not None:
            where, fix = f"{engine.name} {engine.version}", "install a newer version"
            raise UsageError(where, got=flag.asked, expected=f"a version with {flag}", fix=fix)
    return tuple(chosen)


def network_flags(engine: Engine, flags: tuple[Flag, ...]) -> int:
    """Returns the bits with which to create a network."""
    bits = 0
    for flag in flags:
        if flag.enumeration == "NetworkDefinitionCreationFlag":
            bits |= 1 << int(_member(engine, flag))
    return bits


def configure(engine: Engine, config: Any, flags: tuple[Flag, ...]) -> None:
    """Sets the flags of the builder's configuration."""
    for flag in flags:
        member = _member(engine, flag)
        if flag.enumeration == "BuilderFlag":
            config.set_flag(member)
        elif flag.enumeration == "ProfilingVerbosity":
            config.profiling_verbosity = member
        elif flag.enumeration == "HardwareCompatibilityLevel":
            config.hardware_compatibility_level = member


def describe_flags(engine: Engine, options: BuildOptions) -> str:
    """Returns one line that names the library, its version and every flag that a build sets."""
    flags = flags_of(engine, options)
    names = [f"{flag} for step graphs" if flag.steps_only else str(flag) for flag in flags]
    return f"{engine.name} {engine.version} sets {', '.join(names)}"


def flag_table() -> str:
    """Returns the table as Markdown, one row per flag."""
    head = ("flag", "with", *LIBRARIES, "what it does")
    rows = [head, tuple("---" for _ in head)]
    for flag in FLAGS:
        asked = "always" if flag.asked is None else f"`{OPTIONS[flag.asked]}`"
        if flag.steps_only:
            asked = "for step graphs"
        if flag.never_with is not None:
            asked += f", but not with `{OPTIONS[flag.never_with]}`"
        rows.append((f"`{flag}`", asked, *flag.libraries, flag.effect))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _member(engine: Engine, flag: Flag) -> Any:
    """Returns the library's value of a flag, or None if this version has no such flag."""
    return getattr(getattr(engine.module, flag.enumeration, None), flag.name, None)
