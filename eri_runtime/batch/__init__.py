"""Many prompts: batches of jobs, prompt files, and runs that can be resumed.

`job_batches` generates jobs in batches that do not change their images, `prompt_files` reads
`.txt`, `.jsonl` and `.csv` files, and `run_folder` records finished images. Start with
`job_batches`.
"""

from eri_runtime.batch.job_batches import (
    JOB_KEYWORDS,
    SHARED_JOB_KEYWORDS,
    batch_sample,
    check_batch_size,
    check_shared_words,
    complete_jobs,
    draw_batches,
)
from eri_runtime.batch.prompt_files import Line, read_prompts
from eri_runtime.batch.run_folder import Run, make_entries, weight_hashes

__all__ = [
    "JOB_KEYWORDS",
    "SHARED_JOB_KEYWORDS",
    "Line",
    "Run",
    "batch_sample",
    "check_batch_size",
    "check_shared_words",
    "complete_jobs",
    "draw_batches",
    "make_entries",
    "read_prompts",
    "weight_hashes",
]
