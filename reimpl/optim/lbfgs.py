r"""L-BFGS: Newton's method with an inverse Hessian that the last few steps have taught, and its line search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from reimpl.optim.arguments import check_closure, check_lr, require
from reimpl.optim.checkpoint import check_state, check_tensors, is_loading, stand_in
from reimpl.optim.optimizer import as_scalar

Scalar: TypeAlias = Any
"""A Python number or a 0-dim tensor: step lengths are either, and the arithmetic on both is the same."""

LEAST_CURVATURE = 1e-10
"""A pair enters the history only if $s^\\top y$ is larger: the inverse Hessian has to stay positive definite."""

DECREASE, CURVATURE = 1e-4, 0.9
"""$c_1$ and $c_2$ of the strong Wolfe conditions."""

SMALLEST_BRACKET = 1e-9
"""The line search ends where no parameter would move by more."""


class Pair(NamedTuple):
    r"""One step and what it did to the gradient."""

    s: Tensor
    r"""The step, $s = \theta_{k+1} - \theta_k$."""

    y: Tensor
    r"""The change of the gradient, $y = g_{k+1} - g_k$."""

    rho: Tensor
    r"""$\rho = 1 / s^\top y$."""


class History:
    r"""The last pairs, oldest first, which stand for an inverse Hessian $H$ that is never formed.

    Args:
        size: how many pairs are kept.
        pairs: those to begin with.
        scale: $\gamma$; the recursion begins with $H_0 = \gamma I$.
    """

    def __init__(self, size: int, pairs: list[Pair] | None = None, scale: Scalar = 1) -> None:
        self.size, self.pairs, self.scale = size, pairs or [], scale

    @classmethod
    def load(cls, state: dict[str, Any], size: int) -> History:
        """Return the history that the optimizer's state holds, an empty one before the first iteration."""
        if state.get("d") is None:
            return cls(size)
        pairs = zip(state["old_stps"], state["old_dirs"], state["ro"], strict=True)
        return cls(size, [Pair(*pair) for pair in pairs], state["H_diag"])

    def save(self, state: dict[str, Any]) -> None:
        """Put it into the optimizer's state, under torch's names."""
        state["old_dirs"] = [pair.y for pair in self.pairs]
        state["old_stps"] = [pair.s for pair in self.pairs]
        state["ro"] = [pair.rho for pair in self.pairs]
        state["H_diag"] = self.scale

    def update(self, s: Tensor, y: Tensor) -> None:
        r"""Keep a pair if its curvature is positive, in place of the oldest, and $\gamma = s^\top y / y^\top y$."""
        curvature = y.dot(s)
        if curvature > LEAST_CURVATURE:
            while len(self.pairs) >= self.size:
                self.pairs.pop(0)
            self.pairs.append(Pair(s, y, 1.0 / curvature))
            self.scale = curvature / y.dot(y)

    def direction(self, gradient: Tensor) -> tuple[Tensor, list[Scalar]]:
        r"""Return $-H g$ by the two-loop recursion (Nocedal and Wright, Algorithm 7.4), and its $\alpha_i$.

        $$
        \begin{aligned}
        q &\leftarrow -g; && \alpha_i = \rho_i\, s_i^\top q, \quad q \leftarrow q - \alpha_i\, y_i
          \quad \text{from the newest pair to the oldest} \\
        r &\leftarrow \gamma\, q; && \beta_i = \rho_i\, y_i^\top r, \quad r \leftarrow r + (\alpha_i - \beta_i)\, s_i
          \quad \text{from the oldest to the newest}
        \end{aligned}
        $$
        """
        q = gradient.neg()
        alphas: list[Scalar] = []
        for s, y, rho in reversed(self.pairs):
            alpha: Scalar = s.dot(q) * rho
            q.add_(y, alpha=-alpha)
            alphas.append(alpha)
        alphas.reverse()
        r = q.mul(self.scale)
        for (s, y, rho), alpha in zip(self.pairs, alphas, strict=True):
            beta: Scalar = y.dot(r) * rho
            r.add_(s, alpha=alpha - beta)
        return r, alphas


