"""The mathematics of sampling, on NumPy arrays, without an engine.

`schedule`, `betas`, `sigmas`, `spacing` and `levels` make noise levels and `samplers` holds the
algorithms, which `tabulation` converts to a `table` of coefficients; `sampler_names` finds one by
the names that people write. `noise`, `torch_randn` and
`brownian` draw noise; `guidance` and `thresholding` change predictions. Uses `bundle` for a
checkpoint's training schedule. Start with `samplers`, then `table`.
"""

from eri_runtime.sampling.betas import alphas_cumprod
from eri_runtime.sampling.brownian import BrownianNoise, noise_intervals
from eri_runtime.sampling.generators import GeneratorNoise, make_streams
from eri_runtime.sampling.guidance import (
    NO_EMBEDDING,
    Guidance,
    cfg_mix,
    check_fraction,
    check_interval,
    mix_predictions,
    per_image,
    rescale_guided,
)
from eri_runtime.sampling.noise import (
    NoiseName,
    NoiseSource,
    PhiloxNoise,
    TorchNoise,
    check_noise,
    image_seeds,
)
from eri_runtime.sampling.sampler_names import (
    REFUSED,
    SCHEDULERS,
    Scheduler,
    choose_sampler,
    choose_scheduler,
    find_sampler,
    full_name,
    names_of,
    samplers_for,
)
from eri_runtime.sampling.samplers import CHURN, ETA, SAMPLERS, Sampler, ddim
from eri_runtime.sampling.schedule import (
    Clock,
    Point,
    Schedule,
    make_schedule,
    shift_sigma,
    shifted_levels,
)
from eri_runtime.sampling.sigmas import Float64, SigmaName
from eri_runtime.sampling.spacing import check_spacing, with_spacing
from eri_runtime.sampling.table import COLUMNS, MAX_V, MAX_W, SamplerTable
from eri_runtime.sampling.tabulation import make_table, tabulate
from eri_runtime.sampling.thresholding import (
    PERCENTILE,
    check_limits,
    dynamic_thresholding,
    scheduler_clipping,
)
from eri_runtime.sampling.torch_randn import MAX_SEED, TorchNormal

__all__ = [
    "CHURN",
    "COLUMNS",
    "ETA",
    "MAX_SEED",
    "MAX_V",
    "MAX_W",
    "NO_EMBEDDING",
    "PERCENTILE",
    "REFUSED",
    "SAMPLERS",
    "SCHEDULERS",
    "BrownianNoise",
    "Clock",
    "Float64",
    "GeneratorNoise",
    "Guidance",
    "NoiseName",
    "NoiseSource",
    "PhiloxNoise",
    "Point",
    "Sampler",
    "SamplerTable",
    "Schedule",
    "Scheduler",
    "SigmaName",
    "TorchNoise",
    "TorchNormal",
    "alphas_cumprod",
    "cfg_mix",
    "check_fraction",
    "check_interval",
    "check_limits",
    "check_noise",
    "check_spacing",
    "choose_sampler",
    "choose_scheduler",
    "ddim",
    "dynamic_thresholding",
    "find_sampler",
    "full_name",
    "image_seeds",
    "make_schedule",
    "make_streams",
    "make_table",
    "mix_predictions",
    "names_of",
    "noise_intervals",
    "per_image",
    "rescale_guided",
    "samplers_for",
    "scheduler_clipping",
    "shift_sigma",
    "shifted_levels",
    "tabulate",
    "with_spacing",
]
