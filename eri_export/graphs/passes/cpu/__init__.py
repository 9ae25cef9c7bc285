"""Rewrites for ONNX Runtime's CPU provider alone, one file per pass.

`cpu_form` makes the form of a finished graph that the provider runs with the least memory. It reads
the same weights file. The plain graph stays the reference.
"""

from eri_export.graphs.passes.cpu.form import cpu_form, has_cpu_form

__all__ = ["cpu_form", "has_cpu_form"]
