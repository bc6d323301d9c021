"""Tests see no network, no GPU, one thread each, and nothing of the user's configuration.

They run on the CPU wherever they run, the ones of several processes over gloo: what a GPU does is scripts/gpu.sh's.
"""

import gc
import logging
import os
import random
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# what is compiled once is kept: hundreds of processes import the same sources
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
sys.path.insert(0, str(Path(__file__).parent))

gc.disable()  # until all is collected: what is imported stays

import hypothesis  # noqa: E402 - after the environment that it would pass on
import pytest  # noqa: E402
import ranks  # noqa: E402

#: the same examples everywhere: what a test finds does not hang on the day
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")

#: files of the subset that CONTRIBUTING.md calls quick
QUICK = {"architecture", "arguments", "cli", "docs", "metrics", "plugin", "references", "registry", "study_plan"}

#: files of minutes: begun first, none of them is alone at the end
LONG = {
    "check",
    "distributed_launch",
    "distributed_rules",
    "execution",
    "hub_frameworks",
    "mutations",
    "study_run",
    "triton",
}


def pytest_ignore_collect(collection_path, config):
    """The quick subset does not wait for the import of all other files."""
    other = collection_path.suffix == ".py" and collection_path.stem.removeprefix("test_") not in QUICK
    return True if other and config.option.markexpr == "quick" else None


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)
    for item in items:
        if item.path.stem.removeprefix("test_") in QUICK:
            item.add_marker("quick")


def pytest_collection_finish():
    """Trainer collects garbage whenever it begins, for half a second, unless what stands here is left out."""
    gc.freeze()
    gc.enable()
    logging.getLogger().addHandler(logging.NullHandler())  # what nobody reads is not printed instead


#: pytest adds its handlers to some sixty loggers six times a test: only for tests that ask what was logged, and for
#: all where the command line does (--log-level INFO shows it of what fails)
_logging = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    manager = item.config.pluginmanager
    if any(map(item.config.getoption, ("log_level", "log_cli_level", "log_file"))):
        return
    if "caplog" in item.fixturenames:
        while _logging:
            manager.register(_logging.pop(), "logging-plugin")
    elif (plugin := manager.unregister(name="logging-plugin")) is not None:
        _logging.append(plugin)


@pytest.fixture(autouse=True, scope="session")
def one_process_imports_for_all(tmp_path_factory):
    """Whichever of the processes that test first needs another one starts it (ranks.py)."""
    base = tmp_path_factory.getbasetemp()
    ranks.meeting = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(autouse=True)
def random_numbers_do_not_hang_on_the_tests_before():
    """Which those are goes by how the files fell to the processes."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(0)  # torch.manual_seed keeps a stack trace for a GPU


@pytest.fixture(autouse=True)
def what_is_said_once_is_said_in_every_test():
    """What an earlier test's optimizer said of itself counts for that test alone."""
    notes = sys.modules.get("hf_optim.core.notes")
    if notes is not None:
        notes.once.cache_clear()


@pytest.fixture(autouse=True)
def no_metric_modules_are_left():
    """`evaluate.load` by path leaves a package behind that shadows the one of the next test's cache folder."""
    yield
    if "evaluate_modules" in sys.modules:
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            del sys.modules[name]
