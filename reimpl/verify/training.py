"""The real run: networks that learn to read handwritten digits, on torch's layers and optimizer and on ours."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader, Dataset

import reimpl.nn
import reimpl.nn.functional
import reimpl.optim
from reimpl.swap import swap
from reimpl.verify.distance import same_bits

EPOCHS = 10
BATCH_SIZE = 64
HELD_OUT = 360
REQUIRED_ACCURACY = 0.95
ACCURACY_MARGIN = 0.005
"""How much the share of held-out images that a network reads may change when it learns from first principles."""

FUSED_DISTANCE = 2.0
"""How many times farther from torch's curve ours may be with the fused engine than what one rounding does to torch's.
Training makes much of some roundings and little of others; measured: 0.01 to 1.2 times, in the mean of all steps."""

OptimizerClass = type[torch.optim.Optimizer]


def convolutional(nn: Any) -> Module:
    """Return a small convolutional network, of torch's layers or of ours.

    The convolutions have no bias: batch normalisation would take it out again, so that its gradient is nothing but
    rounding, which Adam makes steps of full size from. The running means follow late, and what is read in evaluation
    would depend on how sums are rounded.
    """
    network: Module = nn.Sequential(
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
    return network


class RowReader(Module):
    """An LSTM that reads an image row by row, from the top, and then decides.

    Args:
        nn: whose layers.
    """

    def __init__(self, nn: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 96, batch_first=True)
        self.decide = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return a score of each digit."""
        _, (last, _) = self.lstm(images.squeeze(1))
        scores: Tensor = self.decide(last[-1])
        return scores


@dataclass(frozen=True)
class Plan:
    """What is trained, and how.

    Attributes:
        network: makes the network of a package's layers.
        optimizer: its class's name.
        options: its constructor's arguments.
        first_principles: whether the network is also trained on `reimpl.nn.functional`.
    """

    network: Callable[[Any], Module]
    optimizer: str
    options: dict[str, Any]
    first_principles: bool = False


PLANS = {
    "SGD": Plan(convolutional, "SGD", {"lr": 0.05, "momentum": 0.9}),
    "Adagrad": Plan(convolutional, "Adagrad", {"lr": 0.02}),
    "RMSprop": Plan(convolutional, "RMSprop", {"lr": 0.002}),
    "Adadelta": Plan(convolutional, "Adadelta", {"lr": 1.0}),
    "Adam": Plan(convolutional, "Adam", {"lr": 0.004}, first_principles=True),
    "LSTM": Plan(RowReader, "Adam", {"lr": 0.008}, first_principles=True),
}
"""The real runs: the convolutional network with each optimizer, and the LSTM."""


@dataclass(frozen=True)
class Training:
    """The outcome of one real run.

    Attributes:
        name: of its plan.
        options: the optimizer's arguments.
        losses: the loss of every step of our run.
        accuracy: the share of held-out images that our run's network reads.
        reference_accuracy: the same of torch's run.
        first_different_loss: the first step, from 1, at which the losses differ; None if they never do.
        same_end: whether weights, buffers and optimizer state at the end are equal, bit for bit.
        resumed_by_ours: whether our stack, from torch's checkpoint of mid-training, comes to the same end.
        resumed_by_torch: whether torch's, from our checkpoint, does.
        fused_distance: how far, in the mean over all steps, the losses of our run with `fused=True` are from those of
            torch's for-loop.
        reference_fused_distance: the same of torch's for-loop from weights of which each has been rounded once more,
            or of torch's own run with `fused=True` if there is one and it is farther.
        principles_losses: the loss of every step on first principles; empty if that was not run.
        principles_accuracy: the accuracy after it; None if that was not run.
    """

    name: str
    options: dict[str, Any]
    losses: list[float]
    accuracy: float
    reference_accuracy: float
    first_different_loss: int | None
    same_end: bool
    resumed_by_ours: bool
    resumed_by_torch: bool
    fused_distance: float
    reference_fused_distance: float
    principles_losses: list[float] = field(default_factory=list)
    principles_accuracy: float | None = None

    @property
    def same_losses(self) -> bool:
        """Whether the loss of every step is equal, bit for bit."""
        return self.first_different_loss is None

    @property
    def learned(self) -> bool:
        """Whether both networks really read digits."""
        return min(self.accuracy, self.reference_accuracy) >= REQUIRED_ACCURACY

    @property
    def principles_hold(self) -> bool:
        """Whether the run on first principles, if there was one, reads as many digits, but for the margin."""
        if self.principles_accuracy is None:
            return True
        return abs(self.principles_accuracy - self.reference_accuracy) <= ACCURACY_MARGIN

    @property
    def fused_holds(self) -> bool:
        """Whether our fused run stays as near to torch's for-loop as torch's fused run does, but for the factor."""
        return self.fused_distance <= FUSED_DISTANCE * self.reference_fused_distance

    @property
    def holds(self) -> bool:
        """Whether everything that is claimed of the run is so."""
        equal = self.same_losses and self.same_end and self.resumed_by_ours and self.resumed_by_torch
        return equal and self.learned and self.principles_hold and self.fused_holds

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        return asdict(self) | {"holds": self.holds}


