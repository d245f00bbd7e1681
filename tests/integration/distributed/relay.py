"""One launch of a relay that `test_distributed.py` runs: each goes on from the checkpoint that the last has left.

The environment says which leg it is (RELAY_LEG), whose optimizer runs (RELAY_BY) and where checkpoints are
(RELAY_FOLDER). Within one launch, `test_checkpoints.py` has more.
"""

import os
from pathlib import Path

from torch.distributed.device_mesh import init_device_mesh

from helpers import OPTIONS, assert_same, pair
from integration.distributed.test_checkpoints import LEG, run_leg, runners, save, straight, whole


def test_leg(name, processes, device):
    leg, folder = int(os.environ["RELAY_LEG"]), Path(os.environ["RELAY_FOLDER"])
    options = OPTIONS[name] | {"foreach": False}
    mesh = init_device_mesh(device, (processes,))
    cls = runners(name)[os.environ["RELAY_BY"]]
    model, optimizer = run_leg(cls, leg, mesh, folder / f"{name} {leg - 1}", **options)
    save(folder / f"{name} {leg}", model, optimizer)
    _, theirs = pair(name)
    assert_same(whole(model, optimizer), straight(theirs, device, range(LEG * (leg + 1)), **options))
