"""What stands in `distributed/`, run by torchrun on this machine."""

from pathlib import Path

import pytest
import torch.distributed as dist

from helpers import OPTIONS, torchrun

TESTS = Path(__file__).parent / "distributed"
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider")
"""`-x`, since the others would wait for a process that has failed."""
TIMEOUT = 900
"""In seconds; alone on two cores a run takes a tenth of it."""

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.mark.parametrize("processes", [2, 4])
def test_under_torchrun(processes):
    run = torchrun(processes, *PYTEST, TESTS, timeout=TIMEOUT)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


def test_checkpoint_goes_from_launch_to_launch(tmp_path):
    """What torch's optimizer writes on 4 processes, ours resumes on 2, and torch's again on 4."""
    for leg, (by, processes) in enumerate([("torch", 4), ("ours", 2), ("torch", 4)]):
        where = {"RELAY_LEG": str(leg), "RELAY_BY": by, "RELAY_FOLDER": str(tmp_path)}
        run = torchrun(processes, *PYTEST, TESTS / "relay.py", timeout=TIMEOUT, **where)
        assert run.returncode == 0, run.stdout
        assert f"{len(OPTIONS)} passed" in run.stdout
