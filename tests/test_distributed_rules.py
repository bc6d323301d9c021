"""Two and three processes, with copies (DDP) or shards (FSDP2) of the model, do what one process does.

The tolerance: everything is float64. Another order of summation changes a gradient by at most about n eps of the sum of
its terms' sizes, 25 * 2e-16 = 6e-15 relatively. A step then moves by as much, times how sharply the rule depends on the
gradient: 1/sqrt(v) of elements far below the typical size is the worst, and six steps compound. 1e-10 of the distance
travelled leaves four orders for that (the largest seen is 1e-13). A norm of this process's part only, a loss of this
process's samples only, or a decision that differs between processes changes the way by 1e-5 and more.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import torch
from distributed_worker import ACCELERATED, CASES, HALF, KINDS, RESHARDED, SHARDED, STEPS, Walk, from_shards

from hf_optim.errors import UserError
from hf_optim.hub import backends

WORKER = Path(__file__).with_name("distributed_worker.py")
CLOSE = 1e-10
#: rules that FSDP1's flat pieces cannot serve: they sum over tensors, or transform whole ones
WORDS = (
    "clip",
    "tlr",
    "hd",
    "_agr",
    "normalize",
    "outlier",
    "centralize",
    "l4",
    "lamb",
    "prodigy",
    "smaran",
    "sps",
    "sls",
    "ponos",
    "mars",
    "cautious",
    "muon",
    "soap",
    "adafactor",
)
SUMMING = {case for case in CASES if any(word in case for word in WORDS)}


def launch(folder: Path, world: int) -> list[dict]:
    """What each process found; every one of them has asserted the number of processes."""
    ranks.run(WORKER, folder, world, world=world)
    return [torch.load(folder / f"world{world}_rank{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def two(folder):
    return launch(folder, 2)


@pytest.fixture(scope="module")
def three(folder, two):
    return launch(folder, 3)


@pytest.fixture(scope="module")
def single():
    """One process: where every case begins, is at HALF, and ends."""
    return {case: [walk.go(t).end().clone() for t in (0, HALF, STEPS)] for case in CASES for walk in [Walk(case)]}


@pytest.fixture(scope="module")
def loaded(folder, two):
    """The shards of two processes, gone on from in one that shards nothing."""
    return from_shards(folder / "shards", lambda model: model, SHARDED)


def same(ended, single, case, at=2):
    assert isinstance(ended, torch.Tensor), ended
    start, *ends = single[case]
    moved = float((ends[at - 1] - start).abs().max())
    assert moved > 1e-5  # a problem on which nothing moves shows nothing
    assert float((ended - ends[at - 1]).abs().max()) <= CLOSE * moved


def test_the_processes_were_as_many_as_asked_for(two, three):
    assert [rank["world"] for rank in two] == [2, 2]
    assert [rank["world"] for rank in three] == [3, 3, 3]
    assert min(rank["rows"]["least"] for rank in two) == 0, "no process had an empty shard"


@pytest.mark.parametrize("case", CASES)
def test_two_copies_equal_one_process(case, single, two):
    same(two[0]["ddp"][case], single, case)
    assert torch.equal(two[0]["ddp"][case], two[1]["ddp"][case])  # also: all took the same line-search decisions


@pytest.mark.parametrize("case", CASES)
def test_three_copies_equal_one_process(case, single, three):
    same(three[0]["ddp"][case], single, case)
    assert all(torch.equal(three[0]["ddp"][case], rank["ddp"][case]) for rank in three[1:])


@pytest.mark.parametrize("case", SHARDED)
def test_two_shards_equal_copies(case, single, two):
    same(two[0]["fsdp"][case], single, case)
    assert torch.equal(two[0]["fsdp"][case], two[1]["fsdp"][case])


@pytest.mark.parametrize("case", ACCELERATED)
def test_a_session_feeds_what_accelerate_has_sharded(case, single, two):
    same(two[0]["accelerated"][case], single, case)
    assert torch.equal(two[0]["accelerated"][case], two[1]["accelerated"][case])


@pytest.mark.parametrize("case", KINDS)
def test_shards_resume_bit_for_bit(case, two):
    assert torch.equal(two[0]["from shards"][case], two[0]["fsdp"][case])


@pytest.mark.parametrize("case", KINDS)
def test_full_state_dicts_resume_bit_for_bit(case, two):
    assert torch.equal(two[0]["from full"][case], two[0]["fsdp"][case])


@pytest.mark.parametrize("case", RESHARDED)
def test_shards_of_two_resume_in_three(case, single, three):
    same(three[0]["from shards"][case], single, case)
    assert all(torch.equal(three[0]["from shards"][case], rank["from shards"][case]) for rank in three[1:])


@pytest.mark.parametrize("case", SHARDED)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_shards_of_two_resume_in_one(case, single, loaded):
    same(loaded[case], single, case)


@pytest.mark.parametrize("case", SHARDED)
def test_fsdp1_serves_element_by_element_rules_and_refuses_the_others(case, single, two):
    result = two[0]["fsdp1"][case]
    if case in SUMMING:
        assert isinstance(result, str) and result.startswith("UserError") and result.count("\n") == 0
        assert "fully_shard" in result or "finds no tensor" in result  # to a transform of matrices, pieces are vectors
    else:
        same(result, single, case, at=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "instead"), [("DEEPSPEED", "FSDP2"), ("FSDP", "fsdp_version 2")])
def test_trainer_and_accelerate_ask_the_same_of_a_rule(case, kind, instead):
    """DeepSpeed is not installed here: an object that says it is the backend, as far as the refusal looks."""
    plugin = type("Plugin", (), {"fsdp_version": 1})()
    backend = type("Backend", (), {"distributed_type": kind, "state": type("State", (), {"fsdp_plugin": plugin})()})()
    opt = Walk(case).opt
    elementwise = case not in SUMMING and case != "decgd" and not hasattr(opt, "base")
    if elementwise:
        backends.refuse(backend, opt, case)
        return
    with pytest.raises(UserError, match=instead) as refused:
        backends.refuse(backend, opt, case)
    assert "\n" not in str(refused.value)


def test_a_transform_of_rows_refuses_shards_of_columns():
    """fully_shard can be told to split another dimension, and tensor parallelism does so."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        walk = Walk("centralize", lambda m: fully_shard(m, shard_placement_fn=lambda p: Shard(p.dim() - 1)))
        with pytest.raises(UserError, match="centralize"):
            walk.step()
    finally:
        dist.destroy_process_group()
