"""What stands in `distributed/`, run by torchrun on this machine."""

from pathlib import Path

import pytest
import torch.distributed as dist

from helpers import torchrun

TESTS = Path(__file__).parent / "distributed"
TIMEOUT = 900
"""In seconds; alone on two cores a run takes a tenth of it."""

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.mark.parametrize("processes", [2, 4])
def test_under_torchrun(processes):
    """`-x`, since the others would wait for a process that has failed."""
    run = torchrun(processes, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", TESTS, timeout=TIMEOUT)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
