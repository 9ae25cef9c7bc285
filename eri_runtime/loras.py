"""What a pipeline's weights are made of: the bundle's own, updates of them, and LoRAs on top.

The layers are kept apart and merged anew from the bundle's own weights at every change, so a LoRA
that is taken out leaves nothing behind, not even rounding.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eri_runtime.checks import finite
from eri_runtime.errors import UnknownNameError, UsageError
from eri_runtime.executors.base import Arrays
from eri_runtime.live import LiveWeights
from eri_runtime.lora import Adapter, Adapters, adapters, merged_weights
from eri_runtime.spec import Bundle
from eri_runtime.tensors import read_tensors

Scale = float | Mapping[str, float]  # one for all components, or by component
Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Layers:
    """Updates by component and weight, loaded LoRAs by name, and the scales of those at work."""

    updates: Mapping[str, Arrays] = field(default_factory=dict)
    loaded: Mapping[str, Adapters] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)

    def changes(self, component: str) -> dict[str, list[tuple[Adapter, float]]]:
        """Each weight that LoRAs change, with their changes and scales."""
        found: dict[str, list[tuple[Adapter, float]]] = {}
        for lora, scale in self.scales.items():
            strength = scale_of(scale, component)
            if strength:
                for name, own in self.loaded[lora].get(component, {}).items():
                    found.setdefault(name, []).extend((each, strength) for each in own)
        return found

    def weights(self, component: str, stored: Arrays) -> Arrays:
        """What stands in the place of a component's `stored` weights."""
        updates = self.updates.get(component, {})
        changes = {
            name: own
            for name, own in self.changes(component).items()
            if name in stored  # and is not one that no output depends on
        }
        base = {name: updates.get(name, stored[name]) for name in changes}
        merged = merged_weights(base, changes, f"{component}: ")
        for each in merged.values():
            each.setflags(write=False)  # so that they need no copy
        return {**updates, **merged}

    def concerns(self, component: str) -> tuple[Any, ...]:
        """What decides a component's weights; where it is the same, they are."""
        active = tuple(
            (id(self.loaded[lora][component]), scale_of(scale, component))
            for lora, scale in self.scales.items()
            if component in self.loaded[lora] and scale_of(scale, component)
        )
        return id(self.updates.get(component)), active


