"""Tasks: one file a task, found by its name: `experiment.task.load("vision")` takes `TASK` of `hf_optim.tasks.vision`."""
