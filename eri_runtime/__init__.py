"""Run an exported diffusion model with NumPy and one engine; torch is never imported."""

from eri_runtime.batch import batch_sample
from eri_runtime.brownian import BrownianNoise
from eri_runtime.configs import AncestralSamplerConfig, GuidanceConfig, SamplingConfig
from eri_runtime.ddpm import DDPMScheduler
from eri_runtime.denoise import Step, denoise
from eri_runtime.errors import EriError
from eri_runtime.flow_schedules import get_flux_schedule, get_linear_schedule
from eri_runtime.forward import forward_sdxl_sampling
from eri_runtime.jobs import Job
from eri_runtime.lora import apply_lora_for_inference
from eri_runtime.manifest import read as read_bundle
from eri_runtime.memory.mode import MemoryEfficientSamplingConfig
from eri_runtime.noise import NoiseSource, PhiloxNoise, TorchNoise
from eri_runtime.pipelines import Pipeline, load
from eri_runtime.randn import TorchNormal
from eri_runtime.result import Result
from eri_runtime.samplers import SAMPLERS, Sampler
from eri_runtime.saving import save_image, save_tensor_as_image
from eri_runtime.schedule import Point, Schedule, make_schedule
from eri_runtime.spec import Bundle, ComponentSpec, ShapeRange, TensorSpec
from eri_runtime.table import SamplerTable, make_table, tabulate
from eri_runtime.thresholding import dynamic_thresholding
from eri_runtime.validation import generate_validation_samples

__all__ = [
    "SAMPLERS",
    "AncestralSamplerConfig",
    "BrownianNoise",
    "Bundle",
    "ComponentSpec",
    "DDPMScheduler",
    "EriError",
    "GuidanceConfig",
    "Job",
    "MemoryEfficientSamplingConfig",
    "NoiseSource",
    "PhiloxNoise",
    "Pipeline",
    "Point",
    "Result",
    "Sampler",
    "SamplerTable",
    "SamplingConfig",
    "Schedule",
    "ShapeRange",
    "Step",
    "TensorSpec",
    "TorchNoise",
    "TorchNormal",
    "apply_lora_for_inference",
    "batch_sample",
    "denoise",
    "dynamic_thresholding",
    "forward_sdxl_sampling",
    "generate_validation_samples",
    "get_flux_schedule",
    "get_linear_schedule",
    "load",
    "make_schedule",
    "make_table",
    "read_bundle",
    "save_image",
    "save_tensor_as_image",
    "tabulate",
]
