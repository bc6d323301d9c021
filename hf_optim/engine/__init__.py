"""How a step runs: a rule traced once, emitted as one kernel over all tensors. Nothing here knows an Optimizer."""
