"""Images: conversion between arrays and PIL images, and PNG files with generation parameters.

`crop` cuts out what is around a mask and `overlay` keeps the pixels outside it. Uses only `errors`,
`files` and `partial_files`. Start with `convert`.
"""

from eri_runtime.images.convert import (
    check_same_size,
    contact_sheet,
    grey_of,
    picture_of,
    size_of,
    to_pil,
    to_signed,
    to_tensor,
    to_unit,
    unit_of,
)
from eri_runtime.images.crop import crop_box, fit
from eri_runtime.images.output import WRITABLE, check_output
from eri_runtime.images.overlay import Overlay
from eri_runtime.images.png import parameters_text, png_bytes, save_png, write_png
from eri_runtime.images.read_picture import read_picture, read_picture_bytes

__all__ = [
    "WRITABLE",
    "Overlay",
    "check_output",
    "check_same_size",
    "contact_sheet",
    "crop_box",
    "fit",
    "grey_of",
    "parameters_text",
    "picture_of",
    "png_bytes",
    "read_picture",
    "read_picture_bytes",
    "save_png",
    "size_of",
    "to_pil",
    "to_signed",
    "to_tensor",
    "to_unit",
    "unit_of",
    "write_png",
]
