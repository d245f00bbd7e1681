"""What stands in `distributed/`, run by torchrun on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

TESTS = Path(__file__).parent / "distributed"
TIMEOUT = 900
"""In seconds; alone on two cores a run takes a tenth of it."""

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


@pytest.mark.parametrize("processes", [2, 4])
def test_under_torchrun(processes):
    """`-x`, since the others would wait for a process that has failed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TORCHELASTIC_"))}
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
            *("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(TESTS)),
        ],
        env={**inherited, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        cwd=TESTS.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
