"""Optimizers around any torch.optim.Optimizer: one file each."""
