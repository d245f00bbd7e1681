"""What a rule's signature says about its optimizer: which state it keeps, which options it has, whether it counts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

GENERAL_OPTIONS = {"foreach": None, "maximize": False, "capturable": False, "differentiable": False, "fused": None}
"""Options that no rule sees, with what they are if nobody asks."""
STEP = "step"
"""The keyword by which a rule asks for the number of the update."""


class RuleSignature(NamedTuple):
    """A rule `rule(param, grad, *state, *, step, **options)`, read.

    Attributes:
        state: the names of its state tensors.
        options: its keywords that have a default, and the default: the optimizer's options.
        takes_step: whether it asks for the number of the update.
        computed: its other keywords: `coefficients` has to give them.
    """

    state: tuple[str, ...]
    options: dict[str, Any]
    takes_step: bool
    computed: tuple[str, ...]


def read_signature(rule: Callable[..., None], name: str) -> RuleSignature | None:
    """Return what a rule's signature says, None if it has no keywords.

    Args:
        rule: the rule.
        name: of the optimizer's class.

    Raises:
        TypeError: if it cannot be a rule's.
    """
    parameters = inspect.signature(rule).parameters.values()
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if not keywords:
        return None
    tensors = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(tensors) < 2 or len(tensors) + len(keywords) < len(parameters):
        raise TypeError(f"{name}.rule{inspect.signature(rule)} is not a rule: rule(param, grad, *state, *, **options)")
    reserved = {p.name for p in keywords} & {*GENERAL_OPTIONS, "params"}
    if reserved:
        raise TypeError(f"{name}.rule takes {', '.join(sorted(reserved))}, which every optimizer has and no rule sees")
    with_default = {p.name: p.default for p in keywords if p.default is not p.empty}
    without = [p.name for p in keywords if p.default is p.empty]
    return RuleSignature(
        state=tuple(tensors[2:]),
        options=with_default,
        takes_step=STEP in without,
        computed=tuple(keyword for keyword in without if keyword != STEP),
    )


def constructor_signature(options: dict[str, Any], general: dict[str, Any]) -> inspect.Signature:
    """Return the signature of a constructor that takes `params`, options, and general options by name."""
    kinds = inspect.Parameter
    return inspect.Signature(
        [
            kinds("params", kinds.POSITIONAL_OR_KEYWORD),
            *(kinds(name, kinds.POSITIONAL_OR_KEYWORD, default=value) for name, value in options.items()),
            *(kinds(name, kinds.KEYWORD_ONLY, default=value) for name, value in general.items()),
        ]
    )
