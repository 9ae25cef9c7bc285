"""Reads a graph of a bundle, whatever its bytes are."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from eri_runtime.errors import ExportError


def load_graph(path: Path) -> ir.Model:
    """Reads an ONNX file; the weights stay in theirs.

    Raises `ExportError` if it holds no graph.
    """
    try:
        model = ir.load(path)
        empty = not model.graph.outputs
    except OSError:
        raise
    except Exception as error:  # whatever the libraries raise for bytes that are no graph
        got = f"{type(error).__name__}: {error}"
        raise ExportError(path, got=got, expected="an ONNX graph") from error
    if empty:
        raise ExportError(path, got="a graph without outputs", expected="an ONNX graph")
    return model
