"""axolotl: `plugins: [hf_optim.hub.axolotl.Plugin]` and `hf_optim: {name: smaran, gamma: 0.9}` in its YAML."""

from __future__ import annotations

from typing import Any

from hf_optim.errors import UserError
from hf_optim.hub.attaching import attach
from hf_optim.hub.attachment import Attachment

try:
    from axolotl.integrations.base import BasePlugin  # type: ignore[import-not-found, unused-ignore]
except ImportError:  # its interface, as far as this plugin is called through it
    BasePlugin = object  # type: ignore[assignment, misc, unused-ignore]


#: axolotl's arguments that divide parameters for its own optimizers, and that an attached one would not see
_OWN_GROUPS = ("loraplus_lr_ratio", "embedding_lr", "embedding_lr_scale", "lr_groups")


class Plugin(BasePlugin):  # type: ignore[misc, unused-ignore]
    """Attaches the optimizer of `cfg.hf_optim` to the trainer that axolotl has built."""

    def get_input_args(self) -> str:
        """Where axolotl finds the type of our key in its YAML."""
        return "hf_optim.hub.axolotl.Arguments"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> Attachment:
        """Called by axolotl between building the trainer and training."""
        spec = cfg.get("hf_optim") if hasattr(cfg, "get") else getattr(cfg, "hf_optim", None)
        if not spec:
            raise UserError("the hf_optim plugin needs `hf_optim: {name: ...}` in the YAML, or leave the plugin out")
        own = [key for key in _OWN_GROUPS if getattr(trainer.args, key, None) is not None]
        if own:
            raise UserError(f"{', '.join(own)} of axolotl would have no effect on an attached optimizer: leave it out")
        return attach(trainer, spec if isinstance(spec, str) else dict(spec))


def __getattr__(name: str) -> Any:
    if name != "Arguments":
        raise AttributeError(name)
    from pydantic import BaseModel

    class Arguments(BaseModel):
        """What the plugin adds to axolotl's YAML."""

        hf_optim: str | dict[str, Any] | None = None

    return Arguments
