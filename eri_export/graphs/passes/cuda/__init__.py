"""Rewrites for ONNX Runtime's CUDA provider alone, one file per pass.

`cuda_form` makes the form of a finished graph that the provider runs fastest. It reads the same
weights file. The plain graph stays the reference.
"""

from eri_export.graphs.passes.cuda.form import cuda_form

__all__ = ["cuda_form"]
