"""Publishing: runs the whole export, and publishes a bundle complete or not at all.

`export_bundle` runs every stage; `atomic_publish` stages, hashes and renames. `upgrade_bundle`
gives an older bundle the newest step graph, and `linked_files` links the files that stay.
Start with `export_bundle`.
"""
