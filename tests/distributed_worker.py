"""One training problem on any number of processes, and what torchrun starts for the tests of several.

Every walk takes the same samples a step, however many processes share them: two epochs of 25 samples in batches of 12,
so the last batch holds a single one and every process but the first has none. The loss handed to backward is the sum
over this process's samples, times processes, over the batch's size: its mean over processes is the batch's mean.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contract import NAMES, make
from torch import nn

from hf_optim import info

SAMPLES, BATCH, EPOCHS = 25, 12, 2
#: steps before the checkpoint, inside TLR's and Lookahead's windows
HALF = 3
SEARCHES = ("sls", "ponos")

#: name of a case -> (optimizer, hyper-parameters): every optimizer, and every way to reduce that a default leaves out
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in NAMES if not info(name).base} | {
    "tlr_legacy": ("tlr_legacy", {"interval": 1}),
    "soap": ("soap", {"max_dim": 1, "frequency": 2}),  # of longer sides rounding chooses the first basis
    "soap bases": ("soap", {"max_dim": 6, "frequency": 2}),
    "muon match": ("muon", {"adjust_lr": "match_rms_adamw", "nesterov": False}),
    "smaran tensor": ("smaran", {"norm_scope": "tensor"}),
    "adan clip": ("adan", {"max_grad_norm": 0.1}),
    "amvt clip": ("amvt", {"clip": 0.1}),
    "adamw_agr all": ("adamw_agr", {"agr_scope": "all", "agr_moments": "all"}),
    "normalize": ("adabelief", {"grad_transform": {"name": "normalize", "outliers": 1.5}}),
    "normalize tensor": ("adan", {"grad_transform": {"name": "normalize", "scope": "tensor"}}),
    "outlier_filter": ("lion", {"grad_transform": {"name": "outlier_filter", "threshold": 1.2}}),
    "centralize": ("yogi", {"grad_transform": "centralize"}),
    "hd_sgd multiplicative": ("hd_sgd", {"rule": "multiplicative", "hypergrad_lr": 0.1}),
    "tlr group": ("tlr", {"scope": "group"}),
    "tlr tensor": ("tlr", {"scope": "tensor"}),
    "tlr exact": ("tlr", {"lookahead": True}),
    "tlr smaran": ("tlr", {"base": {"name": "smaran", "lr": 0.1}}),
    "hdk multiplicative": ("hdk", {"rule": "multiplicative", "eta": 0.1}),
    "lookahead pullback": ("lookahead", {"pullback_momentum": "pullback"}),
    "lookahead tlr": ("lookahead", {"base": {"name": "tlr_sgdm", "interval": 2, "base": {"lr": 0.01}}}),
}


def net(seed: int = 0) -> nn.Module:
    """Rows of 7, 5 and 1: uneven over two and three processes, and some have no row at all."""
    torch.manual_seed(seed)
    layers = nn.Linear(6, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1)
    return nn.Sequential(*layers).double()


def tensors(case: str, model: Any) -> Any:
    """What a case's optimizer is given. Where SOAP rotates, that is what has a basis which rounding does not choose:
    the 6 columns of the first matrix and the 5 rows of the second, which a batch of 12 samples fills. The head's
    gradient has rank 1.
    """
    if case != "soap bases":
        return model
    head = [*model[-1].parameters()]
    rest = [p for p in model.parameters() if all(p is not q for q in head)]
    return [{"params": rest}, {"params": head, "route": "adam"}]


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 6, generator=g, dtype=torch.float64)
    y = (x[:, :1] * x[:, 1:2]).sin() + x[:, 2:3]
    return [*zip(x.split(BATCH), y.split(BATCH), strict=True)] * EPOCHS


STEPS = len(batches())

#: one case of each kind of state, for what torch does alike with all
KINDS = (
    "adamw",
    "smaran",
    "sps",
    "sls",
    "prodigy",
    "l4_mom",
    "hd_sgd",
    "tlr",
    "tlr tensor",
    "tlr exact",
    "lookahead pullback",
    "sgd",
)
#: cases with shards: of the presets one, the others are as their rules
SHARDED = tuple(case for case, (name, _) in CASES.items() if not info(name).arguments or case in KINDS)
ACCELERATED = ("smaran", "sls", "tlr", "adamw_agr")
#: cases that three processes go on with: every kind of state and every scope of a sum
WHOLE = ("muon", "soap", "soap bases", "adafactor", "schedule_free_adamw")
RESHARDED = (*KINDS, *WHOLE, "lamb", "smaran tensor", "adamw_agr", "normalize")


class Walk:
    """An optimizer's way from the seeded weights; `model` is what is called (DDP or FSDP2 around, or in, `net`)."""

    def __init__(self, case: str, wrap: Callable[[nn.Module], nn.Module] = lambda m: m, seed: int = 0) -> None:
        self.case, (name, hyper) = case, CASES[case]
        inner = net(seed)
        self.model = wrap(inner)
        self.opt: Any = make(name, tensors(case, inner), **hyper)
        self.t = 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    @contextlib.contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        if hasattr(self.model, "set_requires_gradient_sync"):
            self.model.set_requires_gradient_sync(last)
            yield
        elif hasattr(self.model, "no_sync") and not last:
            with self.model.no_sync():
                yield
        else:
            yield

    def loss(self, t: int, backward: bool) -> torch.Tensor:
        """The loss of batch t, the same number on every process; with `backward` its gradient too."""
        x, y = (part[self.rank :: self.world] for part in batches()[t])
        total = torch.zeros((), dtype=torch.float64)
        micro = 1 + t % 2  # gradient accumulation in every second step
        for i in range(micro):
            with self._synchronised(i == micro - 1), torch.set_grad_enabled(backward):
                error = self.model(x[i::micro]) - y[i::micro]
                part = error.square().sum() * self.world / len(batches()[t][0])
                if backward:
                    part.backward()
            total += part.detach()
        if self.world > 1:
            dist.all_reduce(total)
        return total / self.world

    def step(self) -> None:
        t, self.t = self.t, self.t + 1

        def closure() -> torch.Tensor:
            self.opt.zero_grad()
            return self.loss(t, backward=True)

        if self.case in ("tlr exact", *SEARCHES) and (t % 2 == 0 or self.case not in SEARCHES):
            self.opt.step(closure)
            return
        loss = closure()
        if self.case in SEARCHES:
            self.opt.step(loss=loss, evaluate=lambda: self.loss(t, backward=False))
        else:
            self.opt.step(loss=loss)

    def go(self, steps: int = STEPS) -> Walk:
        while self.t < steps:
            self.step()
        return self

    def end(self) -> torch.Tensor:
        """All parameters in one vector, whole ones."""
        parts = [p.detach() for p in self.model.parameters()]
        return torch.cat([(p.full_tensor() if hasattr(p, "full_tensor") else p).flatten() for p in parts])


