"""TensorRT plans from a bundle's graphs: one path for `tensorrt` and `tensorrt_rtx`."""

from eri_export.trt.add import add_plans
from eri_export.trt.options import BuildOptions

__all__ = ["BuildOptions", "add_plans"]
