"""Building blocks for your own denoising loop, under the names of the Rust sampling API.

`ddpm_scheduler` (its argument checks in `ddpm_checks`), `flow_schedules` and `sdxl_forward` are
thin wrappers around `sampling`, `loop` and `pipeline`.
"""

from eri_runtime.standalone.ddpm_scheduler import DDPMScheduler
from eri_runtime.standalone.flow_schedules import get_flux_schedule, get_linear_schedule
from eri_runtime.standalone.sdxl_forward import forward_sdxl_sampling

__all__ = [
    "DDPMScheduler",
    "forward_sdxl_sampling",
    "get_flux_schedule",
    "get_linear_schedule",
]
