"""Everything that surrounds a rule, once: groups, state, missing gradients, closures, step counts, the engine's choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import (
    _default_to_fused_or_foreach,
    _get_capturable_supported_devices,
    _get_scalar_dtype,
)

from reimpl.optim.arguments import no_fused_engine
from reimpl.optim.engines import Batch, Engine, Rule, TensorList, differentiable, foreach, loop, rows

FIRST, LATER = 1.0, 2.0
"""The step that a rule without a step count is told: a parameter's first update, or a later one."""

LARGEST_COUNT = 2.0**24
"""From here on a float32 count plus one has to be computed in float32, where it stands still."""

Group = dict[str, Any]
State = dict[str, Any]


class Member(NamedTuple):
    """A parameter in a batch, with its gradient, its state, and whether the state is new."""

    param: Tensor
    grad: Tensor
    state: State
    new: bool


class Update(NamedTuple):
    """One call of an engine, planned; nothing has been changed yet."""

    engine: Engine
    batch: Batch
    members: list[Member]


class Optimizer(torch.optim.Optimizer):
    """An optimizer made of a rule and its coefficients.

    A subclass gives `rule`, `coefficients` and `new_state`; everything else is here or in an engine. It takes the
    arguments of `torch.optim.Optimizer`, whose `state_dict`, `load_state_dict`, hooks, `zero_grad` and
    `add_param_group` it keeps.

    A step has two halves. The first only looks: it finds the parameters that have a gradient, checks options and
    gradients of all groups, and computes the coefficients. The second changes state and parameters. So a step that is
    refused has changed nothing, where torch's own may already have updated some groups.
    """

    rule: ClassVar[Rule]
    """The update of one parameter: `rule(param, grad, **state, **coefficients)`, in place; a `staticmethod`."""

    counts_steps: ClassVar[bool] = True
    """Whether each parameter's state holds a `step` count. If not, `coefficients` is told `FIRST` or `LATER`."""

    linear: ClassVar[bool] = False
    """Whether the rule is linear in parameter, gradient and state.

    A linear rule gets complex and sparse tensors as they are. Any other gets complex ones as pairs of real numbers, and
    of sparse ones the rows that the gradient touches.
    """

    capturable_on_xla: ClassVar[bool] = True
    """Whether torch's for-loop accepts `capturable=True` on XLA devices."""

    options_of_later_versions: ClassVar[dict[str, Any]] = {}
    """Options that checkpoints of older torch versions lack, with the value that they had then."""

    def coefficients(self, group: Group, step: Any, param: Tensor) -> dict[str, Any]:
        """Return the rule's scalars for parameters of `group` in their `step`-th update.

        Args:
            group: the parameter group's options; one-element tensors among them have come down to 0-dim.
            step: the count of updates, this one included: a float, or where nothing may be read back to the host
                (`capturable`, `torch.compile`) a list of 0-dim tensors, on which the same arithmetic works.
            param: one of the parameters, for its dtype and device.
        """
        raise NotImplementedError

    def new_state(self, group: Group) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the names of the state tensors that the rule takes, each with what makes it from a parameter."""
        raise NotImplementedError

    def check_group(self, group: Group) -> None:
        """Raise what torch's step raises for the options of a group that has gradients."""
        if group.get("fused"):
            raise RuntimeError(no_fused_engine(type(self).__name__))
        if group["foreach"] and group["differentiable"] and not self.linear:
            raise AssertionError("_foreach ops don't support autograd")
        if getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None:
            raise AssertionError("Expected grad_scale and found_inf to be None")

    def check_sparse(self, group: Group, param: Tensor) -> None:
        """Raise if the rule cannot take `param`'s gradient, which is sparse. By default no rule can."""
        raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")

    def chooses_foreach(self, group: Group, params: list[Tensor]) -> bool:
        """Return whether the foreach engine updates these parameters: by the group's options, else as torch decides."""
        if group["foreach"] is None and group.get("fused") is None:
            return _default_to_fused_or_foreach(params, group["differentiable"] and not self.linear)[1]
        return bool(group["foreach"])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            What `closure` returned, or None.

        Raises:
            RuntimeError: for a sparse gradient that the rule cannot take. Nothing has changed then.
        """
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._check_graph_capture()
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for turn in turns(self.param_groups):
                for update in [update for group, params in turn for update in self._plan(group, params)]:
                    self._count(update.members)
                    update.engine(type(self).rule, update.batch)
            return loss

    def _plan(self, group: Group, params: list[Tensor]) -> list[Update]:
        """Check a group and sort its parameters into batches, each for one call of an engine."""
        self.check_group(group)
        group = {name: as_scalar(option, group["differentiable"]) for name, option in group.items()}
        use_foreach = self.chooses_foreach(group, params)
        in_graph = group.get("capturable", False) or torch.compiler.is_compiling()
        state_names = list(self.new_state(group))
        marker = "step" if self.counts_steps else next(iter(state_names), None)

        batches: defaultdict[tuple[Any, ...], list[Member]] = defaultdict(list)
        for param in params:
            member = self._member(group, param, marker)
            sparse = member.grad.is_sparse
            if sparse:
                self.check_sparse(group, param)
            step = FIRST if member.new else LATER
            if self.counts_steps:
                self._check_count(group, param, member.state["step"], use_foreach)
                step = LATER if in_graph else next_count(member.state["step"])
            # In a graph, each parameter of the loop engine brings coefficients of its own.
            alone = param if in_graph and not use_foreach else None
            batches[sparse, step, param.device, param.dtype, alone].append(member)

        updates = []
        for (sparse, step, *rest), members in batches.items():
            # Where a step creates the buffers of only some parameters, torch's foreach path loops over all of them.
            partly_new = not self.counts_steps and (sparse, FIRST + LATER - step, *rest) in batches
            engine = self._engine(group, sparse, in_graph or (use_foreach and not partly_new))
            updates.append(Update(engine, self._batch(group, members, state_names, engine, step, in_graph), members))
        return updates

    def _member(self, group: Group, param: Tensor, marker: str | None) -> Member:
        """Find a parameter's state, or make it; not yet in `self.state`."""
        assert param.grad is not None
        state = self.state.get(param)
        if marker is None or (state is not None and state.get(marker) is not None):
            return Member(param, param.grad, state or {}, new=False)
        return Member(param, param.grad, self.create_state(group, param), new=True)

    def create_state(self, group: Group, param: Tensor) -> State:
        """Return the state of a parameter before its first update."""
        state: State = {}
        if self.counts_steps:
            # On the host, where reading it costs nothing, unless a graph has to own it.
            device = param.device if group.get("capturable") else "cpu"
            state["step"] = torch.zeros((), dtype=_get_scalar_dtype(), device=device)
        return state | {name: make(param) for name, make in self.new_state(group).items()}

    def _check_count(self, group: Group, param: Tensor, count: Tensor, use_foreach: bool) -> None:
        if group["differentiable"] and count.requires_grad:
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
        if group.get("capturable") and not torch.compiler.is_compiling():
            devices = _get_capturable_supported_devices(supports_xla=self.capturable_on_xla and not use_foreach)
            if not (param.device.type == count.device.type and param.device.type in devices):
                raise AssertionError(
                    f"If capturable=True, params and state_steps must be on supported devices: {devices}."
                )

    def _engine(self, group: Group, sparse: bool, on_lists: bool) -> Engine:
        if sparse:
            return loop if self.linear else rows
        if group["differentiable"]:
            return differentiable
        return foreach if on_lists else loop

    def _batch(
        self, group: Group, members: list[Member], state_names: list[str], engine: Engine, step: Any, in_graph: bool
    ) -> Batch:
        params = [member.param for member in members]
        grads = [member.grad for member in members]
        state = {name: [member.state[name] for member in members] for name in state_names}
        if params[0].is_complex() and not self.linear and engine is not rows:
            params, grads = as_real(params), as_real(grads)
            state = {name: as_real(tensors) for name, tensors in state.items()}
        if in_graph and self.counts_steps:
            step = TensorList([member.state["step"] for member in members]) + 1
        coefficients = self.coefficients(group, step, params[0])
        if engine is foreach and not in_graph:
            coefficients = {name: as_number(value) for name, value in coefficients.items()}
        return Batch(params, grads, state, coefficients, group["maximize"])

    def _count(self, members: list[Member]) -> None:
        """Keep the state of new parameters and advance the step counts."""
        for member in members:
            if member.new:
                self.state[member.param].update(member.state)
        if self.counts_steps:
            counts = [member.state["step"] for member in members]
            if counts[0].is_cpu and not torch.compiler.is_compiling():
                torch._foreach_add_(counts, torch.tensor(1.0, device="cpu"), alpha=1.0)
            else:
                torch._foreach_add_(counts, 1)

    def _check_graph_capture(self) -> None:
        """Raise if a CUDA graph is being captured and a group is not `capturable`, as torch's step does."""
        if "capturable" in self.defaults:
            if hasattr(self, "_accelerator_graph_capture_health_check"):
                self._accelerator_graph_capture_health_check()
            else:  # torch < 2.13
                self._cuda_graph_capture_health_check()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.options_of_later_versions.items():
                group.setdefault(name, value)
            for param in group["params"]:
                param_state = self.state.get(param, {})
                # torch < 1.12 counted steps in a Python number.
                if "step" in param_state and not isinstance(param_state["step"], Tensor):
                    device = param.device if group.get("capturable") else "cpu"
                    param_state["step"] = torch.tensor(
                        float(param_state["step"]), dtype=_get_scalar_dtype(), device=device
                    )


