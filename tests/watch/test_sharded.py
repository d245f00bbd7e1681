"""Statistics of sharded parameters are those of the whole tensors, on every process."""

import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import reimpl

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch is built without torch.distributed"),
    pytest.mark.skipif(sys.platform != "linux", reason="gloo over loopback"),
]

SHAPES = ((5, 3), (1, 4), (6,))
"""Of two processes, the second has less of the first parameter and nothing of the second."""


def statistics(params, grads):
    """Return what the second of two steps of Adam is said to do, with a plain parameter beside the others."""
    plain = torch.linspace(-1, 1, 7).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [*params, plain]}], lr=0.1, amsgrad=True)
    found = {}
    # One process has the writer; the others take part in the sums.
    writes = not dist.is_initialized() or dist.get_rank() == 0
    reimpl.watch(optimizer, (lambda _, scalars, __: found.update(scalars)) if writes else None, max_norm=1.0)
    for factor in (1.0, -0.5):
        for param, grad in zip([*params, plain], [*grads, torch.ones(7)], strict=True):
            param.grad = factor * grad
        optimizer.step()
    return found


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(2)]


def work(rank, port, results):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    values, grads = tensors()
    placements = [Shard(0), Shard(0), Replicate()]
    params = [
        distribute_tensor(value, mesh, [place]).requires_grad_()
        for value, place in zip(values, placements, strict=True)
    ]
    given = [distribute_tensor(grad, mesh, [place]) for grad, place in zip(grads, placements, strict=True)]
    found = statistics(params, given)
    if rank == 0:
        results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_and_one_say_the_same():
    with torch.random.fork_rng():
        results = mp.get_context("spawn").SimpleQueue()
        server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # finds a free port
        port = server.port
        del server
        mp.spawn(work, (port, results), nprocs=2)
    found = results.get()
    values, grads = tensors()
    expected = statistics([value.requires_grad_() for value in values], grads)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6), name  # sums of float32 in another order
