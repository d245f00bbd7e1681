"""What came out of a case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reimpl.verify.layers import LayerCase
from reimpl.verify.optimizers import Case

Kind = Literal["exact", "close", "differs"]
KINDS: tuple[Kind, ...] = ("exact", "close", "differs")
"""What a verdict can be, the best first."""


@dataclass(frozen=True)
class Difference:
    """Where two runs first part.

    Attributes:
        step: the first step of an optimizer, or pass through a layer, from 1, after which they differ.
        tensor: which one, as `param[1]`, `state[1].exp_avg` or `gradient of weight`.
        index: the first element that differs.
        ours: its value with the class under test, or what is wrong in words.
        theirs: its value with the reference.
    """

    step: int
    tensor: str
    index: tuple[int, ...]
    ours: float | str
    theirs: float | str

    def __str__(self) -> str:
        return f"step {self.step}, {self.tensor}{list(self.index)}: {self.ours!r} instead of {self.theirs!r}"


@dataclass(frozen=True)
class Verdict:
    """What came out of a case.

    Attributes:
        case: the case.
        kind: `exact`: every bit of whatever can be observed is the reference's, after every step. `close`: not, but
            the error against the oracle is at most the stated multiple of the reference's. `differs`: neither.
        reference: what of torch's it was compared with last.
        ulp: the largest distance from the reference, in units in the last place; for an optimizer, at the end.
        error: the largest error against the oracle, relative to each tensor's scale; for an optimizer, at the end
            and before an exchange of checkpoints. Of the fused engine, the root mean square error over all elements.
        reference_error: the same of the reference.
        difference: where the two first part, None if they never do.
    """

    case: Case | LayerCase
    kind: Kind
    reference: Literal["for-loop", "foreach", "fused", "kernel"]
    ulp: int
    error: float
    reference_error: float
    difference: Difference | None = None

    @property
    def holds(self) -> bool:
        """Whether the case's claim is met."""
        return self.kind == "exact" or (self.kind == "close" and self.case.claim == "close")