class Point(NamedTuple):
    r"""A point on the search line $\phi(t) = f(\theta + t d)$."""

    t: Scalar
    """The step length."""

    f: float
    r"""$\phi(t)$."""

    gradient: Tensor
    r"""$\nabla f(\theta + t d)$, flat."""

    slope: Tensor
    r"""$\phi'(t) = \nabla f(\theta + t d)^\top d$."""


Evaluate: TypeAlias = Callable[[Scalar], Point]


def strong_wolfe(
    evaluate: Evaluate, start: Point, t: Scalar, extent: Scalar, budget: int, tolerance: float = SMALLEST_BRACKET
) -> tuple[Point, int]:
    r"""Search a step length that satisfies the strong Wolfe conditions.

    $$
    \phi(t) \le \phi(0) + c_1 t\, \phi'(0), \qquad |\phi'(t)| \le -c_2\, \phi'(0)
    $$

    A bracket is moved outward until it must contain such a point, then narrowed. If `budget` ends first, or the bracket
    is smaller than `tolerance`, the lower of its ends is returned, which may satisfy neither condition.

    Args:
        evaluate: returns the point at a step length.
        start: the point at 0, with a negative slope.
        t: the first step length to try.
        extent: the largest component of the direction, $\|d\|_\infty$.
        budget: how many points may be evaluated after the first.
        tolerance: the smallest length of a bracket times `extent`.

    Returns:
        The point, and how many were evaluated.

    Differs from the book (Nocedal and Wright, Algorithms 3.5 and 3.6), as minFunc does:
        A third trial is the first that has to be lower than the one before, in the book the second. The bracket grows
        to the minimum of a cubic. Narrowing keeps trials off the ends (`inward`). A trial that replaces the high end
        becomes the low end if it is lower. And both phases can end without success.
    """
    bracket, count = find_bracket(evaluate, start, t, budget)
    if len(bracket) == 2:
        return zoom(evaluate, start, bracket, count, extent, budget, tolerance)
    return bracket[0], count + 1


def decreases_too_little(start: Point, point: Point) -> bool:
    """Return whether `point` violates the first Wolfe condition (Armijo's)."""
    return bool(point.f > start.f + DECREASE * point.t * start.slope)


def is_flat(start: Point, point: Point) -> bool:
    """Return whether `point` satisfies the second Wolfe condition."""
    return bool(abs(point.slope) <= -CURVATURE * start.slope)


def find_bracket(evaluate: Evaluate, start: Point, t: Scalar, budget: int) -> tuple[list[Point], int]:
    """Return a point that satisfies both conditions, or two with such a point between; and how many trials followed.

    It is Algorithm 3.5. Without success within the budget the two points are the start and the last trial.
    """
    previous, point = start, evaluate(t)
    count = 0
    while count < budget:
        if decreases_too_little(start, point) or (count > 1 and point.f >= previous.f):
            return [previous, point], count
        if is_flat(start, point):
            return [point], count
        if point.slope >= 0:
            return [previous, point], count
        nearest, farthest = point.t + 0.01 * (point.t - previous.t), point.t * 10
        t = cubic_minimum(previous, point, (nearest, farthest))
        previous, point = point, evaluate(t)
        count += 1
    return [start, point], count


def zoom(
    evaluate: Evaluate, start: Point, bracket: list[Point], count: int, extent: Scalar, budget: int, tolerance: float
) -> tuple[Point, int]:
    """Narrow a bracket until a trial satisfies both conditions; return it and how many points were evaluated in all.

    It is Algorithm 3.6. The position of an end in `bracket` matters in a tie: the first is then the low one.
    """
    low = lower(bracket)
    was_near = False
    while count < budget and not abs(bracket[1].t - bracket[0].t) * extent < tolerance:
        t, was_near = inward(cubic_minimum(bracket[0], bracket[1]), bracket, was_near)
        point = evaluate(t)
        count += 1
        if decreases_too_little(start, point) or point.f >= bracket[low].f:
            bracket[1 - low] = point
            low = lower(bracket)
        elif is_flat(start, point):
            return point, count + 1
        else:
            if point.slope * (bracket[1 - low].t - bracket[low].t) >= 0:
                bracket[1 - low] = bracket[low]
            bracket[low] = point
    return bracket[low], count + 1


