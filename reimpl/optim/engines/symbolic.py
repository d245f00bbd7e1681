"""A rule as text: what it does to one element, written down in C while the rule runs once on symbols.

`Lane` stands for one element of a tensor and `Scalar` for a coefficient. Neither holds a number. The C is plain enough
to be compiled for processors and for GPUs; `kernel.py` puts the loop around it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from reimpl.optim.engines.operands import Operand

Coefficients: TypeAlias = Mapping[str, float]


class NotElementwiseError(TypeError):
    """Raised when a rule does what cannot be done to each element by itself, or what is not known here."""


class Trace:
    """What a rule has done so far.

    Attributes:
        constants: C definitions of the coefficients that the elements use, in the order of their first use.
        statements: C statements for one element.
        assumptions: questions about the coefficients that the rule has asked, with their answers. The text is the
            rule's for all coefficients that give the same answers.
    """

    def __init__(self) -> None:
        self.constants: dict[str, str] = {}
        self.statements: list[str] = []
        self.assumptions: list[tuple[Callable[[Coefficients], bool], bool]] = []

    def lane(self, expression: str, kind: str = "real") -> Lane:
        """Write down a new intermediate value."""
        name = f"x{len(self.statements)}"
        self.statements.append(f"const {kind} {name} = {expression};")
        return Lane(self, name)

    def text(self, operand: Any) -> str:
        """Return an operand as C: the name of an element's value, of a coefficient, or a number."""
        if isinstance(operand, Lane):
            return operand.name
        if isinstance(operand, Scalar):
            if operand.text not in self.constants:
                self.constants[operand.text] = f"c{len(self.constants)}"
            return self.constants[operand.text]
        if isinstance(operand, bool | int | float):
            return f"real({number(operand)})"
        raise NotElementwiseError(f"it combines an element with {type(operand).__name__}")


