"""The errors a user can cause: one clear line each, never a bug in the library."""


class UserError(ValueError):
    """What was wrong, where, and what to do; the command line prints it and exits with 2."""


class MissingLoss(UserError):
    """A loss-aware rule was stepped without the loss of the batch."""


class BadLoss(UserError):
    """The loss handed to `step` is NaN, infinite, or below what the rule's theory allows."""


class BadCheckpoint(UserError):
    """A state dict that another rule, or the same rule with another structure, has written."""