def lower(bracket: list[Point]) -> int:
    """Return the index of the end with the lower value."""
    return 0 if bracket[0].f <= bracket[1].f else 1


def inward(t: Scalar, bracket: list[Point], was_near: bool) -> tuple[Scalar, bool]:
    """Return a trial, moved if need be, and whether it is near an end of the bracket.

    Near is within a tenth of the bracket's length. The second trial in a row that is near, or one on an end, is moved
    to that distance.
    """
    first, last = min(bracket[0].t, bracket[1].t), max(bracket[0].t, bracket[1].t)
    margin = 0.1 * (last - first)
    if not min(last - t, t - first) < margin:
        return t, False
    if not (was_near or t >= last or t <= first):
        return t, True
    return (last - margin if abs(t - last) < abs(t - first) else first + margin), False


def cubic_minimum(a: Point, b: Point, bounds: tuple[Scalar, Scalar] | None = None) -> Scalar:
    r"""Return where the cubic with the values and slopes of two points has its minimum (Nocedal and Wright, 3.59).

    $$
    t = t_b - (t_b - t_a)\, \frac{\phi'_b + d_2 - d_1}{\phi'_b - \phi'_a + 2 d_2}, \qquad
    d_1 = \phi'_a + \phi'_b - 3\,\frac{\phi_a - \phi_b}{t_a - t_b}, \qquad
    d_2 = \sqrt{d_1^2 - \phi'_a \phi'_b}
    $$

    with $t_a \le t_b$; they may be given in either order. It is moved into `bounds`, by default the interval between
    the points; their middle is returned where the cubic has no minimum.
    """
    if not a.t <= b.t:
        a, b = b, a
    least, most = bounds or (a.t, b.t)
    d1 = a.slope + b.slope - 3 * (a.f - b.f) / (a.t - b.t)
    d2_squared = d1**2 - a.slope * b.slope
    if not d2_squared >= 0:
        return (least + most) / 2.0
    d2 = d2_squared.sqrt()
    return min(max(b.t - (b.t - a.t) * ((b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)), least), most)


