"""The real run: a network that learns to read handwritten digits, with torch's optimizer and with ours."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reimpl.optim
from reimpl.verify.distance import same_bits

OPTIONS: dict[str, dict[str, float]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9},
    "Adagrad": {"lr": 0.02},
    "RMSprop": {"lr": 0.002},
    "Adadelta": {"lr": 1.0},
    "Adam": {"lr": 0.004},
}
EPOCHS = 10
BATCH_SIZE = 64
HELD_OUT = 360
REQUIRED_ACCURACY = 0.95

OptimizerClass = type[torch.optim.Optimizer]


@dataclass(frozen=True)
class Training:
    """The outcome for one optimizer.

    Attributes:
        optimizer: its name.
        options: its constructor's arguments.
        losses: the loss of every step of our run.
        accuracy: the share of held-out images that our run's network reads.
        reference_accuracy: the same of torch's run.
        first_different_loss: the first step, from 1, at which the losses differ; None if they never do.
        same_end: whether weights and optimizer state at the end are equal, bit for bit.
        resumed_by_ours: whether our optimizer, from torch's checkpoint of mid-training, comes to the same end.
        resumed_by_torch: whether torch's, from our checkpoint, does.
    """

    optimizer: str
    options: dict[str, float]
    losses: list[float]
    accuracy: float
    reference_accuracy: float
    first_different_loss: int | None
    same_end: bool
    resumed_by_ours: bool
    resumed_by_torch: bool

    @property
    def same_losses(self) -> bool:
        """Whether the loss of every step is equal, bit for bit."""
        return self.first_different_loss is None

    @property
    def learned(self) -> bool:
        """Whether both networks really read digits."""
        return min(self.accuracy, self.reference_accuracy) >= REQUIRED_ACCURACY

    @property
    def holds(self) -> bool:
        """Whether everything that is claimed of the run is so."""
        return self.same_losses and self.same_end and self.resumed_by_ours and self.resumed_by_torch and self.learned

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        return asdict(self) | {"holds": self.holds}


def train(name: str, device: str = "cpu", ours: OptimizerClass | None = None) -> Training:
    """Train with torch's optimizer and with ours from the same seed, and resume each from the other's checkpoint.

    Args:
        name: the optimizer.
        device: where.
        ours: the class to put in torch's place; by default that of `reimpl.optim`.

    Raises:
        ModuleNotFoundError: if scikit-learn, which has the images, is not installed.
    """
    ours = ours or getattr(reimpl.optim, name)
    theirs: OptimizerClass = getattr(torch.optim, name)
    options = OPTIONS[name]
    data = Digits(held_out=False), Digits(held_out=True)

    def start(optimizer: OptimizerClass) -> Session:
        return Session(optimizer, options, data, device)

    with torch.random.fork_rng(), torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        half = EPOCHS // 2
        reference, mine = start(theirs).run(0, half), start(ours).run(0, half)
        checkpoint_of_torch, checkpoint_of_ours = reference.save(), mine.save()
        for session in (reference, mine):
            session.run(half, EPOCHS)
        resumed_by_ours = start(ours).load(checkpoint_of_torch).run(half, EPOCHS)
        resumed_by_torch = start(theirs).load(checkpoint_of_ours).run(half, EPOCHS)
        losses = zip(mine.losses, reference.losses, strict=True)
        return Training(
            optimizer=name,
            options=options,
            losses=[loss.item() for loss in mine.losses],
            accuracy=mine.accuracy(),
            reference_accuracy=reference.accuracy(),
            first_different_loss=next((i for i, (a, b) in enumerate(losses, start=1) if not same_bits(a, b)), None),
            same_end=mine.same_end(reference),
            resumed_by_ours=resumed_by_ours.same_end(reference),
            resumed_by_torch=resumed_by_torch.same_end(reference),
        )


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """1,797 handwritten digits of 8 by 8 pixels, which scikit-learn brings along.

    Args:
        held_out: the images for the test, one in five, instead of the others.
    """

    def __init__(self, held_out: bool) -> None:
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            message = "the real run takes its images from scikit-learn: pip install 'reimpl[cli]'"
            raise ModuleNotFoundError(message, name=error.name) from error
        digits = load_digits()
        # The file goes writer by writer, so a test on its end would ask for handwritings never seen.
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
        part = order[:HELD_OUT] if held_out else order[HELD_OUT:]
        self.images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[part] / 16
        self.labels = torch.tensor(digits.target)[part]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def network() -> nn.Module:
    """Return a small convolutional network."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(512, 10),
    )


class Session:
    """One network in training.

    Args:
        optimizer: the optimizer class.
        options: its constructor's arguments.
        data: the images to learn from and the held-out ones.
        device: where.
    """

    def __init__(
        self, optimizer: OptimizerClass, options: dict[str, float], data: tuple[Digits, Digits], device: str
    ) -> None:
        torch.manual_seed(0)
        self.device = device
        self.data = data
        self.network = network().to(device)
        construct: Callable[..., torch.optim.Optimizer] = optimizer
        self.optimizer = construct(self.network.parameters(), **options)
        self.losses: list[Tensor] = []

    def run(self, first: int, last: int) -> Session:
        """Train from epoch `first` to before `last`."""
        for epoch in range(first, last):
            # What is drawn depends on the epoch alone, so that a resumed run sees what the first one saw.
            torch.manual_seed(epoch)
            self.network.train()
            for images, labels in DataLoader(self.data[0], batch_size=BATCH_SIZE, shuffle=True):
                self.optimizer.zero_grad()
                output = self.network(images.to(self.device))
                loss = nn.functional.cross_entropy(output, labels.to(self.device))
                torch.autograd.backward(loss)
                self.optimizer.step()
                self.losses.append(loss.detach())
        return self

    def save(self) -> bytes:
        """Return a checkpoint of network and optimizer."""
        file = io.BytesIO()
        torch.save({"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}, file)
        return file.getvalue()

    def load(self, checkpoint: bytes) -> Session:
        """Take over a checkpoint, of this optimizer's class or another."""
        saved = torch.load(io.BytesIO(checkpoint), weights_only=True)
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        return self

    def accuracy(self) -> float:
        """Return the share of held-out images that the network reads."""
        held_out = self.data[1]
        self.network.eval()
        with torch.no_grad():
            guesses = self.network(held_out.images.to(self.device)).argmax(1).cpu()
        return float((guesses == held_out.labels).double().mean())

    def same_end(self, other: Session) -> bool:
        """Return whether weights and optimizer state are equal, bit for bit."""
        mine, theirs = self.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
        weights = zip(self.network.state_dict().values(), other.network.state_dict().values(), strict=True)
        return all(same_bits(a, b) for a, b in weights) and (
            {i: list(state) for i, state in mine.items()} == {i: list(state) for i, state in theirs.items()}
            and all(same_bits(value, theirs[i][name]) for i, state in mine.items() for name, value in state.items())
        )
