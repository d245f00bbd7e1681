"""Four optimizers learn to read handwritten digits, and what each of them does is watched.

Run it: python examples/digits.py [--epochs 4] [--logdir runs/digits] [--visdom PORT]

It prints how many held-out digits each network reads, and writes what `reimpl.watch` sees to LOGDIR: `watch.csv`,
`watch.png`, and a folder for each optimizer that `tensorboard --logdir LOGDIR` shows side by side. With `--visdom` a
server that runs on this machine gets it too. It needs scikit-learn, pillow and matplotlib; TensorBoard if it is there.
"""

import argparse
import random
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset, Subset

import reimpl
import reimpl.nn as nn
import reimpl.optim as optim
from reimpl.watch import FigureWriter

OPTIMIZERS = {
    "SGD": lambda params: optim.SGD(params, lr=0.05, momentum=0.9),
    "RMSprop": lambda params: optim.RMSprop(params, lr=1e-3),
    "Adam": lambda params: optim.Adam(params, lr=3e-3),
    "AdamW": lambda params: optim.AdamW(params, lr=3e-3, weight_decay=0.1),
}
HELD_OUT = 360
MAX_NORM = 4.0


class Digits(Dataset):
    """1,797 handwritten digits of 8 by 8 pixels, as PIL images that a transform makes tensors of."""

    def __init__(self, transform):
        digits = load_digits()
        self.images = [Image.fromarray((16 * image).clip(0, 255).astype("uint8")) for image in digits.images]
        self.labels = digits.target.tolist()
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


def to_tensor(image):
    """Return an image as one channel of numbers from 0 to 1."""
    return torch.tensor(list(image.tobytes()), dtype=torch.float32).view(1, image.height, image.width) / 255


class Jitter:
    """Turns an image by up to 15 degrees and moves it by up to a pixel, anew each time it is read."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def __call__(self, image):
        """Return another view of an image."""
        angle, right, down = self.random.uniform(-15, 15), self.random.uniform(-1, 1), self.random.uniform(-1, 1)
        return to_tensor(image.rotate(angle, Image.Resampling.BILINEAR, translate=(right, down)))


def network():
    """Return a small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(512, 10),
    )


def train(make_optimizer, epochs, name, shared, boards):
    """Train a network, watched; return the share of held-out digits that it reads."""
    torch.manual_seed(0)
    order = torch.randperm(1797).tolist()
    learned = DataLoader(Subset(Digits(Jitter(0)), order[HELD_OUT:]), batch_size=64, shuffle=True)
    held_out = DataLoader(Subset(Digits(to_tensor), order[:HELD_OUT]), batch_size=HELD_OUT)
    model, loss_of = network(), nn.CrossEntropyLoss()
    optimizer = make_optimizer(model.parameters())
    # In what all share, the optimizer's name stands before each line's. TensorBoard puts lines of one name into one
    # chart, and names them by the folder.
    watched = {"every": 5, "max_norm": MAX_NORM}
    with reimpl.watch(optimizer, shared, name=name, **watched), reimpl.watch(optimizer, boards, **watched):
        for _ in range(epochs):
            for images, labels in learned:
                optimizer.zero_grad()
                loss_of(model(images), labels).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
                optimizer.step()
    model.eval()
    with torch.no_grad():
        images, labels = next(iter(held_out))
        return (model(images).argmax(1) == labels).double().mean().item()


def tensorboard(folder):
    """Return TensorBoard's writers for a folder: one, or none if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        return []
    return [SummaryWriter(folder)]


def main():
    """Train with each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--logdir", type=Path, default=Path("runs/digits"))
    parser.add_argument("--visdom", type=int, metavar="PORT")
    arguments = parser.parse_args()
    arguments.logdir.mkdir(parents=True, exist_ok=True)
    table = arguments.logdir / "watch.csv"
    table.unlink(missing_ok=True)  # the watch appends, and this is a new run
    panels = FigureWriter(Figure(figsize=(12, 9), layout="constrained"))
    shared = [table, panels]
    if arguments.visdom:
        from visdom import Visdom

        shared.append(Visdom("http://127.0.0.1", port=arguments.visdom, raise_exceptions=True))
    for name, make_optimizer in OPTIMIZERS.items():
        boards = tensorboard(arguments.logdir / name)
        accuracy = train(make_optimizer, arguments.epochs, name, shared, boards)
        for board in boards:
            board.close()
        print(f"{name:8} reads {accuracy:.1%} of {HELD_OUT} held-out digits")
    panels.figure.savefig(arguments.logdir / "watch.png", dpi=120)
    print(f"written: {arguments.logdir}")


if __name__ == "__main__":
    main()
