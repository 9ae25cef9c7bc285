"""Optimisation profiles: the sizes a plan serves, made from the component's shape ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eri_export.tensorrt.build_options import ProfileKind
from eri_runtime.bundle import ComponentSpec, ShapeRange

Profile = Mapping[str, ShapeRange]
Shapes = Mapping[str, tuple[int | str, ...]]


def shapes_of(network: Any) -> Shapes:
    """Returns the shape of each input of a parsed network, dynamic dimensions by name."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    return {
        tensor.name: tuple(
            tensor.get_dimension_name(axis) if size < 0 else int(size)
            for axis, size in enumerate(tensor.shape)
        )
        for tensor in tensors
    }


def make_profiles(
    spec: ComponentSpec, shapes: Shapes, kinds: tuple[ProfileKind, ...]
) -> tuple[Profile, ...]:
    """Returns a profile for each kind, without repeating equal ones.

    A profile has a range for each dynamic dimension of `shapes`. `best` serves the best size alone
    and is fastest; `range` serves every size.
    """
    known = {**spec.ranges, **_step_ranges(spec)}
    names = dict.fromkeys(size for shape in shapes.values() for size in shape if _dynamic(size))
    wide = {str(name): known[str(name)] for name in names}
    best = {name: ShapeRange(min=r.opt, opt=r.opt, max=r.opt) for name, r in wide.items()}
    by_kind = {"best": best, "range": wide}
    profiles: list[Profile] = []
    for kind in kinds:
        if by_kind[kind] not in profiles:
            profiles.append(by_kind[kind])
    return tuple(profiles)


def sizes(shape: tuple[int | str, ...], profile: Profile, end: str) -> tuple[int, ...]:
    """Returns a shape at one `end` of a profile: min, opt or max."""
    return tuple(size if isinstance(size, int) else getattr(profile[size], end) for size in shape)


def _dynamic(size: int | str) -> bool:
    return isinstance(size, str)


def _step_ranges(spec: ComponentSpec) -> dict[str, ShapeRange]:
    """Returns the ranges of the step graph's `conditions` and `images`.

    Their product is at best the denoiser's batch: two conditions, as in classifier-free guidance,
    where the batch is even, else one. If images may have different numbers of conditions, any
    number of images fits that has no more rows than the batch.
    """
    if spec.step is None:
        return {}
    size = spec.inputs[0].shape[0]
    batch = spec.ranges[size] if isinstance(size, str) else ShapeRange(min=size, opt=size, max=size)
    ends = {"min": batch.min, "opt": batch.opt, "max": batch.max}
    pairs = {end: 2 if batch.opt % 2 == 0 and n % 2 == 0 else 1 for end, n in ends.items()}
    images = {end: n // pairs[end] for end, n in ends.items()}
    if spec.step_per_image:
        pairs |= {"min": 1, "max": min(2, batch.max)}
        images |= {"min": 1, "max": batch.max}
    return {"conditions": ShapeRange(**pairs), "images": ShapeRange(**images)}
