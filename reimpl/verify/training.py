"""The real run: networks that learn to read handwritten digits, on torch's layers and optimizer and on ours."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
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
from reimpl.verify.judge import arguments_of, tensors_of

IMAGES = 1797
HELD_OUT = 360
FULL_BATCH = IMAGES - HELD_OUT
REQUIRED_ACCURACY = 0.95
ACCURACY_MARGIN = 0.005
"""How much the share of held-out images that a network reads may change when it learns from first principles."""

FUSED_DISTANCE = 2.0
"""How many times farther from torch's curve ours may be with the fused engine than what one rounding does to torch's.
Measured: 0 (the same bits, with `Adamax` and `Rprop`) to 1.1 times, in the mean of all steps."""

LOOP = {"foreach": False}
"""For the optimizers whose foreach path, torch's choice on a GPU, rounds elsewhere than the for-loop does."""

OptimizerClass = type[torch.optim.Optimizer]


def convolutional(nn: Any, channels: int = 1, dropout: float = 0.3) -> Module:
    """Return a small convolutional network, of torch's layers or of ours.

    The convolutions have no bias: batch normalisation would take it out again, so that its gradient is nothing but
    rounding, which Adam makes steps of full size from. The running means follow late, and what is read in evaluation
    would depend on how sums are rounded.

    Every layer is smooth, so that a rounding stays one: where a rectifier or a maximum has to decide between two nearly
    equal numbers, one rounding of a weight moves the losses by 1e-8 in some runs and by 1e-3 in others. Here, 2e-8.
    """
    network: Module = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(512, 10),
    )
    return network


def deep(nn: Any) -> Module:
    """Return a network with two hidden matrices, `5.weight` and `7.weight`, rectifiers and a maximum."""
    network: Module = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return network


