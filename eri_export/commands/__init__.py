"""The commands `eri export`, `eri build`, `eri upgrade` and `eri demo`.

Entry points register them; torch is imported only when a command runs.
"""