def turns(groups: list[Group]) -> Iterator[list[tuple[Group, list[Tensor]]]]:
    """Yield the groups with their parameters that have a gradient.

    Once; but a group that lists a parameter twice (torch warns of it) brings the second mention in a second turn.
    """
    todo = [(group, [param for param in group["params"] if param.grad is not None]) for group in groups]
    while todo := [(group, params) for group, params in todo if params]:
        once = [(group, list(dict.fromkeys(params))) for group, params in todo]
        yield once
        todo = [
            (group, repeated(params))
            for (group, params), (_, distinct) in zip(todo, once, strict=True)
            if len(distinct) < len(params)
        ]


def repeated(params: list[Tensor]) -> list[Tensor]:
    """Return `params` without the first mention of each."""
    seen: set[Tensor] = set()
    return [param for param in params if param in seen or seen.add(param)]  # type: ignore[func-returns-value]


def next_count(count: Tensor) -> float:
    """Return the step count plus one, as the count's dtype would have it."""
    value: float = count.item()
    return value + 1 if value < LARGEST_COUNT else (count + 1).item()


def as_scalar(option: Any, differentiable: bool) -> Any:
    """Return a one-element tensor as a 0-dim one, without its history if the step is not recorded."""
    if isinstance(option, Tensor):
        option = option.squeeze() if option.dim() else option
        return option if differentiable else option.detach()
    return option


def as_number(coefficient: Any) -> Any:
    """Read a tensor coefficient."""
    return coefficient.item() if isinstance(coefficient, Tensor) else coefficient


def as_real(tensors: list[Tensor]) -> list[Tensor]:
    """View complex tensors as real ones, with a last dimension for real and imaginary part."""
    return [torch.view_as_real(tensor) for tensor in tensors]

