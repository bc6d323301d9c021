"""The documented way to start several processes, and what happens when one of them is killed."""

from __future__ import annotations

import json
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import psutil
import pytest
import ranks
import torch
import yaml
from untimed import untimed

from hf_optim.commands.train import parse

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
DOCS = ROOT / "docs" / "distributed.md"
STEPS, EVERY = 120, 20
#: seconds after which a launcher that does not end is taken to hang
BOUND = 600
RUN = [
    "--task",
    "vision",
    "--size",
    "smoke",
    "--model",
    "mlp",
    "--optimizer",
    "lookahead",
    "--optimizer.k",
    "7",
    "--optimizer.base",
    "smaran",
    "--steps",
    str(STEPS),
    "--eval-every",
    str(STEPS),
    "--checkpoint-every",
    str(EVERY),
]


ACCELERATE = [
    "accelerate.commands.accelerate_cli",
    "launch",
    "--config_file",
    "configs/accelerate/ddp.yaml",
    "--main_process_port",
    "0",
]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


#: scripts/train.py with a second process that is late with its part of a checkpoint
LATE = """
import os, pathlib, runpy, sys, time
import torch
pathlib.Path(__file__).with_name(os.environ["RANK"] + ".pid").write_text(str(os.getpid()))
save = torch.save
def late(value, file, *rest, **how):
    if "rng_state_1" in str(file):
        time.sleep(0.5)
    return save(value, file, *rest, **how)
torch.save = late
sys.path.insert(0, "scripts")
runpy.run_path("scripts/train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("launched") / "whole"
    code, said = forked.launch(*ACCELERATE, "scripts/train.py", *RUN, "--output", folder, new=True)
    assert code == 0, said[-4000:]
    return folder, said


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run whose second process is killed behind the second checkpoint: and the launcher's words."""
    folder = tmp_path_factory.mktemp("launched") / "killed"
    (script := folder.parent / "late_train.py").write_text(LATE)
    with ThreadPoolExecutor() as pool:
        launched = pool.submit(forked.launch, *TORCHRUN, script, *RUN, "--output", folder)
        mark, deadline = folder / f"checkpoint-{2 * EVERY}" / "trainer_state.json", time.monotonic() + BOUND
        while not mark.is_file():
            assert not launched.done() and time.monotonic() < deadline, launched.result()
            time.sleep(0.005)
        both = [psutil.Process(int(script.with_name(f"{rank}.pid").read_text())) for rank in (0, 1)]
        both[1].kill()
        return folder, *launched.result(), both


def test_the_documented_command_trains_in_two_processes(whole):
    folder, out = whole
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "ok" and record["environment"]["processes"] == 2
    assert "on 2 processes" in out and record["metrics"]["test_accuracy"] > 0.7
    assert out.count("record: ") == 1  # one process writes and speaks


def test_killing_one_process_ends_the_other_and_says_so(killed):
    folder, code, out, both = killed
    assert code != 0
    assert re.search(r"SIGKILL|exitcode: -9", out), out[-4000:]
    assert not (folder / "record.json").exists()  # so that a study runs it again
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in both)


def test_the_killed_run_resumes_bit_for_bit(whole, killed):
    folder, interrupted = whole[0], killed[0]
    for number in (0, 1):  # the first process's last word came after the other's part
        assert torch.load(interrupted / f"checkpoint-{2 * EVERY}" / f"rng_state_{number}.pth", weights_only=False)
    ranks.run("scripts/train.py", *RUN, "--output", interrupted, "--resume", world=2)
    straight, other = (json.loads((f / "record.json").read_text()) for f in (folder, interrupted))
    assert other["metrics"] == straight["metrics"] and other["time"]["steps"] == STEPS
    last = f"checkpoint-{STEPS}"
    assert untimed(folder) == untimed(interrupted)
    assert (folder / last / "model.safetensors").read_bytes() == (interrupted / last / "model.safetensors").read_bytes()
    states = [torch.load(f / last / "optimizer.pt", weights_only=True) for f in (folder, interrupted)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for p, slots in states[0]["state"].items():
        assert all(torch.equal(value, states[1]["state"][p][name]) for name, value in slots.items())


# --- the files and the page -------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every command of the page that starts a training, with its continuation lines."""
    text = DOCS.read_text(encoding="utf-8").replace("\\\n", " ")
    return [
        " ".join(line.split())
        for line in text.splitlines()
        if "scripts/train.py" in line and line.strip().startswith(("accelerate launch", "torchrun", "srun"))
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_every_key_of_the_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    kind = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}[path.stem]
    config = load_config_from_file(str(path))  # an unknown key raises
    assert str(getattr(config.distributed_type, "value", config.distributed_type)) == kind
    assert config.fsdp_config.get("fsdp_version") == (2 if path.stem == "fsdp2" else None)


def test_the_fsdp2_keys_are_the_ones_accelerate_reads():
    from accelerate.commands.launch import launch_command_parser

    known = vars(launch_command_parser().parse_args(["train.py"]))
    given = yaml.safe_load((ROOT / "configs" / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
    assert not [key for key in given if key not in known]


def test_the_page_and_the_configurations_name_each_other():
    text = DOCS.read_text(encoding="utf-8")
    assert {path.stem for path in CONFIGS} == {"single", "ddp", "fsdp2"}
    for path in CONFIGS:
        relative = f"configs/accelerate/{path.name}"
        assert relative in text and relative in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_page_can_be_typed(command):
    """The launcher's own parser takes its part, the script's its part, and the files named exist."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    words = shlex.split(command)
    if words[0] == "srun":
        words = words[next(i for i, word in enumerate(words) if word in ("accelerate", "torchrun")) :]
    numbers = {"$SLURM_NNODES": "2", "$SLURM_NODEID": "0", "$SLURM_PROCID": "0", "$HEAD": "n1", "$GPUS": "8"}
    words = [
        re.sub(r"\$\{?\w+\}?", lambda m: numbers.get(m[0].replace("{", "").replace("}", ""), "1"), word)
        for word in words
    ]
    arguments = words[2:] if words[0] == "accelerate" else words[1:]
    taken = (launch_command_parser() if words[0] == "accelerate" else get_args_parser()).parse_args(arguments)
    assert taken.training_script == "scripts/train.py" and (ROOT / taken.training_script).is_file()
    if getattr(taken, "config_file", None):
        assert (ROOT / taken.config_file).is_file()
    parse([str(word) for word in taken.training_script_args])


def test_the_page_has_commands():
    assert len(commands()) >= 5