class Scalar:
    """A coefficient, or what was computed from coefficients, in double precision.

    Args:
        trace: where questions about its value are written down.
        text: the C expression.
        evaluate: gives its value for given coefficients.
        current: the coefficients of this trace.
    """

    __slots__ = ("current", "evaluate", "text", "trace")
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, trace: Trace, text: str, evaluate: Callable[[Coefficients], float], current: Coefficients
    ) -> None:
        self.trace, self.text, self.evaluate, self.current = trace, text, evaluate, current

    def _derive(self, template: str, function: Callable[..., float], *operands: Any) -> Any:
        if any(isinstance(operand, Lane) for operand in operands):
            return NotImplemented
        parts = [(o.text, o.evaluate) if isinstance(o, Scalar) else (number(o), constant(o)) for o in operands]
        evaluators = [evaluate for _, evaluate in parts]
        text = template.format(*(text for text, _ in parts))
        return Scalar(self.trace, text, lambda given: function(*(e(given) for e in evaluators)), self.current)

    def _ask(self, question: Callable[[float, Any], bool], other: Any) -> bool:
        """Answer for the coefficients of this trace, and remember that the text depends on it."""
        bound = other.evaluate if isinstance(other, Scalar) else constant(other)

        def ask(given: Coefficients) -> bool:
            return bool(question(self.evaluate(given), bound(given)))

        answer = ask(self.current)
        self.trace.assumptions.append((ask, answer))
        return answer

    def __add__(self, other: Any) -> Any:
        return self._derive("({} + {})", operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return self._derive("({} + {})", operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return self._derive("({} - {})", operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._derive("({} - {})", operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return self._derive("({} * {})", operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._derive("({} * {})", operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return self._derive("({} / {})", operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._derive("({} / {})", operator.truediv, other, self)

    def __pow__(self, other: Any) -> Any:
        return self._derive("pow({}, {})", operator.pow, self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._derive("pow({}, {})", operator.pow, other, self)

    def __neg__(self) -> Any:
        return self._derive("(-{})", operator.neg, self)

    def __abs__(self) -> Any:
        return self._derive("fabs({})", abs, self)

    def __bool__(self) -> bool:
        return self._ask(operator.ne, 0)

    def __eq__(self, other: object) -> bool:
        return self._ask(operator.eq, other)

    def __ne__(self, other: object) -> bool:
        return self._ask(operator.ne, other)

    def __lt__(self, other: Any) -> bool:
        return self._ask(operator.lt, other)

    def __le__(self, other: Any) -> bool:
        return self._ask(operator.le, other)

    def __gt__(self, other: Any) -> bool:
        return self._ask(operator.gt, other)

    def __ge__(self, other: Any) -> bool:
        return self._ask(operator.ge, other)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Lane:
        """Let `torch.lerp(x, y, scalar)` come to `Lane`."""
        return Lane.__torch_function__(func, types, args, kwargs)

    def __float__(self) -> float:
        raise NotElementwiseError("it turns a coefficient into a number; `x ** 0.5` does what `math.sqrt(x)` would")


def number(value: Any) -> str:
    """Return a number as C."""
    if not isinstance(value, bool | int | float):
        raise NotElementwiseError(f"it combines a coefficient with {type(value).__name__}")
    value = float(value)
    if math.isnan(value):
        return "NAN"
    return repr(value) if math.isfinite(value) else "INFINITY" if value > 0 else "(-INFINITY)"


def constant(value: Any) -> Callable[[Coefficients], Any]:
    """Return a function that gives the value whatever the coefficients are."""
    return lambda _: value


UNARY = {
    "neg": "-{0}",
    "abs": "fabs({0})",
    "sqrt": "sqrt({0})",
    "rsqrt": "real(1) / sqrt({0})",
    "reciprocal": "real(1) / {0}",
    "square": "{0} * {0}",
    "sign": "real({0} > 0) - real({0} < 0)",
    "exp": "exp({0})",
    "expm1": "expm1({0})",
    "log": "log({0})",
    "log1p": "log1p({0})",
    "sin": "sin({0})",
    "cos": "cos({0})",
    "atan": "atan({0})",
    "tanh": "tanh({0})",
    "erf": "erf({0})",
    "sigmoid": "real(1) / (real(1) + exp(-{0}))",
    "relu": "{0} < 0 ? real(0) : {0}",
    "floor": "floor({0})",
    "ceil": "ceil({0})",
    "trunc": "trunc({0})",
    "clone": "{0}",
}
"""C for what torch's method of the name gives; NaN stays NaN, as there."""

BINARY = {
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "pow": "pow({0}, {1})",
    "maximum": "({0} > {1} || {0} != {0}) ? {0} : {1}",
    "minimum": "({0} < {1} || {0} != {0}) ? {0} : {1}",
    "atan2": "atan2({0}, {1})",
    "copysign": "copysign({0}, {1})",
    "copy": "{1}",
    "fill": "{1}",
}
BINARY["clamp_min"] = BINARY["maximum"]
BINARY["clamp_max"] = BINARY["minimum"]

COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
LOGIC = {"logical_and": "&&", "logical_or": "||", "logical_xor": "!="}


class Lane(Operand):
    """One element of a tensor: answers a tensor's elementwise methods by writing them down.

    An in-place method gives it a new value, as `Value` does in the differentiable engine.
    """

    __slots__ = ("name", "trace")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, trace: Trace, name: str) -> None:
        self.trace, self.name = trace, name

    def __getattr__(self, name: str) -> Callable[..., Lane]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.removesuffix("_") not in KNOWN:
            asks = "calls" if callable(getattr(torch.Tensor, name, None)) else "asks for"
            raise NotElementwiseError(f"it {asks} `{name}`, which the fused engine has not")
        in_place = name.endswith("_")

        def method(*args: Any, **kwargs: Any) -> Lane:
            result = self._result(name.removesuffix("_"), *args, **kwargs)
            if not in_place:
                return result
            self.name = result.name
            return self

        return method

    def _result(self, name: str, *args: Any, **kwargs: Any) -> Lane:
        trace = self.trace
        if name in UNARY and not args and not kwargs:
            return trace.lane(UNARY[name].format(self.name))
        if name in BINARY and len(args) == 1 and kwargs.keys() <= {"non_blocking"}:
            return trace.lane(BINARY[name].format(self.name, trace.text(args[0])))
        if name in COMPARISONS and len(args) == 1:
            return trace.lane(f"{self.name} {COMPARISONS[name]} {trace.text(args[0])}", "bool")
        if name in LOGIC and len(args) == 1:
            return trace.lane(f"bool({self.name}) {LOGIC[name]} bool({trace.text(args[0])})", "bool")
        if name not in WRITTEN:
            raise NotElementwiseError(f"it calls `{name}`, which the fused engine has not, with these arguments")
        result: Lane = getattr(self, f"_{name}")(*args, **kwargs)
        return result

    def _add(self, other: Any, *, alpha: Any = 1) -> Lane:
        text = self.trace.text
        scaled = text(other) if isinstance(alpha, int) and alpha == 1 else f"{text(other)} * {text(alpha)}"
        return self.trace.lane(f"{self.name} + {scaled}")

    def _sub(self, other: Any, *, alpha: Any = 1) -> Lane:
        return self._add(other, alpha=-alpha)

    def _addcmul(self, first: Any, second: Any, *, value: Any = 1) -> Lane:
        text = self.trace.text
        return self.trace.lane(f"{self.name} + {text(value)} * {text(first)} * {text(second)}")

    def _addcdiv(self, first: Any, second: Any, *, value: Any = 1) -> Lane:
        text = self.trace.text
        return self.trace.lane(f"{self.name} + {text(value)} * {text(first)} / {text(second)}")

    def _lerp(self, end: Any, weight: Any) -> Lane:
        """Start from the nearer end, as torch does, so that a weight of 1 gives `end` exactly."""
        x, y, w = self.name, self.trace.text(end), self.trace.text(weight)
        return self.trace.lane(f"fabs({w}) < real(0.5) ? {x} + {w} * ({y} - {x}) : {y} - ({y} - {x}) * (real(1) - {w})")

    def _clamp(self, min: Any = None, max: Any = None) -> Lane:  # noqa: A002
        result = self if min is None else self._result("clamp_min", min)
        return result if max is None else result._result("clamp_max", max)

    def _where(self, condition: Any, other: Any) -> Lane:
        text = self.trace.text
        return self.trace.lane(f"{text(condition)} ? {self.name} : {text(other)}")

    def _masked_fill(self, mask: Any, value: Any) -> Lane:
        text = self.trace.text
        return self.trace.lane(f"{text(mask)} ? {text(value)} : {self.name}")

    def _logical_not(self) -> Lane:
        return self.trace.lane(f"!{self.name}", "bool")

    def detach(self) -> Lane:
        """Return the lane itself, as a detached tensor shares its memory."""
        return self

    def _zero(self) -> Lane:
        return self.trace.lane("real(0)")

    def __neg__(self) -> Lane:
        return self._result("neg")

    def __abs__(self) -> Lane:
        return self._result("abs")

    def __invert__(self) -> Lane:
        return self._logical_not()

    def __add__(self, other: Any) -> Lane:
        return self._add(other)

    def __radd__(self, other: Any) -> Lane:
        return self._add(other)

    def __sub__(self, other: Any) -> Lane:
        return self.trace.lane(f"{self.name} - {self.trace.text(other)}")

    def __rsub__(self, other: Any) -> Lane:
        return self.trace.lane(f"{self.trace.text(other)} - {self.name}")

    def __mul__(self, other: Any) -> Lane:
        return self._result("mul", other)

    def __rmul__(self, other: Any) -> Lane:
        return self._result("mul", other)

    def __truediv__(self, other: Any) -> Lane:
        return self._result("div", other)

    def __rtruediv__(self, other: Any) -> Lane:
        return self.trace.lane(f"{self.trace.text(other)} / {self.name}")

    def __pow__(self, exponent: Any) -> Lane:
        if isinstance(exponent, int) and exponent == 2:
            return self._result("square")
        return self._result("pow", exponent)

    def __rpow__(self, base: Any) -> Lane:
        return self.trace.lane(f"pow({self.trace.text(base)}, {self.name})")

    def __and__(self, other: Any) -> Lane:
        return self._result("logical_and", other)

    def __or__(self, other: Any) -> Lane:
        return self._result("logical_or", other)

    def __xor__(self, other: Any) -> Lane:
        return self._result("logical_xor", other)

    def __gt__(self, other: Any) -> Lane:
        return self._result("gt", other)

    def __ge__(self, other: Any) -> Lane:
        return self._result("ge", other)

    def __lt__(self, other: Any) -> Lane:
        return self._result("lt", other)

    def __le__(self, other: Any) -> Lane:
        return self._result("le", other)

    def __eq__(self, other: object) -> Lane:  # type: ignore[override]
        return self._result("eq", other)

    def __ne__(self, other: object) -> Lane:  # type: ignore[override]
        return self._result("ne", other)

    def __bool__(self) -> bool:
        raise NotElementwiseError("it decides by an element's value; `torch.where` would do it for each element")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Lane:
        """Take `torch.sqrt(x)` for `x.sqrt()`."""
        if func is torch.where:
            condition, chosen, other = args
            if isinstance(chosen, Lane):
                return chosen._where(condition, other)
            text = condition.trace.text
            result: Lane = condition.trace.lane(f"{text(condition)} ? {text(chosen)} : {text(other)}")
            return result
        if not args or not isinstance(args[0], Lane):
            raise NotElementwiseError(f"it calls `torch.{func.__name__}` with {type(args[0]).__name__} first")
        method: Callable[..., Lane] = getattr(args[0], func.__name__)
        return method(*args[1:], **(kwargs or {}))


WRITTEN = {"add", "sub", "addcmul", "addcdiv", "lerp", "clamp", "where", "masked_fill", "logical_not", "zero"}
"""The methods of `Lane` that have more to say than a template."""
KNOWN = UNARY.keys() | BINARY.keys() | COMPARISONS.keys() | LOGIC.keys() | WRITTEN


def trace_rule(
    rule: Callable[..., None],
    names: list[str | None],
    coefficients: Mapping[str, Any],
    maximize: bool = False,
    grad_scale: float | None = None,
) -> tuple[Trace, dict[str, str]]:
    """Run a rule on symbols.

    Args:
        rule: the rule.
        names: what to call parameter, gradient and each state tensor in C; None for state that is not kept.
        coefficients: those that are `variable` become symbols, the rule sees the others as they are.
        maximize: whether the rule sees the negated gradient.
        grad_scale: what the gradient is divided by, and then kept so; None leaves it as it is.

    Returns:
        The trace, and the C name of the new value of each tensor that gets one.

    Raises:
        NotElementwiseError: if the rule cannot be written so.
    """
    trace = Trace()
    current = variable(coefficients, grad_scale)
    symbols: dict[str, Any] = {
        name: Scalar(trace, f"scalars[{index}]", operator.itemgetter(name), current)
        for index, name in enumerate(current)
    }
    for name, numbers in coefficients.items():
        if is_variable_tuple(numbers):
            symbols[name] = tuple(symbols.pop(f"{name}[{index}]") for index in range(len(numbers)))
    param, grad, *state = [name and Lane(trace, name) for name in names]
    assert isinstance(grad, Lane)
    if grad_scale is not None:
        grad.div_(symbols.pop("grad_scale"))
    seen = -grad if maximize else Lane(trace, grad.name)
    rule(param, seen, *state, **{**coefficients, **symbols})
    lanes = zip(names, (param, grad, *state), strict=True)
    return trace, {str(name): lane.name for name, lane in lanes if isinstance(lane, Lane) and lane.name != name}


def variable(coefficients: Mapping[str, Any], grad_scale: float | None = None) -> dict[str, float]:
    """Return the coefficients that are numbers: they may change from step to step without a new kernel."""
    found: dict[str, float] = {}
    for name, value in coefficients.items():
        if is_variable(value):
            found[name] = value
        elif is_variable_tuple(value):
            found |= {f"{name}[{index}]": number for index, number in enumerate(value)}
    return found if grad_scale is None else {**found, "grad_scale": grad_scale}


def static(coefficients: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the other coefficients, with their names: a kernel is made for each of their values."""
    return tuple((n, v) for n, v in coefficients.items() if not is_variable(v) and not is_variable_tuple(v))


def is_variable(value: Any) -> bool:
    """Return whether a coefficient is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_variable_tuple(value: Any) -> bool:
    """Return whether a coefficient is a tuple of numbers, such as `betas`."""
    return isinstance(value, tuple) and bool(value) and all(map(is_variable, value))
