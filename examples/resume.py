"""A run that changes hands: begun with torch.optim.Adam, continued with reimpl.optim.Adam, ended with torch's again.

Run it: python examples/resume.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import reimpl.optim


def train(optim, steps, path):
    """Train with a package's Adam, on from the checkpoint at `path` if there is one; write the next."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Dropout(0.1), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    weights, biases = [model[0].weight, model[3].weight], [model[0].bias, model[3].bias]
    optimizer = optim.Adam([{"params": weights, "weight_decay": 0.01}, {"params": biases}], lr=0.01, amsgrad=True)
    schedule = optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
    if path.exists():
        checkpoint = torch.load(path, weights_only=True)  # numbers and tensors only: no code of the file is run
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        torch.set_rng_state(checkpoint["random"])  # of which dropout and the data are drawn
    for _ in range(steps):
        inputs = torch.randn(64, 8)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), inputs.sin().sum(dim=1, keepdim=True))
        loss.backward()
        optimizer.step()
        schedule.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
    }
    path.parent.mkdir(exist_ok=True)
    torch.save(checkpoint, path)
    print(f"{optim.__name__}.Adam, {steps} steps: loss {loss.item():.6f}")


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        straight, resumed = Path(folder) / "straight" / "run.pt", Path(folder) / "resumed" / "run.pt"
        train(torch.optim, 60, straight)
        for optim in (torch.optim, reimpl.optim, torch.optim):
            train(optim, 20, resumed)
        same = straight.read_bytes() == resumed.read_bytes()
    print("The checkpoints agree in every bit." if same else "The checkpoints differ.")