class LBFGS(torch.optim.Optimizer):
    r"""L-BFGS, with a fixed step length or a line search for the strong Wolfe conditions.

    $$
    d_k = -H_k\, g_k, \qquad \theta_{k+1} = \theta_k + t_k\, d_k
    $$

    All parameters are one vector $\theta$, with complex numbers as pairs of real ones, and $g_k$ is its gradient, zero
    where there is none. $H_k$ comes from the last pairs $s = \theta_{k+1} - \theta_k$ and $y = g_{k+1} - g_k$
    (`History`); without any it is $I$.

    A call of `step` runs up to `max_iter` iterations $k$, which go on from those of the call before. It ends earlier if

    - $\max |g_k|$ is at most `tolerance_grad`,
    - $d_k$ hardly points downhill, $g_k^\top d_k$ > `-tolerance_change`,
    - the parameters moved by at most `tolerance_change`, $\max |t_k d_k|$, or the loss by less,
    - `max_eval` evaluations are used up.

    Without line search $t_k$ is the learning rate. Only the very first step is scaled, by $\min(1, 1 / \|g_0\|_1)$.
    Nothing then keeps the loss from growing. With `line_search_fn="strong_wolfe"` the search begins there.

    The state takes the memory of up to `2 * history_size + 2` copies of the parameters; a line search takes a few more.

    Args:
        params: tensors, `(name, tensor)` pairs, or one dict; there can be only one group, on one device.
        lr: learning rate, the first $t$ to try: a number or a one-element tensor.
        max_iter: the most iterations in a call of `step`.
        max_eval: the number of evaluations after which no iteration begins; by default `max_iter * 5 // 4`. A line
            search may exceed it by one.
        tolerance_grad: in the unit of the gradient.
        tolerance_change: compared with slopes, parameters and losses, each in its own unit.
        history_size: how many pairs $s, y$ are kept.
        line_search_fn: None or `"strong_wolfe"`.

    State:
        Kept with the first parameter alone.

        func_evals, n_iter: numbers of evaluations and of iterations so far.
        al: the $\alpha_i$ of the last direction, filled up with None; not used again.
        d, t: the last $d_k$, a flat tensor, and $t_k$, a number or a 0-dim tensor.
        old_dirs, old_stps, ro: lists of $y$, $s$ and $1 / s^\top y$, oldest first.
        H_diag: $\gamma$ of `History`, 1 or a 0-dim tensor.
        prev_flat_grad, prev_loss: $g_k$, a flat tensor, and the loss, a number, where $d_k$ was found.

    Raises:
        ValueError: for an `lr` of several elements or below zero, or more than one parameter group.
        RuntimeError: from `step`, for another `line_search_fn`.
        AssertionError: from `step`, if a group has been added.

    Differs from the paper:
        A pair is left out unless $s^\top y > 10^{-10}$; the paper relies on the Wolfe conditions to make it positive.
        Here they hold only with the line search, which gives up after `max_eval` evaluations.

    Differs from torch:
        Gradients in any memory order work, channels_last among them, and conjugate views; torch's raise a RuntimeError.
        So does a tensor `lr` that requires a gradient; torch's raises a TypeError.

        A tensor `lr` is copied: a scheduler that changes it in place does not change the $t$ of the step before, from
        which torch's then learns a wrong $s$.

        A `line_search_fn` that does not exist is refused before the closure is called, and nothing changes; torch
        counts an iteration first, and its next step fails. After a step that the closure interrupts, the history is
        that of the step before; torch's next step fails if it was the first.

        `history_size` can change between steps, a copied or unpickled optimizer goes on, and with `max_eval=0` the line
        search evaluates one point, where torch raises an IndexError, AttributeError or UnboundLocalError.

    Source:
        Nocedal, "Updating Quasi-Newton Matrices with Limited Storage", Mathematics of Computation 35, 1980; Liu and
        Nocedal, "On the Limited Memory BFGS Method for Large Scale Optimization", Mathematical Programming 45, 1989;
        Nocedal and Wright, "Numerical Optimization", 2006, Algorithms 7.4, 7.5, 3.5 and 3.6; `torch/optim/lbfgs.py`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        check_lr(lr)
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        super().__init__(params, defaults)
        require(len(self.param_groups) == 1, "LBFGS doesn't support per-parameter options (parameter groups)")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint, a pickle or a copy brings; a checkpoint's vectors have to fit the parameters."""
        if is_loading(state):
            params = state["param_groups"][0]["params"]
            check_history(params, state["state"].get(params[0], {}) if params else {})
        super().__setstate__(state)

    @_disable_dynamo  # as torch's: values decide here, and the closure runs a backward
    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Run up to `max_iter` iterations.

        Args:
            closure: clears the gradients, re-evaluates the model, runs backward and returns the loss; called several
                times, with gradients enabled.

        Returns:
            What `closure` returned at its first call: the loss before the step.

        Raises:
            AssertionError: if there is more than one parameter group.
            RuntimeError: for a `line_search_fn` that does not exist, and for a closure given to a `GradScaler`. In all
                these cases nothing has changed.
        """
        check_closure(self)
        if len(self.param_groups) != 1:
            raise AssertionError(f"Expected exactly one param_group, but got {len(self.param_groups)}")
        group = self.param_groups[0]
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise RuntimeError("only 'strong_wolfe' is supported")
        lr = as_scalar(group["lr"], False)
        lr = lr.clone() if isinstance(lr, Tensor) else lr  # it is kept as `t`, and a scheduler may write to it
        max_iter, max_eval, history_size = group["max_iter"], group["max_eval"], group["history_size"]
        tolerance_grad, tolerance_change = group["tolerance_grad"], group["tolerance_change"]
        closure = torch.enable_grad()(closure)
        state = self.state[group["params"][0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)

        first_loss = closure()
        loss, gradient = float(first_loss), self._gradient()
        evaluations = 1
        state["func_evals"] += 1
        if gradient.abs().max() <= tolerance_grad:
            return first_loss

        d: Any = state.get("d")
        t: Scalar = state.get("t")
        last_gradient, last_loss = state.get("prev_flat_grad"), state.get("prev_loss")
        history = History.load(state, history_size)
        iteration = 0
        while iteration < max_iter:
            iteration += 1
            state["n_iter"] += 1
            if d is None:
                d = gradient.neg()
                inverse_norm: Scalar = 1.0 / gradient.abs().sum()
                t = min(1.0, inverse_norm) * lr
            else:
                history.update(s=d.mul(t), y=gradient.sub(last_gradient))
                d, alphas = history.direction(gradient)
                state["al"] = alphas + [None] * (history_size - len(alphas))
                t = lr
            last_gradient, last_loss = gradient, loss
            slope = gradient.dot(d)
            if slope > -tolerance_change:
                break

            if group["line_search_fn"] is not None:
                start, left = Point(0, loss, gradient, slope), max_eval - evaluations
                evaluate = self._on_line(closure, d)
                (t, loss, gradient, _), used = strong_wolfe(evaluate, start, t, d.abs().max(), left)
                self._move(t, d)
            else:
                self._move(t, d)
                if iteration == max_iter:
                    break  # the next step begins with the evaluation that would come now
                loss, gradient = float(closure()), self._gradient()
                used = 1
            evaluations += used
            state["func_evals"] += used

            if evaluations >= max_eval:
                break
            if gradient.abs().max() <= tolerance_grad:
                break
            if d.mul(t).abs().max() <= tolerance_change or abs(loss - last_loss) < tolerance_change:
                break

        state["d"], state["t"] = d, t
        history.save(state)
        state["prev_flat_grad"], state["prev_loss"] = last_gradient, last_loss
        return first_loss

    def _gradient(self) -> Tensor:
        """Return the gradient of all parameters as one vector: a new tensor."""
        params = self.param_groups[0]["params"]
        grads = [torch.zeros_like(param) if param.grad is None else param.grad for param in params]
        grads = [grad.to_dense() if grad.is_sparse else grad for grad in grads]
        return torch.cat([as_real(grad.resolve_conj()).reshape(-1) for grad in grads])

    def _move(self, t: Scalar, d: Tensor) -> None:
        """Move the parameters by a multiple of a vector."""
        params = [as_real(param) for param in self.param_groups[0]["params"]]
        for param, part in zip(params, d.split_with_sizes([param.numel() for param in params]), strict=True):
            param.add_(part.view_as(param), alpha=t)

    def _on_line(self, closure: Callable[[], Any], d: Tensor) -> Evaluate:
        """Return the function that evaluates a point on the line from the parameters along `d`."""
        params = self.param_groups[0]["params"]
        origin = [param.clone() for param in params]

        def evaluate(t: Scalar) -> Point:
            self._move(t, d)
            loss, gradient = float(closure()), self._gradient()
            for param, values in zip(params, origin, strict=True):
                param.copy_(values)
            return Point(t, loss, gradient, gradient.dot(d))

        return evaluate


def check_history(params: list[Tensor], saved: Any) -> None:
    """Raise unless the vectors of a saved state are as long as all parameters together."""
    label = "the parameters"
    check_state(label, saved)
    if saved.get("d") is None:
        return
    pairs = {name: saved[name] for name in ("old_dirs", "old_stps", "ro")}
    if len({len(column) for column in pairs.values()}) > 1:
        raise ValueError(f"loaded state dict: {', '.join(pairs)} are not of one length")
    vectors = {name: saved[name] for name in ("d", "prev_flat_grad")}
    vectors |= {f"{name}[{i}]": one for name in ("old_dirs", "old_stps") for i, one in enumerate(pairs[name])}
    length = sum(as_real(stand_in(param)).numel() for param in params)
    check_tensors(label, vectors, dict.fromkeys(vectors, torch.empty(length, device="meta")))


def as_real(tensor: Tensor) -> Tensor:
    """View complex numbers as pairs of real ones."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