# --- what the processes do -------------------------------------------------------------------------------------------


def tried(cases: Iterable[str], do: Callable[[str], Any]) -> dict[str, Any]:
    """do(case) for every case, or the line in which it was refused."""
    results: dict[str, Any] = {}
    for case in cases:
        try:
            results[case] = do(case)
        except Exception as error:  # noqa: BLE001 - a test reads it
            results[case] = f"{type(error).__name__}: {error}"
    return results


def ddp(case: str) -> torch.Tensor:
    return Walk(case, nn.parallel.DistributedDataParallel).go().end()


def shard(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model[3])  # type: ignore[index]
    return fully_shard(model)


def parts(walk: Walk, **options: Any) -> dict[str, Any]:
    """Model and optimizer as torch's distributed checkpoints keep them."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    weights, state = get_state_dict(walk.model, walk.opt, options=StateDictOptions(**options))
    return {"model": weights, "optimizer": state}


def load(walk: Walk, kept: dict[str, Any], **options: Any) -> Walk:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        walk.model,
        walk.opt,
        model_state_dict=kept["model"],
        optim_state_dict=kept["optimizer"],
        options=StateDictOptions(**options),
    )
    walk.t = HALF
    return walk


def fsdp1(case: str) -> torch.Tensor:
    """Half a walk in flat pieces."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    walk = Walk(case, lambda m: FullyShardedDataParallel(m, use_orig_params=True, device_id=torch.device("cpu")))
    walk.go(HALF)
    with FullyShardedDataParallel.summon_full_params(walk.model):
        return walk.end().clone()


def accelerated(case: str) -> torch.Tensor:
    """A walk in an Accelerate loop that shards by FSDP2, whose `Session` gives the rule its loss."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, GradientState

    from hf_optim import Session

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap", reshard_after_forward=True)
    accelerator, walk = Accelerator(cpu=True, fsdp_plugin=plugin), Walk(case)
    # Accelerate gives up the plugin it was handed when there is no GPU.
    accelerator.state.fsdp_plugin, accelerator.state.distributed_type = plugin, "FSDP"
    walk.model, opt = accelerator.prepare(walk.model, walk.opt)
    assert all(hasattr(p, "full_tensor") for p in walk.model.parameters())
    session = Session(accelerator, opt)
    for x, y in batches():
        mine = slice(walk.rank, None, walk.world)
        session.loss(lambda x, y, n: (walk.model(x) - y).square().sum() * walk.world / n, x[mine], y[mine], len(x))
        session.step()
    return walk.end()


def from_shards(folder: Path, wrap: Callable[[nn.Module], nn.Module], cases: Iterable[str]) -> dict[str, Any]:
    """The cases go on from the sharded checkpoint in `folder`, whatever wrote it, to their end."""
    import torch.distributed.checkpoint as dcp

    walks = tried(cases, lambda case: Walk(case, wrap, seed=5))
    kept = tried(cases, lambda case: parts(walks[case]))
    dcp.load(kept, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
    return tried(cases, lambda case: load(walks[case], kept[case]).go().end())


def fsdp(folder: Path) -> dict[str, dict[str, Any]]:
    """Sharded walks to their end, with both kinds of checkpoint at HALF and the ways that go on from them."""
    import torch.distributed.checkpoint as dcp

    walks = tried(SHARDED, lambda case: Walk(case, shard).go(HALF))
    full = tried(KINDS, lambda case: copy.deepcopy(parts(walks[case], full_state_dict=True)))  # counts are not copies
    dcp.save(tried(SHARDED, lambda case: parts(walks[case])), checkpoint_id=str(folder))
    return {
        "fsdp": tried(SHARDED, lambda case: walks[case].go().end()),
        "from shards": from_shards(folder, shard, KINDS),
        "from full": tried(
            KINDS, lambda case: load(Walk(case, shard, seed=5), full[case], full_state_dict=True).go().end()
        ),
        "fsdp1": tried(SHARDED, fsdp1),
        "accelerated": tried(ACCELERATED, accelerated),
        "rows": {"least": min(p.to_local().shape[0] for p in walks["adamw"].model.parameters())},
    }


def main(folder: Path, world: int) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    assert dist.get_world_size() == world
    results: dict[str, Any] = {"world": dist.get_world_size(), "ddp": tried(CASES, ddp)}
    if world == 2:
        results |= fsdp(folder / "shards")
    else:
        results["from shards"] = from_shards(folder / "shards", shard, RESHARDED)
    torch.save(results, folder / f"world{world}_rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
