"""Run an exported diffusion model with NumPy and one engine; torch is never imported."""

from eri_runtime.denoise import Step, denoise
from eri_runtime.errors import EriError
from eri_runtime.manifest import read as read_bundle
from eri_runtime.noise import NoiseSource, PhiloxNoise, TorchNoise
from eri_runtime.pipelines import Pipeline, load
from eri_runtime.result import Result
from eri_runtime.samplers import SAMPLERS, Sampler
from eri_runtime.schedule import Point, Schedule, make_schedule
from eri_runtime.spec import Bundle, ComponentSpec, ShapeRange, TensorSpec
from eri_runtime.table import SamplerTable, make_table, tabulate

__all__ = [
    "SAMPLERS",
    "Bundle",
    "ComponentSpec",
    "EriError",
    "NoiseSource",
    "PhiloxNoise",
    "Pipeline",
    "Point",
    "Result",
    "Sampler",
    "SamplerTable",
    "Schedule",
    "ShapeRange",
    "Step",
    "TensorSpec",
    "TorchNoise",
    "denoise",
    "load",
    "make_schedule",
    "make_table",
    "read_bundle",
    "tabulate",
]
