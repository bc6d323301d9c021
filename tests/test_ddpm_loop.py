"""scripts/ddpm_loop.py: diffusion in an Accelerate loop through `hf_optim.Session`, without Trainer."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from accelerate.state import GradientState  # noqa: E402

from hf_optim.tasks.data import images  # noqa: E402
from hf_optim.tasks.models.ddpm import DDPMModel  # noqa: E402

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def loop():
    """scripts/ddpm_loop.py, on digits that are read once."""
    spec = importlib.util.spec_from_file_location("ddpm_loop", ROOT / "scripts" / "ddpm_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        digits = images.read(module.DIGITS)
        patch.setattr(images, "read", lambda path: digits)
        GradientState._reset_state()
        yield module
        GradientState._reset_state()


@pytest.mark.parametrize("name", ["adamw", "smaran", "sls"])
def test_the_loop_trains_and_goes_on_bit_identically(loop, name, tmp_path, capsys) -> None:
    common = ["--optimizer", name, "--channels", "4", "--batch", "8", "--warmup", "2", "--save-every", "2"]
    common += ["--clip", "0"] if name == "sls" else ["--accumulation", "2"]

    def run(folder: str, steps: int, *more: str) -> tuple[dict, torch.Tensor]:
        assert loop.main([*common, "--steps", str(steps), "--output", str(tmp_path / folder), *more]) == 0
        said = json.loads(capsys.readouterr().out.splitlines()[-1])
        state = DDPMModel.from_pretrained(tmp_path / folder / "model").state_dict()
        return said, torch.cat([value.flatten() for value in state.values()])

    said, whole = run("whole", 4)
    run("cut", 3)
    again, gone_on = run("cut", 4, "--resume")
    assert torch.equal(gone_on, whole) and again == said
    assert (tmp_path / "whole" / "samples.png").is_file()
    weights, average = whole.split(len(whole) // 2)
    assert not torch.equal(weights, average)


def test_the_loop_says_what_is_wrong(loop, tmp_path, capsys) -> None:
    assert loop.main(["--output", str(tmp_path), "--resume"]) == 2
    assert "holds no state" in capsys.readouterr().err
    assert loop.main(["--output", str(tmp_path), "--optimizer", "adamv"]) == 2
    assert "adamv" in capsys.readouterr().err
