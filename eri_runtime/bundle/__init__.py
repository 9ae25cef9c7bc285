"""The bundle: the format in which the exporter passes a model to the runtime.

`spec`, `component_spec`, `schedule_spec` and `level_spec` define the dataclasses of the manifest,
`manifest` reads and writes it, and `integrity` checks files against it; `hashes` has their sha256,
`weight_hashes` compares weights while they are opened, and `pinned_files` notices files that change
while a bundle is in use. `safetensors_header` and `safetensors_file` memory-map weights;
`magic_bytes` recognises files that are not safetensors, `not_a_bundle` paths that are no bundle.
`hub` downloads files of the Hugging Face Hub, `user_folders` names the cache. `manifest_limits` and
`interfaces` say what a manifest may hold. Uses `errors`, `checks`, `files`, `partial_files` only.
Start with `spec`.
"""

from eri_runtime.bundle import hub
from eri_runtime.bundle.component_spec import (
    CACHED_HIDDEN,
    CACHED_REST,
    COPIES,
    RESIDUAL,
    SCORES,
)
from eri_runtime.bundle.hashes import FileRecord, Listener, file_record, no_progress, sha256
from eri_runtime.bundle.integrity import (
    verify_all,
    verify_hashes,
    verify_on_load,
    verify_sizes,
)
from eri_runtime.bundle.magic_bytes import pickle_error, starts_as_pickle
from eri_runtime.bundle.manifest import read as read_bundle
from eri_runtime.bundle.pinned_files import file_state
from eri_runtime.bundle.safetensors_file import (
    TensorFile,
    damaged_error,
    open_regular_file,
    read_header,
    read_tensors,
    round_to,
)
from eri_runtime.bundle.safetensors_header import Entry, parse_header
from eri_runtime.bundle.spec import (
    COMPONENTS,
    DENOISER,
    LORA_A,
    LORA_B,
    LORAS,
    MANIFEST,
    RANK,
    BakedLora,
    BetaCurve,
    Bundle,
    ComponentSpec,
    Defaults,
    EngineName,
    Family,
    FinalSigma,
    GateKind,
    LatentSpec,
    LevelSpec,
    LoraSpec,
    PlanFlag,
    PlanSpec,
    Precision,
    Prediction,
    Rounding,
    ScheduleKind,
    ScheduleSpec,
    SegmentSpec,
    ShapeRange,
    ShiftCurve,
    Spacing,
    Spread,
    TensorSpec,
    TokenizerSpec,
)
from eri_runtime.bundle.user_folders import cache_folder
from eri_runtime.bundle.weight_hashes import Verify, WeightHashes

__all__ = [
    "CACHED_HIDDEN",
    "CACHED_REST",
    "COMPONENTS",
    "COPIES",
    "DENOISER",
    "LORAS",
    "LORA_A",
    "LORA_B",
    "MANIFEST",
    "RANK",
    "RESIDUAL",
    "SCORES",
    "BakedLora",
    "BetaCurve",
    "Bundle",
    "ComponentSpec",
    "Defaults",
    "EngineName",
    "Entry",
    "Family",
    "FileRecord",
    "FinalSigma",
    "GateKind",
    "LatentSpec",
    "LevelSpec",
    "Listener",
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
    "TensorFile",
    "TensorSpec",
    "TokenizerSpec",
    "Verify",
    "WeightHashes",
    "cache_folder",
    "damaged_error",
    "file_record",
    "file_state",
    "hub",
    "no_progress",
    "open_regular_file",
    "parse_header",
    "pickle_error",
    "read_bundle",
    "read_header",
    "read_tensors",
    "round_to",
    "sha256",
    "starts_as_pickle",
    "verify_all",
    "verify_hashes",
    "verify_on_load",
    "verify_sizes",
]