class Words(Module):
    """An embedding of each pixel's grey level together with that of its right neighbour: one of 9 times 9 words.

    A batch has most words many times, and as a rule some not at all.

    Args:
        nn: whose layers.
        channels: the length of a word's vector.
    """

    def __init__(self, nn: Any, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9 * 9, channels, sparse=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return as many channels for each pixel."""
        grey = (8 * images.squeeze(1)).round().long()
        vectors: Tensor = self.embedding(9 * grey + grey.roll(-1, dims=-1))
        return vectors.permute(0, 3, 1, 2)


def word_reader(nn: Any) -> Module:
    """Return the convolutional network on words instead of grey levels."""
    network: Module = nn.Sequential(Words(nn, 4), convolutional(nn, channels=4))
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
        part: the names of the parameters that it trains, where AdamW trains the others; all of them if empty.
        epochs: how often the network sees all images, an even number: the checkpoint is made after half of them.
        batch_size: how many images it sees in a step.
        closure: whether the optimizer itself evaluates the loss, as often as it likes in a step.
        first_principles: whether the network is also trained on `reimpl.nn.functional`.
    """

    network: Callable[[Any], Module]
    optimizer: str
    options: dict[str, Any]
    part: tuple[str, ...] = ()
    epochs: int = 10
    batch_size: int = 64
    closure: bool = False
    first_principles: bool = False


PLANS = {
    "SGD": Plan(convolutional, "SGD", {"lr": 0.05, "momentum": 0.9}),
    "Adagrad": Plan(convolutional, "Adagrad", {"lr": 0.02}),
    "RMSprop": Plan(convolutional, "RMSprop", {"lr": 0.002}),
    "Adadelta": Plan(convolutional, "Adadelta", {"lr": 1.0}),
    "Adam": Plan(convolutional, "Adam", {"lr": 0.004}, first_principles=True),
    "AdamW": Plan(convolutional, "AdamW", {"lr": 0.004}),
    "Adamax": Plan(convolutional, "Adamax", {"lr": 0.01}),
    "NAdam": Plan(convolutional, "NAdam", {"lr": 0.004, **LOOP}),
    "RAdam": Plan(convolutional, "RAdam", {"lr": 0.01, **LOOP}),
    # The sign of a gradient means something only if the gradient is that of all images.
    "Rprop": Plan(deep, "Rprop", {"lr": 0.01}, epochs=40, batch_size=FULL_BATCH),
    "ASGD": Plan(convolutional, "ASGD", {"lr": 0.3, **LOOP}),
    "SparseAdam": Plan(word_reader, "SparseAdam", {"lr": 0.1}, part=("0.embedding.weight",)),
    # Without dropout: a line search compares losses of one and the same function.
    "LBFGS": Plan(
        partial(convolutional, dropout=0.0),
        "LBFGS",
        {"max_iter": 10, "line_search_fn": "strong_wolfe"},
        epochs=8,
        batch_size=FULL_BATCH,
        closure=True,
    ),
    "Adafactor": Plan(convolutional, "Adafactor", {"lr": 0.03, **LOOP}),
    "Muon": Plan(deep, "Muon", {"lr": 0.01}, part=("5.weight", "7.weight"), first_principles=True),
    "LSTM": Plan(RowReader, "Adam", {"lr": 0.008}, first_principles=True),
}
"""The real runs: a network with each optimizer, and the LSTM."""

OTHERS: dict[str, Any] = {"lr": 0.004}
"""The arguments of the AdamW that trains the others."""


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
            torch's for-loop; None if the optimizer has no such option.
        reference_fused_distance: the same of torch's for-loop from weights of which each has been rounded once more,
            or of torch's own run with `fused=True` if there is one and it is farther; None likewise.
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
    fused_distance: float | None = None
    reference_fused_distance: float | None = None
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
        """Whether our fused run, if there is one, stays as near to torch's for-loop as torch's, but for the factor."""
        if self.fused_distance is None or self.reference_fused_distance is None:
            return self.fused_distance is self.reference_fused_distance
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
        others: the class that trains what `optimizer` does not.
        functional: what the layers run on.
    """

    nn: Any
    optimizer: OptimizerClass
    others: OptimizerClass
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
    theirs = Stack(torch.nn, getattr(torch.optim, plan.optimizer), torch.optim.AdamW)
    mine = Stack(layers, ours or getattr(reimpl.optim, plan.optimizer), reimpl.optim.AdamW)
    data = Digits(held_out=False), Digits(held_out=True)

    def start(stack: Stack, **options: Any) -> Session:
        return Session(replace(plan, options={**plan.options, **options}), stack, data, device)

    cudnn = torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(), one_thread(), cudnn:
        half = plan.epochs // 2
        reference, session = start(theirs).run(0, half), start(mine).run(0, half)
        checkpoint_of_torch, checkpoint_of_ours = reference.save(), session.save()
        for running in (reference, session):
            running.run(half, plan.epochs)
        resumed_by_ours = start(mine).load(checkpoint_of_torch).run(half, plan.epochs)
        resumed_by_torch = start(theirs).load(checkpoint_of_ours).run(half, plan.epochs)
        fused_distance = reference_fused_distance = None
        if "fused" in arguments_of(mine.optimizer):
            fused_distance = start(mine, fused=True).run(0, plan.epochs).distance(reference)
            others = [start(theirs).nudge().run(0, plan.epochs)]
            if "fused" in arguments_of(theirs.optimizer):
                others.append(start(theirs, fused=True).run(0, plan.epochs))
            reference_fused_distance = max(other.distance(reference) for other in others)
        principles = None
        if plan.first_principles:
            principles = start(replace(mine, functional=reimpl.nn.functional)).run(0, plan.epochs)
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
            fused_distance=fused_distance,
            reference_fused_distance=reference_fused_distance,
            principles_losses=[loss.item() for loss in principles.losses] if principles else [],
            principles_accuracy=principles.accuracy() if principles else None,
        )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch's kernels use one thread.

    Networks this small gain nothing from more. And where another process wants the same cores, threads wait for each
    other all the time: measured beside one, two threads took seven to ten times as long as one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
        stack: whose layers and optimizers.
        data: the images to learn from and the held-out ones.
        device: where.
    """

    def __init__(self, plan: Plan, stack: Stack, data: tuple[Digits, Digits], device: str) -> None:
        torch.manual_seed(0)
        self.plan = plan
        self.device = device
        self.data = data
        self.network = plan.network(stack.nn).to(device)
        self.loss = stack.nn.CrossEntropyLoss()
        if stack.functional is not torch.nn.functional:
            for module in (self.network, self.loss):
                swap(module, stack.functional)
        params = dict(self.network.named_parameters())
        chosen = [params.pop(name) for name in plan.part or list(params)]
        construct: Callable[..., torch.optim.Optimizer] = stack.optimizer
        self.optimizers = [construct(chosen, **plan.options)]
        if params:
            construct = stack.others
            self.optimizers.append(construct(params.values(), **OTHERS))
        self.losses: list[Tensor] = []

    def run(self, first: int, last: int) -> Session:
        """Train from epoch `first` to before `last`."""
        for epoch in range(first, last):
            # What is drawn depends on the epoch alone, so that a resumed run sees what the first one saw.
            torch.manual_seed(epoch)
            self.network.train()
            for images, labels in DataLoader(self.data[0], batch_size=self.plan.batch_size, shuffle=True):
                self.losses.append(self.step(images.to(self.device), labels.to(self.device)).detach())
        return self

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step, and return the loss before it."""

        def evaluate() -> Tensor:
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss: Tensor = self.loss(self.network(images), labels)
            torch.autograd.backward(loss)
            return loss

        if self.plan.closure:
            (optimizer,) = self.optimizers
            before: Any = optimizer.step(evaluate)  # type: ignore[arg-type]
            return torch.as_tensor(before)
        loss = evaluate()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

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
        """Return a checkpoint of network and optimizers."""
        file = io.BytesIO()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save({"network": self.network.state_dict(), "optimizers": optimizers}, file)
        return file.getvalue()

    def load(self, checkpoint: bytes) -> Session:
        """Take over a checkpoint, of these optimizers' classes or others."""
        saved = torch.load(io.BytesIO(checkpoint), weights_only=True)
        self.network.load_state_dict(saved["network"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return self

    def accuracy(self) -> float:
        """Return the share of held-out images that the network reads."""
        held_out = self.data[1]
        self.network.eval()
        with torch.no_grad():
            guesses = self.network(held_out.images.to(self.device)).argmax(1).cpu()
        return float((guesses == held_out.labels).double().mean())

    def end(self) -> dict[str, Tensor]:
        """Return weights, buffers and the state of each optimizer, by name."""
        end = dict(self.network.state_dict())
        for number, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    end |= tensors_of(value, f"optimizer[{number}].state[{i}].{name}")
        return end

    def same_end(self, other: Session) -> bool:
        """Return whether weights, buffers and the optimizers' state are equal, bit for bit."""
        mine, theirs = self.end(), other.end()
        return mine.keys() == theirs.keys() and all(same_bits(value, theirs[name]) for name, value in mine.items())
