"""Which of a bundle's TensorRT plans fits this machine, and its bytes once they are proven.

A plan is native code: nothing may deserialise one that did not come through `read_plan`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from eri_runtime.errors import BackendError, IntegrityError, SizeError
from eri_runtime.spec import Bundle, EngineName, PlanSpec

AMPERE = (8, 0)  # the first GPU that hardware-compatible plans are for


@dataclass(frozen=True, kw_only=True)
class Machine:
    """An installed engine and its version, as 1.7.1.116, and the GPU's compute capability."""

    engine: EngineName
    version: str
    capability: str


def choose_plan(bundle: Bundle, graph: str, machine: Machine) -> str:
    """The file of the plan of `graph` for this machine, one with weights if there is one.

    `graph` is a component's `graph` or `step`. Raises `BackendError` that says what to run where
    every plan is for another engine, version or GPU.
    """
    plans = {file: plan for file, plan in bundle.plans.items() if plan.graph == graph}
    fitting = [file for file, plan in plans.items() if refusal(plan, machine) is None]
    if not fitting:
        reasons = dict.fromkeys(str(refusal(plan, machine)) for plan in plans.values())
        raise BackendError(
            f"{bundle.root}: {graph}",
            got="; ".join(reasons) or "no plan",
            expected=f"a plan for {_named(machine)}",
            fix=f"run `{_command(bundle, graph, machine)}`",
        )
    return min(fitting, key=lambda file: ("stripped" in plans[file].flags, file))


def refusal(plan: PlanSpec, machine: Machine) -> str | None:
    """Why this plan cannot run on this machine, or None."""
    if plan.engine != machine.engine:
        return f"a plan for {plan.engine}"
    if not _runs_version(plan, machine.version):
        return f"a plan for {plan.engine} {plan.version}"
    if not _runs_gpu(plan, machine.capability):
        return f"a plan for compute capability {', '.join(plan.capabilities)}"
    return None


def read_plan(bundle: Bundle, file: str) -> bytes:
    """The bytes of a plan, hashed as they will be used.

    Raises `IntegrityError` for a plan that is missing or not the one that was built.
    """
    path, expected = bundle.path(file), bundle.files[file]
    fix = f"build it again: `eri build {bundle.root}`"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(path, got=error, expected="the plan", fix=fix) from error
    found = hashlib.sha256(data).hexdigest()
    if found != expected.sha256:
        got, wanted = f"sha256 {found[:16]}…", f"sha256 {expected.sha256[:16]}…"
        raise IntegrityError(path, got=got, expected=wanted, fix=fix)
    return data


def choose_profile(plan: PlanSpec, sizes: Mapping[str, int]) -> int:
    """The index of the first profile that holds these sizes of dynamic dimensions, by name.

    Raises `SizeError` where none does.
    """
    for index, profile in enumerate(plan.profiles):
        if all(sizes.get(name, 0) in allowed for name, allowed in profile.items()):
            return index
    held = " or ".join(
        ", ".join(f"{name} {allowed.min} to {allowed.max}" for name, allowed in profile.items())
        for profile in plan.profiles
    )
    raise SizeError(f"plan of {plan.graph}", got=dict(sizes), expected=held)


def _runs_version(plan: PlanSpec, version: str) -> bool:
    """A plan runs in its own version, or if made for it in later ones of the same major number."""
    if plan.version == version:
        return True
    built, here = _numbers(plan.version), _numbers(version)
    return "version-compatible" in plan.flags and built[:1] == here[:1] and built <= here


def _runs_gpu(plan: PlanSpec, capability: str) -> bool:
    if capability in plan.capabilities:
        return True
    return "hardware-compatible" in plan.flags and _numbers(capability) >= AMPERE


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _named(machine: Machine) -> str:
    return f"{machine.engine} {machine.version} and compute capability {machine.capability}"


def _command(bundle: Bundle, graph: str, machine: Machine) -> str:
    component = next(
        name for name, spec in bundle.components.items() if graph in (spec.graph, spec.step)
    )
    return (
        f"eri build {bundle.root} --engine {machine.engine} "
        f"--compute-capability {machine.capability} --component {component}"
    )
