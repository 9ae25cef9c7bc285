"""Chooses the TensorRT plan of a bundle that fits this machine, and reads it with its hash checked.

A plan is native code: deserialize only what `read_plan` returned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from eri_runtime.bundle import Bundle, EngineName, PlanSpec
from eri_runtime.errors import BackendError, IntegrityError, SizeError

AMPERE = (8, 0)  # the oldest compute capability that hardware-compatible plans run on


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan has to fit.

    Attributes:
        engine: The installed library.
        version: The library's version, such as 1.7.1.116.
        capability: The GPU's compute capability, such as 8.9.
    """

    engine: EngineName
    version: str
    capability: str


def choose_plan(bundle: Bundle, graph: str, machine: Machine) -> str:
    """Returns the file of the plan of `graph` that fits this machine.

    `graph` is a component's `graph` or `step`. A plan that contains its weights is preferred.
    Raises `BackendError` with the command to run if no plan fits this engine, version and GPU.
    """
    plans = {file: plan for file, plan in bundle.plans.items() if plan.graph == graph}
    fitting = [file for file, plan in plans.items() if refusal(plan, machine) is None]
    if not fitting:
        reasons = dict.fromkeys(str(refusal(plan, machine)) for plan in plans.values())
        raise BackendError(
            f"{bundle.root}: {graph}",
            got="; ".join(reasons) or "no plan",
            expected=f"a plan for {_describe(machine)}",
            fix=f"run `{_build_command(bundle, graph, machine)}`",
        )
    return min(fitting, key=lambda file: ("stripped" in plans[file].flags, file))


def refusal(plan: PlanSpec, machine: Machine) -> str | None:
    """Returns why this plan cannot run on this machine, or None."""
    if plan.engine != machine.engine:
        return f"a plan for {plan.engine}"
    if not _runs_on_version(plan, machine.version):
        return f"a plan for {plan.engine} {plan.version}"
    if not _runs_on_gpu(plan, machine.capability):
        return f"a plan for compute capability {', '.join(plan.capabilities)}"
    return None


def read_plan(bundle: Bundle, file: str) -> bytes:
    """Reads a plan and checks the hash of the bytes it returns.

    Raises `IntegrityError` if the plan is missing or differs from the one that was built.
    """
    path, expected = bundle.path(file), bundle.files[file]
    engine = bundle.plans[file].engine
    fix = f"build it again: `eri build {bundle.root} --engine {engine}`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(path, got=error, expected="the plan", fix=fix) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected.sha256:
        got, wanted = f"sha256 {digest[:16]}…", f"sha256 {expected.sha256[:16]}…"
        raise IntegrityError(path, got=got, expected=wanted, fix=fix)
    return data


def choose_profile(plan: PlanSpec, sizes: Mapping[str, int]) -> int:
    """Returns the index of the first profile that fits the dynamic dimensions in `sizes`.

    Raises `SizeError` if none does.
    """
    for index, profile in enumerate(plan.profiles):
        if all(sizes.get(name, 0) in allowed for name, allowed in profile.items()):
            return index
    ranges = " or ".join(
        ", ".join(f"{name} {allowed.min} to {allowed.max}" for name, allowed in profile.items())
        for profile in plan.profiles
    )
    raise SizeError(f"plan of {plan.graph}", got=dict(sizes), expected=ranges)


def _runs_on_version(plan: PlanSpec, version: str) -> bool:
    """Whether a plan runs in this version of its library.

    It runs in the version that built it. A version-compatible plan also runs in later versions of
    the same major number.
    """
    if plan.version == version:
        return True
    built, here = _numbers(plan.version), _numbers(version)
    return "version-compatible" in plan.flags and built[:1] == here[:1] and built <= here


def _runs_on_gpu(plan: PlanSpec, capability: str) -> bool:
    """Whether a plan runs on a GPU of this compute capability."""
    if capability in plan.capabilities:
        return True
    return "hardware-compatible" in plan.flags and _numbers(capability) >= AMPERE


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _describe(machine: Machine) -> str:
    return f"{machine.engine} {machine.version} and compute capability {machine.capability}"


def _build_command(bundle: Bundle, graph: str, machine: Machine) -> str:
    """Returns the command that builds the missing plan."""
    component = next(
        name for name, spec in bundle.components.items() if graph in (spec.graph, spec.step)
    )
    return (
        f"eri build {bundle.root} --engine {machine.engine} "
        f"--compute-capability {machine.capability} --component {component}"
    )
