"""Everything that surrounds a rule, once: groups, state, missing gradients, closures, step counts, choice of engine."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import compress
from operator import attrgetter, is_
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import (
    ParamsT,
    _default_to_fused_or_foreach,
    _get_capturable_supported_devices,
)
from torch.utils._python_dispatch import _get_current_dispatch_mode

from reimpl.optim.arguments import check_closure, check_fused, check_lr
from reimpl.optim.checkpoint import check_number, check_state, check_tensors, is_loading, labelled_params, stand_in
from reimpl.optim.engines import Batch, Engine, Rule, TensorList, differentiable, foreach, fused, loop, rows
from reimpl.optim.engines.batch import pick
from reimpl.optim.engines.counting import advance
from reimpl.optim.engines.shards import any_sharded, on_shards, splits_alike
from reimpl.optim.signature import GENERAL_OPTIONS, STEP, RuleSignature, constructor_signature, read_signature

FIRST, LATER = 1.0, 2.0
"""The step that a rule without a step count is told: a parameter's first update, or a later one."""

Group = dict[str, Any]
State = dict[str, Any]
T = TypeVar("T")


def in_grad_mode(step: Callable[..., Any]) -> Callable[..., Any]:
    """Run a step with autograd off, unless the optimizer is `differentiable`.

    `optimizer.step.__wrapped__.__wrapped__` is then the step alone, as of torch's optimizers: with it callers of
    `torch.compile` leave out what surrounds it.
    """

    @wraps(step)
    def in_mode(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return step(self, *args, **kwargs)

    return in_mode


class Plan(NamedTuple):
    """What a step will do to one group; nothing has been changed yet."""

    created: dict[Tensor, State]
    """The state of parameters that are updated for the first time."""

    states: list[State]
    """The state of each parameter, that of `created` included."""

    scalars: list[tuple[list[Tensor], Any]]
    """Scalar state, and what it becomes."""

    calls: list[tuple[Engine, Batch]]
    """The engines to run, each on one batch."""


class RuleOptimizer(torch.optim.Optimizer):
    """An optimizer made of a rule; the base of every optimizer here, and of your own.

    A rule with keywords is all that a subclass needs:

        class Momentum(RuleOptimizer):
            @staticmethod
            def rule(param, grad, velocity, *, lr=0.1, momentum=0.9):
                velocity.mul_(momentum).add_(grad)
                param.sub_(velocity, alpha=lr)

    What stands between `grad` and the star are its state tensors, zeros at first. The keywords are the options, in the
    constructor, in parameter groups and for schedulers. A keyword `step` without a default is given the number of the
    update, 1 at first; the state then counts it. `foreach`, `maximize`, `capturable`, `differentiable` and `fused` come
    by themselves.

    What is not so simple is a method to override: `new_state` for other first values, `coefficients` for keywords
    without a default, computed once a step from the options, `__init__` for checks. Attributes say what the rule may
    be given: `elementwise`, `linear`.

    A rule changes `param` and its state in place, by methods and operators of tensors and functions of torch; it never
    changes `grad`. It must not ask a tensor for a value (`item`, `if tensor > 0`): the same text runs on lists of
    tensors, on symbols for a compiler, and recorded by autograd.

    A step has two halves. The first only looks: it finds the parameters that have a gradient, checks options and
    gradients of all groups, and computes the coefficients. The second changes state and parameters. So a step that is
    refused has changed nothing, where torch's own may already have updated some groups.
    """

    rule: ClassVar[Rule]
    """The update of one parameter: `rule(param, grad, *state, **coefficients)`, in place; a `staticmethod`.

    Coefficients that it takes by position are passed fastest; then `new_state`, `coefficients` and `__init__` have to
    be written.
    """

    signature: ClassVar[RuleSignature | None] = None
    """What the keywords of `rule` say, None if it has none."""

    counts_steps: ClassVar[bool] = True
    """Whether each parameter's state holds a `step` count. If not, `coefficients` is told `FIRST` or `LATER`."""

    reads_steps: ClassVar[bool] = True
    """Whether `coefficients` needs the step count. If not, it is told `FIRST` or `LATER`, and the count is not read."""

    count_is_number: ClassVar[bool] = False
    """Whether the step count is a Python number instead of a 0-dim tensor."""

    elementwise: ClassVar[bool] = True
    """Whether a rule does the same to every element, so that it can run on lists of tensors and as a kernel.

    If not, each parameter is updated by itself.
    """

    linear: ClassVar[bool] = False
    """Whether the rule is linear in parameter, gradient and state.

    A linear rule gets complex and sparse tensors as they are. Any other gets complex ones as pairs of real numbers, and
    of sparse ones the rows that the gradient touches.
    """

    captured: ClassVar[tuple[str, str]] = ("params and state_steps", "params and state_steps")
    """What torch's for-loop and its foreach path say has to be on the device if `capturable`."""

    capturable_on_xla: ClassVar[tuple[str, ...]] = ("loop", "foreach")
    """The engines with which torch accepts `capturable=True` on XLA devices."""

    options_of_later_versions: ClassVar[dict[str, Any]] = {}
    """Options that checkpoints of older torch versions lack, with the value that they had then."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        signature = read_signature(cls.rule, cls.__name__) if "rule" in vars(cls) else None
        if signature is None:
            return
        cls.signature = signature
        if "counts_steps" not in vars(cls):
            cls.counts_steps = signature.takes_step
        if "__init__" not in vars(cls) and (signature.options or cls.__init__ is RuleOptimizer.__init__):
            general = GENERAL_OPTIONS if cls.elementwise else {"maximize": False, "differentiable": False}
            make_constructor(cls, constructor_signature(signature.options, general))

    def __init__(self, params: ParamsT, defaults: dict[str, Any] | None = None, **options: Any) -> None:
        if defaults is None or options:  # only where a rule without keywords is left without a constructor
            raise TypeError(
                f"{type(self).__name__} has no options: its rule has no keywords, and it has no constructor"
            )
        super().__init__(params, defaults)
        check_fused(defaults.get("fused"), defaults.get("foreach"), defaults.get("differentiable", False))
        if defaults.get("fused"):
            self._step_supports_amp_scaling = True  # so that a `GradScaler` leaves the gradients to the step

    def coefficients(self, group: Group, step: Any, param: Tensor) -> dict[str, Any]:
        """Return the rule's scalars for parameters of `group` in their `step`-th update.

        Args:
            group: the parameter group's options, and the scalar state as it was before the update; one-element tensors
                among them have come down to 0-dim.
            step: the count of updates, this one included: a float, or where nothing may be read back to the host
                (`capturable`, `torch.compile`) a `TensorList` of 0-dim tensors, on which the same arithmetic works.
            param: one of the parameters, for its dtype and device.
        """
        if self.signature is None:
            raise NotImplementedError
        found = {name: group[name] for name in self.signature.options}
        return {**found, STEP: step} if self.signature.takes_step else found

    def new_state(self, group: Group) -> dict[str, Callable[[Tensor], Tensor] | None]:
        """Return the state tensors in the order in which the rule takes them.

        Each name comes with the function that makes the tensor from a parameter before its first update, or with None
        if the group's options do without it. Of a complex parameter the function gets the pairs of real numbers, as
        the rule does, unless that is `linear`.
        """
        if self.signature is None:
            raise NotImplementedError
        return dict.fromkeys(self.signature.state, torch.zeros_like)

    def new_scalars(self, group: Group) -> dict[str, Any]:
        """Return the state that is one number for a parameter, with its values before the first update.

        Like the step count it is kept in 0-dim tensors, on the host unless `capturable`.
        """
        return {}

    def next_scalars(self, group: Group, step: Any) -> dict[str, Any]:
        """Return what the scalar state becomes in the `step`-th update; arguments as those of `coefficients`."""
        return {}

    def parts(self, group: Group, params: list[Tensor]) -> list[tuple[Group, list[Tensor]]]:
        """Return the parameters that keep the same state, part by part, with the options for each part."""
        return [(group, params)]

    def check_group(self, group: Group) -> None:
        """Raise what torch's step raises for the options of a group that has gradients."""
        if group["fused"]:
            check_fused(True, False, group["differentiable"])
            return
        if group["foreach"] and group["differentiable"] and not self.linear:
            raise AssertionError("_foreach ops don't support autograd")
        scaled = getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None
        if scaled and "fused" in self.defaults:
            raise AssertionError("Expected grad_scale and found_inf to be None")

    def check_params(self, group: Group, params: list[Tensor]) -> None:
        """Raise what torch's step raises for parameters that have gradients and that the rule cannot take."""

    def check_sparse(self, group: Group, param: Tensor) -> None:
        """Raise if the rule cannot take `param`'s gradient, which is sparse. By default no rule can."""
        raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")

    def is_capturable(self, group: Group) -> bool:
        """Return whether a graph may capture the group's step, so that nothing may be read back to the host."""
        return "capturable" in self.defaults and bool(group["capturable"])

    def chooses_foreach(self, group: Group, params: list[Tensor]) -> bool:
        """Return whether the foreach engine updates these parameters: by the group's options, else as torch decides."""
        if not self.elementwise:
            return False
        if group["foreach"] is None and group.get("fused") is None:
            return _default_to_fused_or_foreach(params, group["differentiable"] and not self.linear)[1]
        return bool(group["foreach"])

    def chooses_fused(self, group: Group, params: list[Tensor]) -> bool:
        """Return whether the fused engine updates these parameters.

        Where a graph is made, or a dispatch mode has to see each operation, the foreach engine does.
        """
        in_graph = self.is_capturable(group) and params[0].device.type != "cpu"
        watched = torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
        return bool(group["fused"]) and not in_graph and not watched

    @in_grad_mode
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            What `closure` returned, or None.

        Raises:
            RuntimeError: for a sparse gradient that the rule cannot take, and for a closure given to a `GradScaler`.
                Nothing has changed then.
        """
        self._check_graph_capture()
        loss = None
        if closure is not None:
            check_closure(self)
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():
            self._init_group([])
        found_inf = getattr(self, "found_inf", None)
        overflow = found_inf is not None and found_inf.item() != 0
        for turn in turns(self.param_groups):
            parts = [part for group, params in turn for part in self.parts(group, params)]
            for plan in [self._plan(group, params) for group, params in parts]:
                if not overflow:
                    self._carry_out(plan)
                elif self.counts_steps:
                    self._keep(plan.created)
        return loss

    def create_state(self, group: Group, param: Tensor) -> State:
        """Return the state of a parameter before its first update."""
        state: State = {}
        if self.counts_steps:
            state["step"] = 0 if self.count_is_number else self._make_scalar(group, param, 0.0)
        for name, value in self.new_scalars(group).items():
            state[name] = self._make_scalar(group, param, float(value))
        makers = {name: make for name, make in self.new_state(group).items() if make is not None}
        if param.is_complex() and not self.linear:  # state for pairs of real numbers, which the rule gets
            pairs = torch.view_as_real(param)
            return state | {name: torch.view_as_complex(make(pairs)) for name, make in makers.items()}
        return state | {name: make(param) for name, make in makers.items()}

    def _make_scalar(self, group: Group, param: Tensor, value: float) -> Tensor:
        """Return a step count or the like: on the host, where reading costs nothing, unless a graph has to own it."""
        device = param.device if self.is_capturable(group) else "cpu"
        return torch.tensor(value, dtype=torch.float32 if group.get("fused") else step_dtype(), device=device)

    def _plan(self, group: Group, params: list[Tensor]) -> Plan:
        """Check a group, and sort its parameters into batches that one call of an engine can update.

        It works on columns, a list for each property of all parameters, since it runs in every step.
        """
        group = group | self._absent_options(group)
        self.check_group(group)
        group = {name: as_scalar(option, group["differentiable"]) for name, option in group.items()}
        grads: list[Any] = [param.grad for param in params]
        sparse = [grad.is_sparse for grad in grads]
        self.check_params(group, params)
        for param in compress(params, sparse):
            self.check_sparse(group, param)

        makers = self.new_state(group)
        created, states = self._find_states(group, params, [name for name, make in makers.items() if make is not None])
        counts = [state["step"] for state in states] if self.counts_steps else []
        read_counts = counts if self.reads_steps else []
        scalars = {name: [state[name] for state in states] for name in self.new_scalars(group)}
        state = [[state[name] for state in states] if make is not None else None for name, make in makers.items()]

        as_kernel = self.chooses_fused(group, params)
        on_lists = as_kernel or self.chooses_foreach(group, params)
        capturing = self.is_capturable(group) or torch.compiler.is_compiling()
        in_graph = capturing and self.elementwise and not as_kernel
        self._check_counts(group, params, [counts, *scalars.values()], on_lists, in_graph)
        if not counts and created:
            steps = [FIRST if param in created else LATER for param in params]
            # In a step that creates the buffers of only some parameters, torch's foreach path loops over all of them.
            on_lists = as_kernel or (on_lists and len(created) == len(params))
        elif not read_counts:
            steps = [LATER] * len(params)
        elif self.count_is_number:
            steps = counts
        elif not capturing:
            steps = read(counts)
        else:  # a loop's parameters go alone, each with coefficients of its own
            steps = [LATER] * len(params) if on_lists else list(range(len(params)))

        on_lists = on_lists or in_graph
        alike = [sparse, steps]
        if on_lists or not self.linear:
            alike.append([param.dtype for param in params])
        if on_lists and not all(map(attrgetter("is_cpu"), params)):
            alike.append([param.device for param in params])
        sharded = self.elementwise and not in_graph and not group["differentiable"] and any_sharded(params)
        if sharded:
            in_parts = list(map(splits_alike, zip(params, grads, *filter(None, state), strict=True)))
            alike.append(in_parts)
        for tensors in scalars.values():
            alike.append([tensor.dtype for tensor in tensors])
            if not in_graph:
                alike.append(read(tensors))

        grad_scale = as_number(getattr(self, "grad_scale", None)) if as_kernel else None
        calls, writes = [], []
        for part in split(alike):
            first = part[0]
            engine = fused if as_kernel else self._choose_engine(group, sparse[first], on_lists)
            batch = Batch(
                params=pick(params, part),
                grads=pick(grads, part),
                state=[tensors and pick(tensors, part) for tensors in state],
                coefficients={},
                maximize=group["maximize"],
                grad_scale=grad_scale,
            )
            if batch.params[0].is_complex() and (as_kernel or not self.linear) and not sparse[first]:
                batch = batch.as_real()
            step: Any = steps[first]
            if read_counts:
                step = TensorList(pick(counts, part)) + 1 if in_graph else as_number(counts[first] + 1)
            before = {name: pick(tensors, part) for name, tensors in scalars.items()}
            coefficients, after = self._compute(group, before, step, batch.params, engine, in_graph)
            run = on_shards(engine) if sharded and in_parts[first] else engine
            calls.append((run, batch._replace(coefficients=coefficients)))
            writes += [(tensors, after[name]) for name, tensors in before.items()]
        return Plan(created, states, writes, calls)

    def _init_group(self, tensors: list[Tensor]) -> None:
        """Create the state of parameters that a compiled step will update for the first time.

        `torch.compile` does not trace a method of this name but calls it, once, before it looks at the state; so it is
        called for all groups together. The first step is then compiled as the later ones are, and state may keep its
        place in a CUDA graph. What is added to `tensors`, the compiled step no longer holds when the optimizer is gone.
        """
        for group in self.param_groups:
            params = [param for param in dict.fromkeys(group["params"]) if param.grad is not None]
            if params and (self.counts_steps or not self.reads_steps):  # else a rule has to be told of its first update
                group = group | self._absent_options(group)
                for options, part in self.parts(group, params):
                    names = [name for name, make in self.new_state(options).items() if make is not None]
                    created, _ = self._find_states(options, part, names)
                    self._keep(created)
            states = [self.state.get(param, {}) for param in params]
            tensors += params
            tensors += [kept for state in states for kept in state.values() if isinstance(kept, Tensor)]

    def _absent_options(self, group: Group) -> Group:
        """Return, as if not asked for, the general options that this optimizer does not have."""
        known = {*self.defaults, "fused"} if "foreach" in self.defaults and self.elementwise else self.defaults
        return {name: value for name, value in GENERAL_OPTIONS.items() if name not in known or name not in group}

    def _compute(
        self,
        group: Group,
        scalars: dict[str, list[Tensor]],
        step: Any,
        params: list[Tensor],
        engine: Engine,
        in_graph: bool,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a batch's coefficients, and what its scalar state becomes.

        In a graph both are computed on lists of tensors, otherwise once for all.
        """
        if in_graph:  # options as lists too: torch.compile knows no operator between a tensor and a list
            group = {name: as_list(option, len(params)) for name, option in group.items()}
            group |= {name: TensorList(tensors) for name, tensors in scalars.items()}
        elif scalars:
            # A clone, since autograd may have to look at the value of before when it has been overwritten.
            recorded = group["differentiable"]
            group = group | {name: ts[0].clone() if recorded else ts[0] for name, ts in scalars.items()}
        after = self.next_scalars(group, step) if scalars else {}
        if engine is fused:
            group = {name: option if name in scalars else as_number(option) for name, option in group.items()}
        coefficients = self.coefficients(group, step, params[0])
        if engine is foreach and not in_graph:  # `_foreach_` functions take numbers fastest
            coefficients = {name: as_number(value) for name, value in coefficients.items()}
        return coefficients, after

    def _find_states(
        self, group: Group, params: list[Tensor], names: list[str]
    ) -> tuple[dict[Tensor, State], list[State]]:
        """Return the states that had to be created (not yet in `self.state`), and the state of each parameter."""
        marker = "step" if self.counts_steps else next(iter(names), None)
        if marker is None:
            return {}, []
        states: list[Any]
        if len(self.state) == len(params) and all(map(is_, self.state, params)):
            states = list(self.state.values())  # as a rule: a tensor's hash takes a thousand of them a while
        else:
            states = [self.state.get(param) for param in params]
        created = {
            param: self.create_state(group, param)
            for param, state in zip(params, states, strict=True)
            if not state or (state.get(marker) is None and all(state.get(name) is None for name in names))
        }
        if created:
            states = [created.get(param, state) for param, state in zip(params, states, strict=True)]
        return created, states

    def _check_counts(
        self, group: Group, params: list[Tensor], scalars: list[list[Tensor]], on_lists: bool, in_graph: bool
    ) -> None:
        """Raise what torch raises for step counts that autograd follows, or for scalars that a graph could not hold."""
        counts = scalars[0]
        if group["differentiable"] and any(count.requires_grad for count in counts):
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
        if in_graph and not torch.compiler.is_compiling():
            devices = _get_capturable_supported_devices(
                supports_xla=("foreach" if on_lists else "loop") in self.capturable_on_xla
            )
            for param, *kept in zip(params, *filter(None, scalars), strict=True):
                if {param.device.type} != {scalar.device.type for scalar in kept} or param.device.type not in devices:
                    raise AssertionError(
                        f"If capturable=True, {self.captured[on_lists]} must be on supported devices: {devices}."
                    )

    def _choose_engine(self, group: Group, sparse: bool, on_lists: bool) -> Engine:
        if sparse:
            return loop if self.linear else rows
        if group["differentiable"]:
            return differentiable
        return foreach if on_lists else loop

    def _carry_out(self, plan: Plan) -> None:
        """Update the parameters, then keep new state and advance the counts: an interrupted step has not been taken."""
        for engine, batch in plan.calls:
            engine(type(self).rule, batch)
        for tensors, value in plan.scalars:
            new = value.tensors if isinstance(value, TensorList) else [torch.as_tensor(value)] * len(tensors)
            if torch.is_grad_enabled():  # autograd has no derivative of `_foreach_copy_`
                for tensor, one in zip(tensors, new, strict=True):
                    tensor.copy_(one)
            else:
                torch._foreach_copy_(tensors, new)
        if self.count_is_number:
            for state in plan.states:
                state["step"] += 1
        elif self.counts_steps:
            advance([state["step"] for state in plan.states], compiled=plan.calls[0][0] is fused)
        self._keep(plan.created)

    def _keep(self, created: dict[Tensor, State]) -> None:
        for param, state in created.items():
            self.state[param].update(state)

    def _check_graph_capture(self) -> None:
        """Raise if a CUDA graph is being captured and a group is not `capturable`, as torch's step does."""
        if "capturable" in self.defaults:
            if hasattr(self, "_accelerator_graph_capture_health_check"):
                self._accelerator_graph_capture_health_check()
            else:  # before torch 2.13
                self._cuda_graph_capture_health_check()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint, a pickle or a copy brings, or nothing of it if any part is wrong."""
        if not is_loading(state):
            self.defaults = state["defaults"]  # which the methods below ask
        for group in state["param_groups"]:
            for name, value in self.options_of_later_versions.items():
                group.setdefault(name, value)
            if "fused" in self.defaults:  # torch has no such option for RMSprop and Adadelta
                group.setdefault("fused", self.defaults["fused"])
        for group, param, label in labelled_params(state["param_groups"]):
            saved = state["state"].get(param, {})
            if is_loading(state):
                count = ["step"] if self.counts_steps and not self.count_is_number else []
                check_state(label, saved, [*count, *self.new_scalars(self.defaults | group)])
                check_tensors(label, saved, self._expected_tensors(group, param))
            self._convert_scalars(group, param, saved, label)
        super().__setstate__(state)

    def _expected_tensors(self, group: Group, param: Tensor) -> dict[str, Tensor]:
        """Return tensors shaped as a parameter's state, none if a maker asks for more than shape and dtype."""
        group = self.defaults | group | self._absent_options(group)
        try:
            ((group, (param,)),) = self.parts(group, [stand_in(param)])
            names = [name for name, make in self.new_state(group).items() if make is not None]
            state = self.create_state(group, param)
        except Exception:
            return {}
        return {name: state[name] for name in names}

    def _convert_scalars(self, group: Group, param: Tensor, saved: State, label: str) -> None:
        """Bring the step count and the like to dtype and device; before torch 1.12 they were Python numbers."""
        if self.counts_steps and "step" in saved:
            check_number(label, "step", saved["step"])
            if not isinstance(saved["step"], Tensor):
                if not self.count_is_number:
                    saved["step"] = self._make_scalar(group, param, float(saved["step"]))
            elif group.get("fused") and not self.is_capturable(group):
                # torch's fused kernels count on the device; a count that has to be read stays on the host.
                saved["step"] = saved["step"].to("cpu", torch.float32)
        for name in self.new_scalars(self.defaults | group).keys() & saved.keys():
            check_number(label, name, saved[name])
            if not isinstance(saved[name], Tensor):
                saved[name] = self._make_scalar(group, param, float(saved[name]))
                continue
            saved[name] = saved[name].squeeze()
            if not self.is_capturable(group):  # `load_state_dict` has brought it to the parameter's device
                saved[name] = saved[name].cpu()


def make_constructor(cls: type[RuleOptimizer], signature: inspect.Signature) -> None:
    """Give a class a constructor that takes the arguments of a signature."""

    def __init__(self: RuleOptimizer, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.__init__(): {error}") from None
        bound.apply_defaults()
        options = dict(bound.arguments)
        params = options.pop("params")
        if "lr" in options:
            check_lr(options["lr"])
        RuleOptimizer.__init__(self, params, options)

    cls.__init__ = __init__  # type: ignore[method-assign]
    cls.__signature__ = signature  # type: ignore[attr-defined]


def step_dtype() -> torch.dtype:
    """Return the dtype of step counts: float64 if that is the default dtype, else float32."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def turns(groups: list[Group]) -> Iterator[list[tuple[Group, list[Tensor]]]]:
    """Yield the groups that have gradients, each with the parameters that have one.

    Once; but a group that lists a parameter twice (torch warns of it) brings the second mention in a second turn.
    """
    todo = [(group, [param for param in group["params"] if param.grad is not None]) for group in groups]
    while todo := [(group, params) for group, params in todo if params]:
        again = [(group, repeated(params)) for group, params in todo if len(set(map(id, params))) < len(params)]
        yield [(group, list(dict.fromkeys(params))) for group, params in todo] if again else todo
        todo = again


def repeated(params: list[Tensor]) -> list[Tensor]:
    """Return `params` without the first mention of each."""
    seen: set[Tensor] = set()
    return [param for param in params if param in seen or seen.add(param)]  # type: ignore[func-returns-value]


def split(columns: list[list[Any]]) -> list[Sequence[int]]:
    """Return the indices of rows that are equal in every column, part by part."""
    varying = [column for column in columns if column.count(column[0]) < len(column)]
    if not varying:
        return [range(len(columns[0]))]
    parts: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(zip(*varying, strict=True)):
        parts[row].append(index)
    return list(parts.values())


def read(counts: list[Any]) -> list[float]:
    """Return the values of step counts."""
    try:
        return [count.item() for count in counts]
    except AttributeError:  # a Python number, which torch counted in before version 1.12
        message = "API has changed, `state_steps` argument must contain a list of singleton tensors"
        raise RuntimeError(message) from None


def as_scalar(option: Any, differentiable: bool) -> Any:
    """Return a one-element tensor as a 0-dim one, without its history if the step is not recorded."""
    if isinstance(option, tuple):
        return tuple(as_scalar(part, differentiable) for part in option)
    if isinstance(option, Tensor):
        option = option.squeeze() if option.dim() else option
        return option if differentiable else option.detach()
    return option


def as_list(option: Any, length: int) -> Any:
    """Return a tensor option as a list that repeats it."""
    if isinstance(option, tuple):
        return tuple(as_list(part, length) for part in option)
    return TensorList([option] * length) if isinstance(option, Tensor) else option


def as_number(value: Any) -> Any:
    """Read a tensor option or coefficient."""
    if isinstance(value, tuple):
        return tuple(as_number(part) for part in value)
    return value.item() if isinstance(value, Tensor) else value
