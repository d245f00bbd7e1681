"""Where we differ from torch on purpose: its result is lost or corrupted, ours is not. Both are shown, not asserted."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import reimpl.optim

Make = Callable[..., torch.optim.Optimizer]


class Finding(NamedTuple):
    """What an optimizer did.

    Attributes:
        right: whether it did what it should.
        seen: what was seen.
    """

    right: bool
    seen: str


@dataclass(frozen=True)
class Deviation:
    """A case in which we do not do as torch does.

    Attributes:
        optimizer: the class's name.
        where: the circumstances.
        why: what torch's source does there.
        run: constructs an optimizer of a class, makes it do it, and says what came out.
    """

    optimizer: str
    where: str
    why: str
    run: Callable[[Make], Finding]

    @property
    def section(self) -> str:
        """The name by which `--only` selects it."""
        return f"optim.{self.optimizer}"


@dataclass(frozen=True)
class Shown:
    """A deviation, and what came out on both sides."""

    deviation: Deviation
    ours: Finding
    theirs: Finding

    @property
    def holds(self) -> bool:
        """Whether ours is right; a later torch may be right too."""
        return self.ours.right

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        fields = {key: value for key, value in asdict(self.deviation).items() if key != "run"}
        return fields | {"ours": self.ours._asdict(), "theirs": self.theirs._asdict(), "holds": self.holds}


def show(deviation: Deviation) -> Shown:
    """Let our class and torch's do it."""
    classes = getattr(reimpl.optim, deviation.optimizer), getattr(torch.optim, deviation.optimizer)
    ours, theirs = (run_or_raise(deviation, cls) for cls in classes)
    return Shown(deviation, ours, theirs)


