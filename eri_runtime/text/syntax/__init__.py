"""AUTOMATIC1111's prompt syntax, as text only: nothing here knows a tokenizer.

`composition` splits a prompt at `AND` and takes out `<lora:name:weight>`, `scheduling` says which
text holds at which evaluation (`[a:b:0.4]`, `[a|b]`), and `emphasis` gives pieces of a text their
weights (`(word:1.3)`) and windows of their own (`BREAK`). Formulas and rules are those of
`modules/prompt_parser.py` and `modules/sd_hijack_clip.py` of AUTOMATIC1111's
stable-diffusion-webui. Start with `emphasis`.
"""

from eri_runtime.text.syntax.composition import compose, take_loras
from eri_runtime.text.syntax.detection import plainly_uses_syntax
from eri_runtime.text.syntax.emphasis import Piece, WeightedText, parse_emphasis
from eri_runtime.text.syntax.scheduling import Stage, parse_schedule, text_at

__all__ = [
    "Piece",
    "Stage",
    "WeightedText",
    "compose",
    "parse_emphasis",
    "parse_schedule",
    "plainly_uses_syntax",
    "take_loras",
    "text_at",
]
