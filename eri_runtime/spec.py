"""The bundle contract: what `eri_export` writes and `eri_runtime` reads, and nothing else.

Every graph takes and gives float32 (or int64 token ids): a 16-bit component casts inside the
graph, so NumPy never meets bfloat16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

SCHEMA = 2
MANIFEST = "manifest.json"

Family = Literal["sdxl", "sd35", "flux"]
Precision = Literal["fp32", "fp16", "bf16"]
Prediction = Literal["eps", "v", "x0", "flow"]
ScheduleKind = Literal["vp", "flow"]
BetaCurve = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Spacing = Literal["leading", "trailing", "linspace"]
FinalSigma = Literal["zero", "sigma_min"]
EngineName = Literal["tensorrt", "tensorrt-rtx"]
PlanFlag = Literal["refit", "stripped", "streaming", "hardware-compatible", "version-compatible"]

# inputs of a graph that takes LoRAs: these and the name of the weight they stand beside
LORA_A, LORA_B = "lora_A.", "lora_B."
LORAS, RANK = "loras", "rank"  # their dynamic dimensions

FAMILIES: tuple[Family, ...] = ("sdxl", "sd35", "flux")
_EVERYWHERE = ("denoiser", "vae_decoder", "vae_encoder", "text_encoder", "text_encoder_2")
COMPONENTS: Mapping[Family, tuple[str, ...]] = {
    "sdxl": _EVERYWHERE,
    "sd35": (*_EVERYWHERE, "text_encoder_3"),
    "flux": _EVERYWHERE,
}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A graph input or output: `shape` mixes fixed sizes and the names of dynamic dimensions."""

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The sizes a dynamic dimension may take; `opt` is the one to tune an engine for."""

    min: int
    opt: int
    max: int

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """What a graph takes beside its weights: products up to `rank` for the `targets`.

    `targets` are the shapes (out, in) of the linear weights by name. `shared` is whether one LoRA
    may serve all rows of a batch, and `least` the lowest rank; a static graph takes the full rank
    for every row.
    """

    rank: int
    least: int
    shared: bool
    targets: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class SegmentSpec:
    """A part of a component's graph, over the same weights file; the parts are run in order.

    `inputs` are values that the component is given or that earlier parts made, `outputs` those that
    later parts or the caller need, and `weights` the initialisers it has, all by name.
    """

    graph: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ComponentSpec:
    """One graph, the safetensors file its initialisers point into, and the shapes it serves.

    `graph` and `weights` are POSIX paths relative to the bundle; `ranges` has one entry for each
    dynamic dimension named in `inputs`; `kept_float32` are the modules of a 16-bit component that
    compute in float32, by the last part of their names. `step` is the denoiser's step graph, a row
    of a sampler's table, over the same weights. `parity` is the worst error against PyTorch over
    all outputs and cases, relative to the largest reference value. `compared` has the same of every
    backend but ONNX Runtime's that was installed and close enough at export, by name. `unneeded`
    are shapes of the network's weights that no output depends on, such as CLIP's last layer for
    SDXL: they are not in the file, and a LoRA may well name them. `segments` are the same graph in
    parts, to be run with the weights of one at a time. `attention_slice` is how many heads of a
    layer of attention the graph computes at once, None for all. `activations` are the bytes that a
    run takes beside the weights: the largest of some polynomials in the sizes of the inputs, by
    monomials such as `batch*height*width`; see `memory.estimate`.

    A graph exported with a rank for LoRAs has two more inputs for every linear weight W, of which
    y = x·Wᵀ + (x·A)·B: `lora_A.W` (loras, in, rank) and `lora_B.W` (loras, rank, out), where
    `loras` is 1, for all rows of the batch, or the batch.
    """

    graph: str
    weights: str
    precision: Precision
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, ShapeRange]
    parameters: int
    parity: float
    kept_float32: tuple[str, ...] = ()
    step: str | None = None
    compared: Mapping[str, float] = field(default_factory=dict)
    unneeded: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    segments: tuple[SegmentSpec, ...] = ()
    attention_slice: int | None = None
    activations: tuple[Mapping[str, float], ...] = ()

    @cached_property
    def lora(self) -> LoraSpec | None:
        """The LoRAs its graph takes as inputs, or None."""
        downs = [each for each in self.inputs if each.name.startswith(LORA_A)]
        ups = {each.name: each for each in self.inputs if each.name.startswith(LORA_B)}
        if not downs:
            return None
        targets = {}
        for down in downs:
            name = down.name.removeprefix(LORA_A)
            targets[name] = (int(ups[LORA_B + name].shape[2]), int(down.shape[1]))
        loras, rank = self.ranges[LORAS], self.ranges[RANK]
        return LoraSpec(rank=rank.max, least=rank.min, shared=loras.min == 1, targets=targets)

    @property
    def plain_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs but for those of LoRAs."""
        return tuple(each for each in self.inputs if not each.name.startswith((LORA_A, LORA_B)))


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """A `tokenizer.json`, the length its encoder takes, and the id that fills the rest."""

    file: str
    max_length: int
    pad_id: int


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The noise schedule the network was trained with, in the checkpoint's own numbers.

    `vp` uses the beta fields, `flow` the shift fields; the others are left at their defaults.
    `spacing` picks N of the training clock's points: for `vp` as in Lin et al. 2023, table 2
    (arXiv 2305.08891); for `flow`, `linspace` ends at the shifted 1/num_train_timesteps (SD3) and
    `trailing` at 1/N (Flux). `final` is what follows the last point: sigma 0, or the training
    schedule's smallest.
    """

    kind: ScheduleKind
    prediction: Prediction
    num_train_timesteps: int = 1000
    spacing: Spacing = "leading"
    final: FinalSigma = "zero"
    # vp: DDPM betas
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_curve: BetaCurve = "scaled_linear"
    steps_offset: int = 1
    zero_terminal_snr: bool = False
    # flow: sigma' = s·sigma / (1 + (s − 1)·sigma), s = shift, or exp(mu) with mu linear in tokens
    shift: float = 1.0
    dynamic_shift: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096


@dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """Latents `(batch, channels, height/factor, width/factor)`; stored = (z − shift)·scale.

    `patch` is the square of latents one denoiser token covers: sizes are multiples of
    `factor·patch`. Flux's denoiser reads its patches packed, as `(batch, tokens, channels·patch²)`.
    """

    channels: int
    factor: int
    scale: float
    shift: float
    patch: int


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a call uses when the caller says nothing."""

    sampler: str
    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    max_sequence_length: int


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size in bytes and sha256 (hex) of a published file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PlanSpec:
    """A TensorRT plan: the graph it was built from, what built it, and the GPUs it is for.

    `version` is the engine's own and `capabilities` are compute capabilities, such as 8.9. A
    profile has sizes for each dynamic dimension of the graph's inputs; the first that holds a call
    serves it best. `attention` counts the graph's attention layers, `fused` those that became one
    kernel. `level` and `workspace` (bytes, None for no limit) are what the builder ended with.
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
    """A LoRA that was merged into the weights at export; sha256 (hex) is its file's."""

    file: str
    sha256: str
    scale: float


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A published bundle, read from `manifest.json`.

    Components by family (graph inputs -> outputs, B batch, h·w latents, T text tokens):

    - all: `vae_decoder` (latents (B,C,h,w) -> image (B,3,fh,fw)),
      `vae_encoder` (image -> mean, logvar (B,C,h,w))
    - sdxl: `denoiser` (sample (B,4,h,w), timestep (B,), encoder_hidden_states (B,T,2048),
      text_embeds (B,1280), time_ids (B,6) -> output), `text_encoder` (input_ids (B,77) ->
      hidden_states), `text_encoder_2` (-> hidden_states, pooled)
    - sd35: `denoiser` (sample (B,16,h,w), timestep, encoder_hidden_states (B,T,4096),
      pooled_projections (B,2048) -> output), `text_encoder`, `text_encoder_2`
      (-> hidden_states, pooled), `text_encoder_3` (-> hidden_states)
    - flux: `denoiser` (sample (B,S,64), timestep, encoder_hidden_states, pooled_projections,
      img_ids (S,3), txt_ids (T,3), and guidance (B,) if distilled -> output), `text_encoder`
      (-> pooled), `text_encoder_2` (-> hidden_states); a guidance below 0 leaves its embedding out

    All but the denoiser may be absent. Without the VAE there are latents and no images; without
    its text encoders a bundle takes embeddings and no prompts, except that in sd35's without
    `text_encoder_3` zeros stand for T5's tokens. A text encoder comes with its tokenizer.

    `timestep` is the training clock in [0, num_train_timesteps) for every family. Tokenizers are
    named as in a diffusers folder: `tokenizer`, `tokenizer_2`, `tokenizer_3`.
    `zero_empty_negative` is SDXL's rule that a missing negative prompt is all zeros. `plans` are by
    file, `baked` the LoRAs that the weights hold.
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

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())

    def path(self, relative: str) -> Path:
        """The absolute path of a file the manifest names."""
        return self.root / relative
