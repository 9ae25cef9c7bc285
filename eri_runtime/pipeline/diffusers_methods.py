"""diffusers' methods on a pipeline: what is easy and true is done, the rest says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from eri_runtime.bundle import DENOISER
from eri_runtime.checks import boolean, did_you_mean, items, text
from eri_runtime.errors import UnknownAttributeError, UsageError, short
from eri_runtime.pipeline.diffusers_advice import ADVICE, MODULES

if TYPE_CHECKING:
    from eri_runtime.bundle import Bundle
    from eri_runtime.pipeline.step_callbacks import RunningCalls

GPU_BACKENDS = ("cuda", "cuda:tf32", "tensorrt")
DTYPES = {"fp32": ("float32", "float"), "fp16": ("float16", "half"), "bf16": ("bfloat16",)}


class DiffusersMethods:
    """The methods and attributes that people know from diffusers' pipelines.

    `Pipeline` inherits them. Methods that change how a model is computed are errors that name what
    does the same here; so is setting an attribute such as `scheduler`, which would have no effect.
    """

    bundle: Bundle
    loras: Any
    load_lora: Any
    set_loras: Any
    unload_loras: Any
    _running: RunningCalls
    _backend: str

    def to(self, *targets: Any, **named: Any) -> Any:
        """Returns the pipeline, if it is on this device and in this precision already.

        Args:
            *targets: Names of a device, such as `"cuda"`, or a dtype, such as `torch.float16`.
            **named: The same as `device`, `dtype` or `torch_dtype`; `silence_dtype_warnings` has
                no effect.

        Returns:
            The pipeline.

        Raises:
            UsageError: If it is elsewhere. Engines are chosen with `load(…, backend=…)`,
                precisions when a checkpoint is exported.

        Example:
            >>> pipe.to("cpu") is pipe
            True
        """
        named.pop("silence_dtype_warnings", None)
        for name in named:
            if name not in ("device", "dtype", "torch_dtype"):
                raise UsageError("to", got=short(name), expected="a device or a dtype")
        for target in (*targets, *named.values()):
            if target is not None:
                self._check_target(target)
        return self

    def _check_target(self, target: Any) -> None:
        """Raises `UsageError` for a device or dtype that the pipeline does not have."""
        name = target if isinstance(target, str) else _printed(target)
        name = name.removeprefix("torch.")
        if any(name in names for names in DTYPES.values()):
            precision = self.bundle.components[DENOISER].precision
            if name in DTYPES[precision]:
                return
            fix = "export again with --precision"
            raise UsageError(
                "to", got=name, expected=f"{DTYPES[precision][0]}, as exported", fix=fix
            )
        device = name.partition(":")[0]
        if device not in ("cpu", "cuda"):
            raise UsageError("to", got=short(target), expected="cpu, cuda, or a dtype")
        if device != self.device:
            fix = f'open it with eri_runtime.load(…, backend="{device}")'
            got = f"{name}, and backend {self._backend or 'of your own'} runs on the {self.device}"
            raise UsageError("to", got=got, expected=self.device, fix=fix)

    @property
    def device(self) -> str:
        """Where the engine computes: `"cpu"` or `"cuda"`."""
        return "cuda" if self._backend in GPU_BACKENDS else "cpu"

    @property
    def interrupt(self) -> bool:
        """False; a callback's own `pipe.interrupt` says whether its call stops."""
        return False

    @property
    def _interrupt(self) -> bool:
        """Set it to True to stop every call in progress after its current step, as in diffusers."""
        return False

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        if boolean("pipe._interrupt", value):
            self._running.interrupt()

    def set_progress_bar_config(self, **config: Any) -> None:
        """Accepts `disable=True`: a call shows no progress bar.

        Args:
            **config: Options of diffusers' progress bar.

        Raises:
            UsageError: If another option is given.

        Example:
            >>> pipe.set_progress_bar_config(disable=True)
        """
        if config != {"disable": True}:
            got = short(config)
            fix = "show progress with on_step="
            raise UsageError("set_progress_bar_config", got=got, expected="disable=True", fix=fix)

    def load_lora_weights(
        self, source: Any, *, weight_name: str | None = None, adapter_name: str | None = None
    ) -> None:
        """Reads a LoRA and merges it at scale 1, as `load_lora` does.

        Args:
            source: As in `load_lora`: a file, a folder, a repository of the Hub, or tensors.
            weight_name: File of the repository, or in the folder.
            adapter_name: Name for `set_adapters`. Default: the file's stem.

        Raises:
            LoraError: If the LoRA is damaged, or made for another model.
            UsageError: If an argument is invalid, or the name belongs to another LoRA.
        """
        if weight_name is not None:
            source = _file_of(source, text("weight_name", weight_name))
        self.load_lora(source, name=adapter_name)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Merges exactly these LoRAs, as `set_loras` does.

        Args:
            adapter_names: Name of a loaded LoRA, or a list of them.
            adapter_weights: Scale for all, or a list of one per name. Default: 1.

        Raises:
            UnknownNameError: If a name is not loaded.
            UsageError: If a scale is no finite number, or there are more of them than names.
        """
        names = _adapter_names(adapter_names)
        one = adapter_weights is None or not isinstance(adapter_weights, list | tuple)
        scale = 1.0 if adapter_weights is None else adapter_weights
        scales = [scale] * len(names) if one else list(adapter_weights)
        if len(scales) != len(names):
            got = f"{len(scales)} scales"
            raise UsageError("adapter_weights", got=got, expected=f"one, or {len(names)}")
        self.set_loras(dict(zip(names, scales, strict=True)))

    def get_active_adapters(self) -> list[str]:
        """Returns the names of the merged LoRAs, in the order of merging."""
        return list(self.loras)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Takes LoRAs out of the weights and forgets them, as `unload_loras` does.

        Args:
            adapter_names: Name of a loaded LoRA, or a list of them.

        Raises:
            UnknownNameError: If a LoRA is not loaded.
        """
        if names := _adapter_names(adapter_names):
            self.unload_loras(*names)

    def unload_lora_weights(self) -> None:
        """Takes all LoRAs out of the weights and forgets them, as `unload_loras` does."""
        self.unload_loras()

    def disable_lora(self) -> None:
        """Takes all LoRAs out of the weights; they stay loaded."""
        self.set_loras({})

    def maybe_free_model_hooks(self) -> None:
        """Does nothing: memory modes free a component after its use."""

    if not TYPE_CHECKING:  # a type checker must not take every name for one of ours

        def __getattr__(self, name: str) -> NoReturn:
            """Raises `UnknownAttributeError`, which says what there is instead."""
            raise unknown_attribute(type(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute that the pipeline has; raises `UsageError` for one without effect."""
        if name in MODULES and not (value is None and name in ("safety_checker", "watermark")):
            advice = ADVICE[name]
            expected, fix = advice.expected, advice.fix
            raise UsageError(f"pipe.{name}", got="another value", expected=expected, fix=fix)
        object.__setattr__(self, name, value)


def _adapter_names(names: str | Sequence[str]) -> list[str]:
    """Returns one name or several as a list; raises `UsageError` for what is no text."""
    listed = [names] if isinstance(names, str) else items("adapter_names", names, "names")
    return [text("adapter_names", name) for name in listed]


def unknown_attribute(kind: type, name: str) -> UnknownAttributeError:
    """Returns the error for a name that pipelines lack: diffusers', with advice, or anyone's."""
    if name in ADVICE:
        expected, fix = ADVICE[name]
        return UnknownAttributeError(
            f"pipe.{name}", got="a name of diffusers", expected=expected, fix=fix
        )
    near = None if name.startswith("_") else did_you_mean(name, [*dir(kind), *ADVICE])
    expected = "a method or attribute of eri_runtime.Pipeline"
    return UnknownAttributeError(f"pipe.{name}", got="no such name", expected=expected, fix=near)


def _printed(target: Any) -> str:
    """Returns a device or dtype as text; raises `UsageError` for anything else."""
    kind = type(target).__name__
    if kind not in ("device", "dtype"):
        raise UsageError("to", got=short(target), expected="a device or a dtype")
    return str(target)


def _file_of(source: Any, file: str) -> str:
    """Returns the place of a file in a folder or in a repository of the Hub."""
    if not isinstance(source, str | Path):
        raise UsageError("source", got=short(source), expected="a folder or OWNER/NAME")
    place = str(source)
    return str(Path(place) / file) if Path(place).is_dir() else f"{place}:{file}"
