"""The pipelines of a worker: opened when a request needs them, closed when memory is short."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from time import perf_counter

from eri_runtime.bundle import Bundle
from eri_runtime.pipeline import Pipeline, load
from eri_runtime.serve.options import EngineOptions

Merged = tuple[tuple[str, float], ...]  # names and scales of LoRAs in the weights, sorted
OpenPipeline = Callable[[Path], Pipeline]


class OpenBundle:
    """A pipeline, and the LoRAs in its weights.

    Attributes:
        pipe: The pipeline.
        merged: The LoRAs that are merged into its weights.
    """

    def __init__(self, pipe: Pipeline, loras: Mapping[str, Path]) -> None:
        self.pipe, self.merged = pipe, Merged()
        self._loras, self._loaded = loras, set[str]()
        self._since, self._cost = perf_counter(), 0.0

    @property
    def settled(self) -> bool:
        """Whether the merged LoRAs have been used for four times as long as merging them took."""
        return perf_counter() - self._since >= 4 * self._cost

    def merge(self, loras: Merged) -> None:
        """Merges exactly these LoRAs into the weights."""
        if loras == self.merged:
            return
        started = perf_counter()
        self.read(dict(loras))
        self.pipe.set_loras(dict(loras))
        self.merged, self._since = loras, perf_counter()
        self._cost = self._since - started

    def read(self, names: Collection[str]) -> None:
        """Reads LoRAs, so that they can be merged or passed as inputs."""
        for name in names:
            if name not in self._loaded:
                self.pipe.load_lora(self._loras[name], 0.0, name=name)
                self._loaded.add(name)


class OpenBundles:
    """Opens bundles on demand, and closes the least recently used ones above a size.

    Args:
        paths: The folders by name.
        options: Backend, threads, memory and LoRAs.
    """

    def __init__(
        self, paths: Mapping[str, Path], options: EngineOptions, open_: OpenPipeline | None = None
    ) -> None:
        self._paths, self._options = paths, options
        self._open_pipeline = open_ or self._load
        self._opened: dict[str, OpenBundle] = {}  # the least recently used first

    def get(self, name: str, used: Collection[str]) -> OpenBundle:
        """Returns an open bundle; closes others, but those in `used`, if memory is short."""
        if name not in self._opened:
            self._opened[name] = OpenBundle(
                self._open_pipeline(self._paths[name]), self._options.loras
            )
        self._opened[name] = self._opened.pop(name)
        self._close_above_limit(keep={name, *used})
        return self._opened[name]

    def close(self) -> None:
        """Closes all pipelines."""
        for each in self._opened.values():
            each.pipe.close()
        self._opened.clear()

    def _close_above_limit(self, keep: Collection[str]) -> None:
        if self._options.memory is None:
            return
        sizes = {name: weights_size(each.pipe.bundle) for name, each in self._opened.items()}
        for name in list(self._opened):
            if sum(sizes.values()) <= self._options.memory:
                return
            if name not in keep:
                self._opened.pop(name).pipe.close()
                del sizes[name]

    def _load(self, path: Path) -> Pipeline:
        return load(
            path,
            self._options.backend,
            threads=self._options.worker_threads,
            low_memory=self._options.low_memory,
            cache=self._options.cache,
            loop="numpy",  # in which requests make their steps together
        )


def weights_size(bundle: Bundle) -> int:
    """Returns the bytes of a bundle's weights files."""
    files = {each.weights for each in bundle.components.values()}
    return sum(bundle.files[name].size for name in files)
