"""Writes the bundle's weights.

`weights_file` converts and copies them in chunks; `merged_loras` merges LoRAs into them.
Start with `weights_file`.
"""
