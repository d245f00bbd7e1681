"""`examples/fsdp2.py` under `torchrun --max-restarts`: killing a process costs time, and no bit of the result."""

import re
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from helpers import ROOT, assert_same, torchrun

EXAMPLE = ROOT / "examples" / "fsdp2.py"
STEPS, EVERY, TIMEOUT = 16, 4, 300

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed"),
    pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGKILL"),
]

KILLER = """
import os
import runpy
import signal
import sys
from pkgutil import resolve_name

where, method, rank, call, deaths = sys.argv.pop(1).split()
owner, calls = resolve_name(where), 0
original = getattr(owner, method)
dies = os.environ["RANK"] == rank and int(os.environ["TORCHELASTIC_RESTART_COUNT"]) < int(deaths)


def counted(*args, **kwargs):
    global calls
    calls += 1
    if dies and calls == int(call):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)


setattr(owner, method, counted)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script, of which one process kills itself before a certain call of a method, in each of the first starts."""

MOMENTS = {
    "backward": ("torch:Tensor backward 0 7 1", [4]),
    "step, three times": ("reimpl.optim:AdamW step 1 7 3", [4, 8, 12]),
    "writing a shard": ("torch.distributed.checkpoint.filesystem:FileSystemWriter write_data 1 2 1", [4]),
    "completing a checkpoint": ("torch.distributed.checkpoint.filesystem:FileSystem rename 0 2 1", [4]),
}
"""What is called, by which process, for which time, and how often it dies; and after which steps training goes on."""


def train(folder, *command):
    """Run the example, with a store of its own for each start: in a shared one, torch finds addresses of the dead."""
    return torchrun(
        *(2, "--max-restarts", 3, *command, EXAMPLE, "--folder", folder, "--steps", STEPS, "--every", EVERY),
        timeout=TIMEOUT,
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
    )


def kept(folder):
    """Return what the last checkpoint of a run holds, by the path to it."""
    dcp_to_torch_save(folder / f"step-{STEPS:06}", folder / "last.pt")
    return dict(leaves(torch.load(folder / "last.pt")))


def leaves(value, path=""):
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}/{key}")
    else:
        yield path, value


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run = train(folder)
    assert run.returncode == 0, run.stdout
    return kept(folder)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_process(moment, undisturbed, tmp_path):
    call, resumed = MOMENTS[moment]
    killer = tmp_path / "killer.py"
    killer.write_text(KILLER)
    run = train(tmp_path, killer, call)
    assert run.returncode == 0, run.stdout
    assert list(map(int, re.findall(r"process 0 goes on after step (\d+)", run.stdout))) == resumed
    assert_same(kept(tmp_path), undisturbed)
