"""The instrument in anybody's test suite: one test of pytest for each check of the contract, or each case.

```python
from reimpl.verify.pytest import contract, equivalence


@contract(MyOptimizer, lr=0.1)
def test_contract(check):
    check()


@equivalence(MyAdam, against=torch.optim.Adam)
def test_equal_to_adam(case):
    case()
```

Nothing has to be registered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch

from reimpl.verify.contract import CHECKS, InapplicableError, probe
from reimpl.verify.foreign import Comparison, comparison, judge_foreign
from reimpl.verify.optimizers import Case
from reimpl.verify.options import DTYPES
from reimpl.verify.report import complaint
from reimpl.verify.trial import OptimizerClass, Subject


def contract(optimizer: OptimizerClass, **options: Any) -> pytest.MarkDecorator:
    """Give a test each check of the contract in turn, as its argument `check`, to be called.

    Args:
        optimizer: the class.
        options: its constructor's arguments.
    """

    @functools.cache  # in the first test, not while tests are collected
    def subject() -> Subject:
        return probe(optimizer, options)

    checks = [pytest.param(functools.partial(run, name, subject), id=name.replace(" ", "-")) for name in CHECKS]
    return pytest.mark.parametrize("check", checks)


def run(name: str, subject: Callable[[], Subject]) -> None:
    """Run a check; skip the test if the class has nothing that it could look at."""
    try:
        CHECKS[name](subject())
    except InapplicableError as reason:
        pytest.skip(str(reason))


def equivalence(
    optimizer: OptimizerClass,
    against: OptimizerClass,
    dtypes: Collection[torch.dtype] = tuple(DTYPES.values()),
    quick: bool = False,
) -> pytest.MarkDecorator:
    """Give a test each case that compares a class with torch's, as its argument `case`, to be called.

    Args:
        optimizer: the class.
        against: the class of `torch.optim` that it is to be equal to, but for rounding.
        dtypes: of the parameters.
        quick: only every seventh case, and none of 1,000 steps.

    Raises:
        ForeignClassError: if no cases are registered for `against`.
    """
    of = comparison(optimizer, against, dtypes, quick)
    cases = [pytest.param(functools.partial(require_equal, of, case), id=case.name) for case in of.cases]
    return pytest.mark.parametrize("case", cases)


def require_equal(of: Comparison, case: Case) -> None:
    """Fail with what was found if a case's claim is not met."""
    verdict = judge_foreign(of, case)
    assert verdict.holds, complaint(verdict)
