"""Publishing: runs the whole export, and publishes a bundle complete or not at all.

`export_bundle` runs every stage; `atomic_publish` stages, hashes and renames.
Start with `export_bundle`.
"""
