"""Tasks, one file each: `experiment.task.load("vision")` takes `TASK` of `hf_optim.tasks.vision`."""