def run_or_raise(deviation: Deviation, make: Make) -> Finding:
    """Return what came out; an exception is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one warns before it fails
            return deviation.run(make)
    except Exception as error:
        return Finding(False, textwrap.shorten(f"{type(error).__name__}: {error}", 80, placeholder=" …"))


def count_nan(params: list[Tensor]) -> Finding:
    """Say how many elements are NaN."""
    lost = sum(int(param.isnan().sum()) for param in params)
    return Finding(not lost, f"{lost:,} of {sum(map(Tensor.numel, params)):,} elements are NaN")


def half_precision_vector(make: Make) -> Finding:
    """Take a step with a bfloat16 parameter that fills a vector register."""
    param = torch.full((64,), 0.5, dtype=torch.bfloat16, requires_grad=True)
    param.grad = torch.ones_like(param)
    make([param], lr=0.25, fused=True).step()
    moved = int((param == 0.25).sum())
    return Finding(moved == 64, f"{moved} of 64 elements have moved")


def constant_gradient(make: Make) -> Finding:
    """Take steps with a gradient that does not change."""
    generator = torch.Generator().manual_seed(0)
    param = torch.zeros(2000, requires_grad=True)
    optimizer = make([param], centered=True)
    param.grad = torch.randn(2000, generator=generator)
    for _ in range(1500):
        optimizer.step()
    return count_nan([param.detach()])


def bfloat16_matrix(make: Make) -> Finding:
    """Take a step from zero momentum, and measure the momentum."""
    param = torch.zeros(4, 4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = make([param], nesterov=False, momentum=0.9)
    param.grad = torch.full_like(param, 5.0)
    optimizer.step()
    norm = optimizer.state[param]["momentum_buffer"].float().norm().item()
    expected = (0.1 * param.grad.float()).norm().item()
    return Finding(abs(norm - expected) < 0.01 * expected, f"the momentum's norm is {norm:.2f}; a tenth of g's is 2.00")


def float16_beside_float32(make: Make) -> Finding:
    """Take a step with a gradient that is 0 in places, in a group that starts with float32."""
    params = [torch.ones(4, requires_grad=True), torch.ones(4, dtype=torch.float16, requires_grad=True)]
    optimizer = make(params)
    for param in params:
        param.grad = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=param.dtype)
    optimizer.step()
    return count_nan([param.detach() for param in params])


def empty_parameter(make: Make) -> Finding:
    """Take a step with a parameter of no elements."""
    params = [torch.zeros(0, 3, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = make(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    moved = bool((params[1] != 1).all())
    return Finding(moved, "the other parameter moved" if moved else "nothing moved")


def channels_last(make: Make) -> Finding:
    """Minimise a quadratic of a kernel that lies in memory channel by channel."""
    kernel = torch.ones(2, 3, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    optimizer = make([kernel], line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = kernel.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    left = float(kernel.detach().abs().max())
    return Finding(left < 1e-6, f"it comes within {left:.0e} of the minimum")


def tensor_lr(make: Make) -> Finding:
    """Take steps whose learning rate changes, as a tensor and as a number."""
    ends = []
    for lr in (torch.tensor(1.0), 1.0):
        param = torch.tensor([3.0, -2.0], requires_grad=True)
        optimizer = make([param], lr=lr, max_iter=2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(4):
            optimizer.step(partial(descend, param))
            scheduler.step()
        ends.append(param.detach())
    distance = float((ends[0] - ends[1]).abs().max())
    return Finding(distance < 1e-6, f"the tensor's path ends {distance:.0e} from the number's")


def descend(param: Tensor) -> Any:
    """Return the loss of a curved valley, and leave its gradient."""
    param.grad = None
    loss = (param[0] - 1) ** 4 + 5 * (param[1] - param[0] ** 2) ** 2
    torch.autograd.backward(loss)
    return loss


def late_momentum(make: Make) -> Finding:
    """Take a step in which one parameter has its first gradient and another has momentum already."""
    params = [torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = make(params, lr=0.1, momentum=0.9, fused=True)
    for late in (False, True):
        for index, param in enumerate(params):
            param.grad = torch.ones_like(param) if late or index == 0 else None
        optimizer.step()
    moved = torch.stack([param.detach() for param in params])
    expected = torch.tensor([[1 - 0.1 - 0.19], [1 - 0.1]]).expand(2, 3)
    return Finding(
        bool(torch.allclose(moved, expected)), f"the parameters are at {moved[0, 0]:.2f} and {moved[1, 0]:.2f}"
    )


def foreach_nesterov(make: Make) -> Finding:
    """Take a step, and look at the gradient."""
    param = torch.ones(3, requires_grad=True)
    optimizer = make([param], lr=0.1, momentum=0.9, nesterov=True, foreach=True)
    param.grad = torch.ones(3)
    optimizer.step()
    after = float(param.grad[0])
    return Finding(after == 1.0, f"a gradient of 1 is {after:g} after the step")


def closure_under_scaler(make: Make) -> Finding:
    """Pass a closure through a `GradScaler`, and look at the step that it takes."""
    param = torch.ones(1, requires_grad=True)
    optimizer, scaler = make([param], lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)

    def closure() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(scaler.scale(param.square().sum()))

    closure()
    try:
        scaler.step(optimizer, closure)
    except RuntimeError:
        return Finding(param.item() == 1, "it is refused")
    return Finding(
        param.item() == 0.8, f"a parameter of 1 with gradient 2 and a rate of 0.1 moves to {param.item():.1f}"
    )


def refused_step(make: Make) -> Finding:
    """Take a step that has to be refused because of the second group, and look at the first."""
    first, second = torch.ones(3, requires_grad=True), torch.ones(3, 2, requires_grad=True)
    optimizer = make([{"params": [first]}, {"params": [second]}])
    first.grad = torch.ones(3)
    second.grad = torch.ones(3, 2).to_sparse()
    try:
        optimizer.step()
    except RuntimeError:
        unmoved = bool((first == 1).all()) and not optimizer.state
        return Finding(unmoved, "it is refused; " + ("nothing has moved" if unmoved else "the first group has moved"))
    return Finding(False, "it is not refused")


def state_of_another_shape(make: Make) -> Finding:
    """Load a checkpoint in which the second parameter's state does not fit, and take a step."""
    params = [torch.ones(3, requires_grad=True), torch.ones(2, 3, requires_grad=True)]
    optimizer = make(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"] = {**saved["state"], 1: {**saved["state"][1], "exp_avg": torch.zeros(3, 2)}}
    try:
        optimizer.load_state_dict(saved)
    except ValueError:
        return Finding(optimizer.state[params[1]]["exp_avg"].shape == (2, 3), "it is refused; the state is as before")
    before = params[0].detach().clone()
    try:
        optimizer.step()
    except RuntimeError:
        moved = bool((params[0] != before).all())
        return Finding(False, "the next step fails" + (", when the first parameter has moved" if moved else ""))
    return Finding(False, "it is taken")


DEVIATIONS = (
    Deviation(
        "SGD",
        "foreach=True with nesterov=True",
        "it adds the momentum to the list of gradients in place, and those are the parameters' own",
        foreach_nesterov,
    ),
    Deviation(
        "SGD",
        "fused=True, first momentum of one parameter beside another's second",
        "it takes the lack of one buffer for the lack of all",
        late_momentum,
    ),
    Deviation(
        "SGD",
        "fused=True on the CPU, bfloat16 parameters of 16 elements or more",
        "its kernel for vectors of half precision does not move the parameter",
        half_precision_vector,
    ),
    Deviation(
        "SGD",
        "a closure given to GradScaler.step by position; so with every optimizer",
        "the scaler refuses a closure only if it is given by keyword; this one makes new gradients, which stay scaled",
        closure_under_scaler,
    ),
    Deviation(
        "RMSprop",
        "centered=True, the gradient hardly changes",
        "rounding makes the difference of the squares negative; its root is NaN and stays",
        constant_gradient,
    ),
    Deviation(
        "Adam",
        "a step that has to be refused in its second group",
        "each group is checked when the groups before it have been updated",
        refused_step,
    ),
    Deviation(
        "Adam",
        "a checkpoint with state of another shape than the parameter's",
        "it casts what it loads, and does not look at shapes",
        state_of_another_shape,
    ),
    Deviation(
        "LBFGS",
        "parameters and gradients in channels_last",
        "it asks for a flat view of the gradient, which only a contiguous one has",
        channels_last,
    ),
    Deviation(
        "LBFGS",
        "a tensor lr and a scheduler",
        "it keeps the learning rate itself as the length of its last step, and the scheduler changes it there",
        tensor_lr,
    ),
    Deviation(
        "Adafactor",
        "eps of None, a float32 parameter before a float16 one",
        "the machine epsilon of the first dtype is taken for all; its square is 0 in float16, and 0 / 0 NaN",
        float16_beside_float32,
    ),
    Deviation(
        "Adafactor",
        "a parameter without elements",
        "it divides by their number",
        empty_parameter,
    ),
    Deviation(
        "Muon",
        "bfloat16 parameters with nesterov=False",
        "bfloat16() makes no copy of a bfloat16 tensor, so that the momentum itself is divided by its norm",
        bfloat16_matrix,
    ),
)
"""All of them. Elsewhere we do as torch does, wrong or right."""