class WeightLayers:
    """The layers of one pipeline; a change that fails leaves all as it was."""

    def __init__(self, bundle: Bundle, live: LiveWeights) -> None:
        self._bundle, self._live = bundle, live
        self._layers = Layers()
        self._sources: dict[str, object] = {}
        self._lock = threading.RLock()

    @property
    def scales(self) -> Mapping[str, Scale]:
        """The LoRAs at work, in the order they were named."""
        return self._layers.scales

    @property
    def loaded(self) -> Mapping[str, Adapters]:
        """The LoRAs that are loaded, at work or not."""
        return self._layers.loaded

    def update(self, component: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Put copies of tensors, of the stored types and shapes, over those of earlier updates."""
        own = {name: np.array(each, order="C") for name, each in tensors.items()}
        for each in own.values():
            each.setflags(write=False)
        with self._lock:
            layers = self._layers
            updated = {**layers.updates.get(component, {}), **own}
            self._become(replace(layers, updates={**layers.updates, component: updated}))

    def reset(self, components: Collection[str]) -> None:
        """Forget their updates."""
        with self._lock:
            kept = {k: v for k, v in self._layers.updates.items() if k not in components}
            self._become(replace(self._layers, updates=kept))

    def load(self, source: Source, scale: Scale, name: str | None, *, partial: bool) -> str:
        """Read a LoRA, let it work at `scale` beside the others, and return its name."""
        named = name or _name(source)
        with self._lock:
            layers = self._read(named, source, partial=partial)
            scales = self._checked({**layers.scales, named: scale}, layers)
            self._become(replace(layers, scales=scales), {named: _identity(source)})
        return named

    def set(self, scales: Mapping[str | Path, Scale]) -> None:
        """Let these LoRAs work and no others; those that are not loaded are paths to load."""
        with self._lock:
            layers, sources, named = self._layers, {}, {}
            for each, scale in scales.items():
                name = str(each)
                if name not in layers.loaded and _is_file(name):
                    name = _name(name)
                    layers = self._read(name, each, partial=False, onto=layers)
                    sources[name] = _identity(each)
                named[name] = scale
            if len(named) < len(scales):
                got = list(map(str, scales))
                raise UsageError("loras", got=got, expected="each LoRA once")
            self._become(replace(layers, scales=self._checked(named, layers)), sources)

    def unload(self, names: Iterable[str]) -> None:
        """Take these LoRAs out and forget them, all if none is named."""
        with self._lock:
            layers, gone = self._layers, set(names) or set(self._layers.loaded)
            self._known(gone, layers)
            loaded = {name: each for name, each in layers.loaded.items() if name not in gone}
            scales = {name: each for name, each in layers.scales.items() if name not in gone}
            self._become(replace(layers, loaded=loaded, scales=scales))
            for name in gone:
                self._sources.pop(name, None)

    def _read(
        self, name: str, source: Source, *, partial: bool, onto: Layers | None = None
    ) -> Layers:
        """The layers with one more LoRA; one that is loaded already is not read again."""
        layers = onto or self._layers
        if name in layers.loaded:
            if self._sources.get(name) == _identity(source):
                return layers
            fix = "give it another with name=, or unload that one"
            raise UsageError(f"LoRA {name}", got="a name of another LoRA", expected="one", fix=fix)
        tensors = source if isinstance(source, Mapping) else read_tensors(source)
        shapes = {
            name: {**self._live.stored(name).shapes, **spec.unneeded}
            for name, spec in self._bundle.components.items()
        }
        made = adapters(tensors, self._bundle.family, shapes, partial)
        return replace(layers, loaded={**layers.loaded, name: made})

    def _checked(self, scales: Mapping[str, Scale], layers: Layers) -> Mapping[str, Scale]:
        self._known(scales, layers)
        for name, scale in scales.items():
            each = scale if isinstance(scale, Mapping) else {"": scale}
            for component, strength in each.items():
                if component and component not in self._bundle.components:
                    expected = ", ".join(self._bundle.components)
                    where = f"scale of {name}: component"
                    raise UnknownNameError(where, got=repr(component), expected=expected)
                finite(f"scale of {name}", strength)
        return scales

    def _known(self, names: Iterable[str], layers: Layers) -> None:
        for name in names:
            if name not in layers.loaded:
                expected = ", ".join(layers.loaded) or "one that `load_lora` has loaded"
                raise UnknownNameError("LoRA", got=repr(name), expected=expected)

    def _become(self, layers: Layers, sources: Mapping[str, object] | None = None) -> None:
        """Serve what these layers make; components that they leave alone are not touched."""
        changed = {
            name: layers.weights(name, self._live.stored(name))
            for name in self._bundle.components
            if layers.concerns(name) != self._layers.concerns(name)
        }
        if changed:
            self._live.set_all(changed)
        self._layers = layers
        self._sources.update(sources or {})


def scale_of(scale: Scale, component: str) -> float:
    """The scale of one component; 1 where others are named and it is not, as in diffusers."""
    return scale.get(component, 1.0) if isinstance(scale, Mapping) else scale


def _name(source: Source) -> str:
    if isinstance(source, Mapping):
        expected = "a name= for it"
        raise UsageError("LoRA", got="tensors that are no file", expected=expected)
    return Path(source).stem


def _identity(source: Source) -> object:
    """What tells a LoRA from another of its name; tensors that are no file are never the same."""
    return object() if isinstance(source, Mapping) else Path(source).resolve()


def _is_file(name: str) -> bool:
    return Path(name).suffix == ".safetensors" or Path(name).exists()


def described(scales: Mapping[str, Scale]) -> Iterator[str]:
    """Each LoRA at work with its scale, as `style: 0.5` or `style: denoiser 0.5`."""
    for name, scale in scales.items():
        if isinstance(scale, Mapping):
            yield f"{name}: " + ", ".join(f"{part} {each:g}" for part, each in scale.items())
        else:
            yield f"{name}: {scale:g}"