@dataclass(frozen=True)
class Stack:
    """What a network is trained with.

    Attributes:
        nn: the package of its layers.
        optimizer: the class.
        functional: what the layers run on.
    """

    nn: Any
    optimizer: OptimizerClass
    functional: Any = torch.nn.functional


def train(name: str, device: str = "cpu", ours: OptimizerClass | None = None, layers: Any = reimpl.nn) -> Training:
    """Train on torch's stack and on ours from the same seed, and resume each from the other's checkpoint.

    Args:
        name: of the plan: an optimizer, or `LSTM`.
        device: where.
        ours: the optimizer to put in torch's place; by default that of `reimpl.optim`.
        layers: the package to put in the place of `torch.nn`.

    Raises:
        ModuleNotFoundError: if scikit-learn, which has the images, is not installed.
    """
    plan = PLANS[name]
    theirs = Stack(torch.nn, getattr(torch.optim, plan.optimizer))
    mine = Stack(layers, ours or getattr(reimpl.optim, plan.optimizer))
    data = Digits(held_out=False), Digits(held_out=True)

    def start(stack: Stack, **options: Any) -> Session:
        return Session(replace(plan, options={**plan.options, **options}), stack, data, device)

    with torch.random.fork_rng(), torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        half = EPOCHS // 2
        reference, session = start(theirs).run(0, half), start(mine).run(0, half)
        checkpoint_of_torch, checkpoint_of_ours = reference.save(), session.save()
        for running in (reference, session):
            running.run(half, EPOCHS)
        resumed_by_ours = start(mine).load(checkpoint_of_torch).run(half, EPOCHS)
        resumed_by_torch = start(theirs).load(checkpoint_of_ours).run(half, EPOCHS)
        fused = start(mine, fused=True).run(0, EPOCHS)
        others = [start(theirs).nudge().run(0, EPOCHS)]
        if "fused" in inspect.signature(theirs.optimizer).parameters:
            others.append(start(theirs, fused=True).run(0, EPOCHS))
        principles = None
        if plan.first_principles:
            principles = start(Stack(layers, mine.optimizer, reimpl.nn.functional)).run(0, EPOCHS)
        losses = zip(session.losses, reference.losses, strict=True)
        return Training(
            name=name,
            options=plan.options,
            losses=[loss.item() for loss in session.losses],
            accuracy=session.accuracy(),
            reference_accuracy=reference.accuracy(),
            first_different_loss=next((i for i, (a, b) in enumerate(losses, start=1) if not same_bits(a, b)), None),
            same_end=session.same_end(reference),
            resumed_by_ours=resumed_by_ours.same_end(reference),
            resumed_by_torch=resumed_by_torch.same_end(reference),
            fused_distance=fused.distance(reference),
            reference_fused_distance=max(other.distance(reference) for other in others),
            principles_losses=[loss.item() for loss in principles.losses] if principles else [],
            principles_accuracy=principles.accuracy() if principles else None,
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


class Session:
    """One network in training.

    Args:
        plan: the network, and the optimizer's arguments.
        stack: whose layers and optimizer.
        data: the images to learn from and the held-out ones.
        device: where.
    """

    def __init__(self, plan: Plan, stack: Stack, data: tuple[Digits, Digits], device: str) -> None:
        torch.manual_seed(0)
        self.device = device
        self.data = data
        self.network = plan.network(stack.nn).to(device)
        self.loss = stack.nn.CrossEntropyLoss()
        if stack.functional is not torch.nn.functional:
            for module in (self.network, self.loss):
                swap(module, stack.functional)
        construct: Callable[..., torch.optim.Optimizer] = stack.optimizer
        self.optimizer = construct(self.network.parameters(), **plan.options)
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
                loss = self.loss(output, labels.to(self.device))
                torch.autograd.backward(loss)
                self.optimizer.step()
                self.losses.append(loss.detach())
        return self

    def nudge(self) -> Session:
        """Change each weight by one rounding."""
        with torch.no_grad():
            for weight in self.network.parameters():
                weight.mul_(1 + torch.finfo(weight.dtype).eps)
        return self

    def distance(self, other: Session) -> float:
        """Return how far the losses are apart, in the mean over all steps."""
        return float((torch.stack(self.losses).double() - torch.stack(other.losses).double()).abs().mean())

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
        """Return whether weights, buffers and optimizer state are equal, bit for bit."""
        mine, theirs = self.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
        weights = zip(self.network.state_dict().values(), other.network.state_dict().values(), strict=True)
        return all(same_bits(a, b) for a, b in weights) and (
            {i: list(state) for i, state in mine.items()} == {i: list(state) for i, state in theirs.items()}
            and all(same_bits(value, theirs[i][name]) for i, state in mine.items() for name, value in state.items())
        )
