"""Images: conversion between arrays and PIL images, and PNG files with generation parameters.

Uses only `errors`, `files` and `partial_files`. Start with `convert`.
"""

from eri_runtime.images.convert import contact_sheet, mask_of, pixels_of, size_of, to_pil, to_unit
from eri_runtime.images.output import check_output
from eri_runtime.images.png import parameters_text, save_png, write_png
from eri_runtime.images.read_picture import read_picture

__all__ = [
    "check_output",
    "contact_sheet",
    "mask_of",
    "parameters_text",
    "pixels_of",
    "read_picture",
    "save_png",
    "size_of",
    "to_pil",
    "to_unit",
    "write_png",
]
