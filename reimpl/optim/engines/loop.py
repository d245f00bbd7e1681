"""The loop engine: the rule on each tensor, as it stands."""

from reimpl.optim.engines.batch import Batch, Rule


def loop(rule: Rule, batch: Batch) -> None:
    """Run `rule` on one parameter after the other."""
    for param, grad, state in batch.each():
        rule(param, grad, **state, **batch.coefficients)
