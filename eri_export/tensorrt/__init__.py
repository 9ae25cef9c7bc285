"""Builds TensorRT plans from a bundle's graphs, with `tensorrt` or `tensorrt_rtx`.

`publish_plans` adds plans to a bundle; `build_plan` builds one; `library` loads the engine.
Start with `publish_plans`.
"""

from eri_export.tensorrt.build_options import BuildOptions
from eri_export.tensorrt.publish_plans import add_plans

__all__ = ["BuildOptions", "add_plans"]
