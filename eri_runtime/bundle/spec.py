"""The manifest of a bundle as dataclasses: the exporter writes them, the runtime reads them.

`component_spec` describes a single component, `schedule_spec` the noise schedule of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eri_runtime.bundle.component_spec import (
    LORA_A,
    LORA_B,
    LORAS,
    RANK,
    ComponentSpec,
    LoraSpec,
    Precision,
    SegmentSpec,
    ShapeRange,
    TensorSpec,
)
from eri_runtime.bundle.hashes import FileRecord
from eri_runtime.bundle.level_spec import LevelSpec, Rounding, Spread
from eri_runtime.bundle.pinned_files import Pins
from eri_runtime.bundle.schedule_spec import (
    ADDED,
    BetaCurve,
    FinalSigma,
    Prediction,
    ScheduleKind,
    ScheduleSpec,
    ShiftCurve,
    Spacing,
)

__all__ = [
    "COMPONENTS",
    "DENOISER",
    "LORAS",
    "LORA_A",
    "LORA_B",
    "MANIFEST",
    "RANK",
    "SCHEMA",
    "BakedLora",
    "BetaCurve",
    "Bundle",
    "ComponentSpec",
    "Defaults",
    "EngineName",
    "Family",
    "FileRecord",
    "FinalSigma",
    "GateKind",
    "LatentSpec",
    "LevelSpec",
    "LoraSpec",
    "PlanFlag",
    "PlanSpec",
    "Precision",
    "Prediction",
    "Rounding",
    "ScheduleKind",
    "ScheduleSpec",
    "SegmentSpec",
    "ShapeRange",
    "ShiftCurve",
    "Spacing",
    "Spread",
    "TensorSpec",
    "TokenizerSpec",
]

SCHEMA = 2  # version of the manifest's format
MANIFEST = "manifest.json"

Family = Literal["sdxl", "sd35", "flux"]
GateKind = Literal["full", "quick"]
EngineName = Literal["tensorrt", "tensorrt-rtx"]
PlanFlag = Literal["refit", "stripped", "streaming", "hardware-compatible", "version-compatible"]

DENOISER = "denoiser"  # the component that every bundle has
_SHARED = (DENOISER, "vae_decoder", "vae_encoder", "text_encoder", "text_encoder_2")
COMPONENTS: Mapping[Family, tuple[str, ...]] = {
    "sdxl": _SHARED,
    "sd35": (*_SHARED, "text_encoder_3"),
    "flux": _SHARED,
}


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """A tokenizer and its padding.

    Attributes:
        file: POSIX path of the `tokenizer.json`, relative to the bundle.
        max_length: Number of tokens that the text encoder takes.
        pad_id: Token id that fills up shorter prompts.
    """

    file: str
    max_length: int
    pad_id: int


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The latents (B, channels, H/factor, W/factor) of an image (B, 3, H, W).

    The denoiser works on x = (z − shift)·scale, z the VAE's latents; with `mean` and `std`, on
    x = (z − mean)·scale/std, channel by channel. H and W must be multiples of factor·patch. Flux's
    denoiser takes its patches packed: (B, tokens, channels·patch²).

    Attributes:
        channels: Number of channels.
        factor: Pixels per latent, along each side.
        scale: Factor from the VAE's scale to the denoiser's.
        shift: Offset of the VAE's latents.
        patch: Latents per token of the denoiser, along each side.
        mean: Mean of each channel of the VAE's latents; none: `shift` for all.
        std: Standard deviation of each channel of the VAE's latents; none: 1.
    """

    channels: int
    factor: int
    scale: float
    shift: float
    patch: int
    mean: tuple[float, ...] = field(default=(), metadata=ADDED)
    std: tuple[float, ...] = field(default=(), metadata=ADDED)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The values of a call's arguments that the caller does not give.

    Attributes:
        sampler: Name of the sampler, a key of `SAMPLERS`.
        num_inference_steps: Number of denoising steps.
        guidance_scale: Guidance scale.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        max_sequence_length: Number of T5 tokens.
        sampler_options: Options of `sampler`, by name.
        levels: The noise levels of the checkpoint's scheduler. None: those of the schedule's
            spacing.
        clip: Largest absolute value of the denoised x_0 in every step (`clip_sample_range`). None:
            not clipped.
        thresholding: Percentile and largest value of diffusers' thresholding of x_0; none: off.
    """

    sampler: str
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    max_sequence_length: int
    sampler_options: Mapping[str, float] = field(default_factory=dict, metadata=ADDED)
    levels: LevelSpec | None = field(default=None, metadata=ADDED)
    clip: float | None = field(default=None, metadata=ADDED)
    thresholding: tuple[float, ...] = field(default=(), metadata=ADDED)


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """A TensorRT plan: an engine built from one graph for certain GPUs.

    Attributes:
        component: The component that it runs.
        graph: POSIX path of the graph that it was built from, relative to the bundle.
        engine: The library that built it and runs it.
        version: Version of that library.
        capabilities: Compute capabilities of the GPUs that it runs on, such as `8.9`.
        profiles: Optimisation profiles: sizes by dynamic dimension. A call uses the first profile
            that supports its sizes.
        flags: The options that it was built with.
        level: The builder's optimisation level.
        workspace: The builder's workspace limit in bytes. None: no limit.
        attention: Number of attention layers in the graph.
        fused: Number of them that became one kernel.
    """

    component: str
    graph: str
    engine: EngineName
    version: str
    capabilities: tuple[str, ...]
    profiles: tuple[Mapping[str, ShapeRange], ...]
    flags: tuple[PlanFlag, ...]
    level: int
    workspace: int | None
    attention: int
    fused: int


@dataclass(frozen=True, kw_only=True)
class BakedLora:
    """A LoRA that the export merged into the weights.

    Attributes:
        file: Name of the LoRA's file.
        sha256: sha256 of the file, in hex.
        scale: The scale with which it was merged.
    """

    file: str
    sha256: str
    scale: float


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An exported model: a folder of graphs, weights and tokenizers, as its manifest describes it.

    Components by family (graph inputs → outputs; batch B, latents h·w, text tokens T):

    - all: `vae_decoder` (latents (B,C,h,w) → image (B,3,H,W)),
      `vae_encoder` (image → mean, logvar (B,C,h,w))
    - sdxl: `denoiser` (sample (B,4,h,w), timestep (B,), encoder_hidden_states (B,T,2048),
      text_embeds (B,1280), time_ids (B,6), guidance (B,) of LCM's → output), `text_encoder`
      (input_ids (B,77) → hidden_states), `text_encoder_2` (→ hidden_states, pooled)
    - sd35: `denoiser` (sample (B,16,h,w), timestep, encoder_hidden_states (B,T,4096),
      pooled_projections (B,2048) → output), `text_encoder`, `text_encoder_2`
      (→ hidden_states, pooled), `text_encoder_3` (→ hidden_states)
    - flux: `denoiser` (sample (B,S,64), timestep, encoder_hidden_states, pooled_projections,
      img_ids (S,3), txt_ids (T,3), and guidance (B,) if distilled → output), `text_encoder`
      (→ pooled), `text_encoder_2` (→ hidden_states). A guidance below 0 omits the embedding.

    `timestep` is in training timesteps, [0, num_train_timesteps), for every family. Only the
    denoiser is always present. Without a VAE decoder a bundle makes latents instead of images.
    Without its text encoders it takes embeddings instead of prompts; only sd35 can omit
    `text_encoder_3`, whose tokens are then zeros. Each text encoder has its tokenizer.

    Attributes:
        root: The bundle's folder. `read_bundle` gives its full path, without links.
        family: The model family.
        components: The components by name.
        tokenizers: The tokenizers by name: `tokenizer`, `tokenizer_2`, `tokenizer_3`, as in a
            diffusers folder.
        schedule: The noise schedule of training.
        latents: Shape and scale of the latents.
        defaults: Default arguments of a call.
        files: Size and sha256 of every file, by POSIX path relative to the bundle.
        guidance_embedding: Whether the denoiser embeds the guidance scale (Flux.1-dev,
            LCM's UNets).
        zero_empty_negative: Whether a missing negative prompt is encoded as zeros (SDXL).
        source_digest: sha256 (hex) that identifies the checkpoint and the export's choices.
        built_with: Versions of the libraries that the export used, by name.
        plans: The TensorRT plans by file.
        baked: The LoRAs that the export merged into the weights.
        gate: How the export compared the graphs with PyTorch: "full" on every case, "quick" on one
            case of each component.
        pins: The states of the files when the manifest was read; None for a bundle that was not
            read. Not in the manifest.

    Example:
        >>> pipe.bundle.family, pipe.bundle.defaults.sampler
        ('sd35', 'flow_euler')
    """

    root: Path
    family: Family
    components: Mapping[str, ComponentSpec]
    tokenizers: Mapping[str, TokenizerSpec]
    schedule: ScheduleSpec
    latents: LatentSpec
    defaults: Defaults
    files: Mapping[str, FileRecord]
    guidance_embedding: bool = False
    zero_empty_negative: bool = False
    source_digest: str = ""
    built_with: Mapping[str, str] = field(default_factory=dict)
    plans: Mapping[str, PlanSpec] = field(default_factory=dict)
    baked: tuple[BakedLora, ...] = ()
    gate: GateKind = field(default="full", metadata=ADDED)
    pins: Pins | None = field(default=None, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Total size of all files, in bytes."""
        return sum(record.size for record in self.files.values())

    def path(self, relative: str) -> Path:
        """Returns the full path of a file in the bundle; see `pinned_path` to open the file.

        Args:
            relative: POSIX path relative to the bundle, as in the manifest.
        """
        return self.root / relative

    def pinned_path(self, relative: str) -> Path:
        """Returns the full path of a file that has not changed since the manifest was read.

        Whatever runs the bundle opens its files by this path.

        Args:
            relative: POSIX path relative to the bundle, as in the manifest.

        Raises:
            IntegrityError: If the file was removed, replaced or rewritten.
        """
        self.check_unchanged([relative])
        return self.path(relative)

    def check_unchanged(self, names: Iterable[str], *, held: bool = False) -> None:
        """Raises `IntegrityError` if a named file has changed since the manifest was read.

        Args:
            names: POSIX paths relative to the bundle.
            held: Whether the files are open. Then only those that were rewritten are refused.
        """
        if self.pins is not None:
            for name in names:  # as text: making a Path takes longer than the check
                self.pins.check(name, f"{self.root}/{name}", self.files[name], held=held)
