"""Compiled models of OpenVINO in files, so that a process need not compile what another has.

A file holds the graph as OpenVINO's passes left it, and offsets into the bundle's weights file in
place of the weights (its properties CACHE_MODE and WEIGHTS_PATH). Opening one takes less than half
of compiling.
https://docs.openvino.ai/2026/openvino-workflow/running-inference.html

OpenVINO 2026.4 does not read every model as it wrote it: Flux's transformer, which has rotary
embeddings, then computes something else. So the process that compiles a model also opens its file,
and keeps it only if both give nearly the same outputs for the first inputs. Then it goes on with
the one of the file, so that every process computes the same bits.
"""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections.abc import Mapping
from typing import Any

from eri_runtime.bundle import Bundle, ComponentSpec
from eri_runtime.bundle.entry_folders import kept_beside
from eri_runtime.executors.openvino.library import import_openvino
from eri_runtime.executors.processor import cores, processor

log = logging.getLogger(__name__)

SUFFIX = ".openvino"
WITHOUT_WEIGHTS = {"CACHE_MODE": "OPTIMIZE_SIZE"}
FORM = 1  # another one whenever `model.py` makes something else of a graph
REFUSED = b""  # in place of a model

Shapes = Mapping[str, tuple[int, ...]]


class CompiledModels:
    """The compiled models of one graph, for one set of weights and every set of shapes.

    The weights file is held open from the beginning: a file that takes its place later is another
    model's. A model for any shape is not kept, as it rounds otherwise once it was in a file.
    """

    def __init__(self, bundle: Bundle, graph: str, spec: ComponentSpec) -> None:
        """Opens the weights file. Raises `OSError` if it cannot.

        Args:
            bundle: The bundle.
            graph: The graph's name in the bundle.
            spec: The component whose weights the graph uses.
        """
        self._entries, self._graph = kept_beside(bundle.root, SUFFIX), graph
        self._files = {name: bundle.files[name].sha256 for name in (graph, spec.weights)}
        descriptor = os.open(bundle.path(spec.weights), os.O_RDONLY | os.O_CLOEXEC)
        self._weights = f"/dev/fd/{descriptor}"
        self._close = weakref.finalize(self, os.close, descriptor)

    def load(self, core: Any, shapes: Shapes, options: Mapping[str, Any]) -> Any:
        """Returns the model that was compiled for these shapes and options, `REFUSED` or None."""
        key = self._key(core, shapes, options)
        data = self._entries.read(key)
        if not data:
            return data
        model = self.opened(core, data, options)
        if model is None:
            self._entries.remove(key)
            return None
        log.info("%s is not compiled: an earlier process kept it", self._graph)
        return model

    def opened(self, core: Any, data: bytes, options: Mapping[str, Any]) -> Any:
        """Returns the model of a file's content, or None if OpenVINO refuses it."""
        import numpy as np

        tensor = import_openvino().Tensor(np.frombuffer(data, np.uint8))
        words = {**options, **WITHOUT_WEIGHTS, "WEIGHTS_PATH": self._weights}
        try:
            return core.import_model(tensor, "CPU", words)
        except RuntimeError as error:
            log.warning("a compiled model is made again: %s", " ".join(str(error).split()))
            return None

    def keep(self, core: Any, data: bytes, shapes: Shapes, options: Mapping[str, Any]) -> None:
        """Writes what `exported` returned for a model of these shapes and options.

        `REFUSED` in its place notes that the model is another one once it is in a file. The weights
        that it was compiled from must have been compared with the manifest.
        """
        self._entries.write(self._key(core, shapes, options), data)
        words = f"kept in {len(data)} bytes" if data else "another one from a file: not kept"
        log.info("%s is compiled, and %s", self._graph, words)

    @property
    def any(self) -> bool:
        """Whether there is any compiled model, of whichever graph."""
        return self._entries.any

    def holds(self, core: Any, shapes: Shapes, options: Mapping[str, Any]) -> bool:
        """Returns whether `load` would find a model."""
        return bool(self._entries.read(self._key(core, shapes, options)))

    def close(self) -> None:
        """Closes the weights file."""
        self._close()

    def _key(self, core: Any, shapes: Shapes, options: Mapping[str, Any]) -> str:
        """Returns everything that a compiled model depends on, as a text."""
        facts = {
            "form": FORM,
            "machine": machine(core),
            "files": self._files,
            "shapes": dict(shapes),
            "options": dict(options),
        }
        return json.dumps(facts, sort_keys=True)


def exported(model: Any) -> bytes:
    """Returns a model, which was compiled `WITHOUT_WEIGHTS`, as the content of a file.

    Returns no bytes if OpenVINO cannot.
    """
    try:
        data: bytes = model.export_model().getvalue()
    except RuntimeError as error:
        log.info("a compiled model is not kept: %s", " ".join(str(error).split()))
        return b""
    return data


def machine(core: Any) -> list[str]:
    """Returns what tells OpenVINO on this machine from any other: version, processor, cores."""
    names = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
    named = [str(core.get_property("CPU", name)) for name in names]
    return [import_openvino().get_version(), *named, *processor(), str(cores())]
