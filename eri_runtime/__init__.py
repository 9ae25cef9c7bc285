"""Runs exported diffusion models (SDXL, SD3.5, Flux) with NumPy and one engine, without torch.

`load` opens a bundle that `eri export` wrote, and the pipeline it returns generates images with
diffusers' keywords. Samplers, schedules and noise can be used on their own.

Example:
        import eri_runtime as eri

        with eri.load("engines/demo") as pipe:
            result = pipe("a red heart", num_inference_steps=20, guidance_scale=4.0, seed=0)
            result.save("heart.png")

The package is made of rooms: folders that import only from those below them. From the top:
`commands`, `bench`, `batch` and `standalone`, `training`, `pipeline`, `memory`, `request`, `loop`,
`weights`, `text`, `latents`, `executors` and `images`, `sampling`, `bundle`, then the files
`checks`, `partial_files`, `unfinished`, `files`, `units`, `version` and `errors`. Each folder's
docstring says what is in it and where to start.

A name is imported from its room on first use. So the command `eri` runs before NumPy is imported,
and can answer Ctrl-C from the start.
"""

TYPE_CHECKING = False  # typing's own takes milliseconds to import
if TYPE_CHECKING:
    __version__: str

    from eri_runtime.batch import batch_sample
    from eri_runtime.bundle import Bundle, ComponentSpec, ShapeRange, TensorSpec, read_bundle
    from eri_runtime.errors import (
        BackendError,
        BenchmarkError,
        BundleError,
        CancelledError,
        CheckpointError,
        DamagedWeightsError,
        DeadlineError,
        DiskError,
        EriError,
        ExportError,
        HubError,
        IntegrityError,
        LoraError,
        ManifestError,
        NonFiniteError,
        NotABundleError,
        NotACheckpointError,
        OutOfMemoryError,
        OverloadedError,
        ParityError,
        PickleError,
        RegressionError,
        ServingError,
        SizeError,
        StoppingError,
        UnknownAttributeError,
        UnknownNameError,
        UnmatchedKeysError,
        UsageError,
        WorkerError,
        WorkerLostError,
    )
    from eri_runtime.loop import Step, denoise
    from eri_runtime.memory import MemoryEfficientSamplingConfig
    from eri_runtime.pipeline import Pipeline, Result, load
    from eri_runtime.request import AncestralSamplerConfig, GuidanceConfig, Job, SamplingConfig
    from eri_runtime.sampling import (
        SAMPLERS,
        BrownianNoise,
        NoiseSource,
        PhiloxNoise,
        Point,
        Sampler,
        SamplerTable,
        Schedule,
        TorchNoise,
        TorchNormal,
        dynamic_thresholding,
        make_schedule,
        make_table,
        tabulate,
    )
    from eri_runtime.standalone import (
        DDPMScheduler,
        forward_sdxl_sampling,
        get_flux_schedule,
        get_linear_schedule,
    )
    from eri_runtime.training import generate_validation_samples, save_image, save_tensor_as_image
    from eri_runtime.weights import apply_lora_for_inference

__all__ = [
    "SAMPLERS",
    "AncestralSamplerConfig",
    "BackendError",
    "BenchmarkError",
    "BrownianNoise",
    "Bundle",
    "BundleError",
    "CancelledError",
    "CheckpointError",
    "ComponentSpec",
    "DDPMScheduler",
    "DamagedWeightsError",
    "DeadlineError",
    "DiskError",
    "EriError",
    "ExportError",
    "GuidanceConfig",
    "HubError",
    "IntegrityError",
    "Job",
    "LoraError",
    "ManifestError",
    "MemoryEfficientSamplingConfig",
    "NoiseSource",
    "NonFiniteError",
    "NotABundleError",
    "NotACheckpointError",
    "OutOfMemoryError",
    "OverloadedError",
    "ParityError",
    "PhiloxNoise",
    "PickleError",
    "Pipeline",
    "Point",
    "RegressionError",
    "Result",
    "Sampler",
    "SamplerTable",
    "SamplingConfig",
    "Schedule",
    "ServingError",
    "ShapeRange",
    "SizeError",
    "Step",
    "StoppingError",
    "TensorSpec",
    "TorchNoise",
    "TorchNormal",
    "UnknownAttributeError",
    "UnknownNameError",
    "UnmatchedKeysError",
    "UsageError",
    "WorkerError",
    "WorkerLostError",
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

# the rooms of these names, from the ground up
_ROOMS: tuple[str, ...] = ("errors", "bundle", "sampling", "weights", "loop", "request")
_ROOMS += ("memory", "pipeline", "training", "batch", "standalone")

if not TYPE_CHECKING:  # a type checker must not take every name for one of ours

    def __getattr__(name: str) -> object:
        """Imports a public name from its room, or a room, on first use."""
        from importlib import import_module

        if name in __all__:
            for room in _ROOMS:
                module = import_module(f"{__name__}.{room}")
                if name in getattr(module, "__all__", vars(module)):
                    return globals().setdefault(name, getattr(module, name))
        if name == "__version__":
            from eri_runtime.version import eri_version

            return eri_version()
        if not name.startswith("_"):
            try:
                return import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
