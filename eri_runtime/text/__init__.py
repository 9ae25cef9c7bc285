"""Text: from prompts to token ids to the embeddings that the denoiser is conditioned on.

`prompts` checks prompts; `tokenizer` and `conditioning` encode them for each family;
`borrowed_tokens` adds tokens to a tokenizer;
`syntax` reads AUTOMATIC1111's prompt syntax, `windows` and `weighted_encoding` encode what it says;
`embedding_cache` and `embedding_files` keep embeddings in memory and on disk. Uses `latents` for
Flux's position ids. Start with `conditioning`.
"""

from eri_runtime.text.borrowed_tokens import as_read
from eri_runtime.text.conditioning import (
    REQUIRED_ENCODERS,
    Condition,
    Encode,
    TextEncoders,
    check_encoders,
    condition_from_embeds,
    condition_inputs,
    shared_inputs,
)
from eri_runtime.text.embedding_cache import EmbeddingCache
from eri_runtime.text.embedding_files import EmbeddingFiles, embeddings_folder
from eri_runtime.text.prompts import (
    EMPTY_PROMPT,
    Prompt,
    PromptLike,
    Syntax,
    Text,
    for_encoders,
    make_prompts,
    prompt_columns,
    text_of,
)
from eri_runtime.text.syntax import (
    WeightedText,
    compose,
    parse_emphasis,
    parse_schedule,
    plainly_uses_syntax,
    take_loras,
    text_at,
)
from eri_runtime.text.tokenizer import PromptTokenizer, is_library_error

__all__ = [
    "EMPTY_PROMPT",
    "REQUIRED_ENCODERS",
    "Condition",
    "EmbeddingCache",
    "EmbeddingFiles",
    "Encode",
    "Prompt",
    "PromptLike",
    "PromptTokenizer",
    "Syntax",
    "Text",
    "TextEncoders",
    "WeightedText",
    "as_read",
    "check_encoders",
    "compose",
    "condition_from_embeds",
    "condition_inputs",
    "embeddings_folder",
    "for_encoders",
    "is_library_error",
    "make_prompts",
    "parse_emphasis",
    "parse_schedule",
    "plainly_uses_syntax",
    "prompt_columns",
    "shared_inputs",
    "take_loras",
    "text_at",
    "text_of",
]
