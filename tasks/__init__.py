"""Tasks: one file a task, found by its name (`hf_optim.task.load("vision")` imports `tasks.vision` and takes
`TASK`).
"""
