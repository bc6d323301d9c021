"""A study: a YAML of optimizers x tasks x seeds, expanded, run, tabulated and reported. Everything between is files.

`plan` expands the YAML into run specifications, `run` executes those without a record, `records` reads them back,
`statistics` and `table` compare, `curves`, `charts` and `report` draw. Each reads only the files of the one before.
"""
