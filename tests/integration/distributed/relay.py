"""One launch of a relay that `test_distributed.py` runs: each goes on from the checkpoint that the last has left.

The environment says which leg it is (RELAY_LEG), whose optimizer runs (RELAY_BY) and where checkpoints are
(RELAY_FOLDER). Within one launch, `test_checkpoints.py` has more.
"""

import os
from pathlib import Path

from torch.distributed.device_mesh import init_device_mesh

from helpers import OPTIONS, assert_same, pair
from integration.distributed.test_checkpoints import Network, load, optimizer_of, save, spread, straight, train, whole

STEPS = 2
"""The number of steps in a leg."""


def test_leg(name, processes, device):
    leg, folder = int(os.environ["RELAY_LEG"]), Path(os.environ["RELAY_FOLDER"])
    ours, theirs = pair(name)
    runs = ours if os.environ["RELAY_BY"] == "ours" or name == "Rprop" else theirs  # torch's Rprop cannot be sharded
    model = spread(Network(), "FSDP2", init_device_mesh(device, (processes,)))
    optimizer = optimizer_of(runs, model, **OPTIONS[name], foreach=False)
    if leg > 0:
        load(folder / f"{name} {leg - 1}", model, optimizer)
    train(model, optimizer, range(STEPS * leg, STEPS * (leg + 1)))
    save(folder / f"{name} {leg}", model, optimizer)
    expected = straight(theirs, device, range(STEPS * (leg + 1)), **OPTIONS[name], foreach=False)
    assert_same(whole(model, optimizer), expected)
