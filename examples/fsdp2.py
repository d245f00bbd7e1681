"""A small transformer, sharded over processes by FSDP2, that learns to count. Started again, it goes on where it was.

Run it: torchrun --nproc-per-node 2 examples/fsdp2.py
To go on by itself when a process dies: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --max-restarts 3 ...
"""

import argparse
import os
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler

from reimpl import optim

TOKENS, LENGTH, WIDTH, BATCH = 16, 12, 32, 32
START, STRIDE = torch.meshgrid(torch.arange(TOKENS), torch.arange(1, 8), indexing="ij")
SEQUENCES = (START.reshape(-1, 1) + STRIDE.reshape(-1, 1) * torch.arange(LENGTH + 1)) % TOKENS


class Transformer(torch.nn.Module):
    """Predicts each token of a sequence from those before it."""

    def __init__(self):
        super().__init__()
        self.token, self.place = torch.nn.Embedding(TOKENS, WIDTH), torch.nn.Embedding(LENGTH, WIDTH)
        layer = torch.nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, num_layers=2)
        self.head = torch.nn.Linear(WIDTH, TOKENS)

    def forward(self, sequence):
        """Return the loss."""
        mask = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH, device=sequence.device)
        hidden = self.encoder(self.token(sequence[:, :-1]) + self.place.weight, mask=mask, is_causal=True)
        return torch.nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), sequence[:, 1:].flatten())


def train(mesh, folder, steps, every):
    """Train on from the newest complete checkpoint in `folder`, and write one after `every` so many steps."""
    torch.manual_seed(0)
    model = Transformer().to(mesh.device_type)
    for module in (*model.encoder.layers, model):
        fully_shard(module, mesh=mesh)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    sampler = DistributedSampler(SEQUENCES, drop_last=True)
    loader = DataLoader(SEQUENCES, BATCH // dist.get_world_size(), sampler=sampler, drop_last=True)

    def state(step):
        weights, moments = get_state_dict(model, optimizer)
        return {"model": weights, "optimizer": moments, "schedule": schedule.state_dict(), "step": step}

    step = 0
    if complete := sorted(path.parent for path in folder.glob("step-*/.metadata")):  # the file that is written last
        found = state(step)
        dcp.load(found, checkpoint_id=complete[-1])
        set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
        schedule.load_state_dict(found["schedule"])
        step = found["step"]
        print(f"process {dist.get_rank()} goes on after step {step}", flush=True)
    while step < steps:
        epoch, done = divmod(step, len(loader))
        sampler.set_epoch(epoch)  # which decides the order of the data
        for sequence in islice(loader, done, done + steps - step):
            optimizer.zero_grad()
            loss = model(sequence.to(mesh.device_type))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % every == 0:
                dcp.save(state(step), checkpoint_id=folder / f"step-{step:06}")
                print(f"step {step}: loss {loss.item():.4f} in process {dist.get_rank()}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/fsdp2"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=20)
    on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    mesh = init_device_mesh("cuda" if on_gpus else "cpu", (int(os.environ["WORLD_SIZE"]),))  # and joins the processes
    train(mesh, **vars(parser.parse_args()))
    dist.barrier()  # gloo's threads have to let go of their tensors before the interpreter ends
    dist.destroy_process_group()
