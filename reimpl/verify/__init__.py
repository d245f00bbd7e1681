"""The instrument: whether an optimizer gives torch's bits, and if not, how far it is from the truth.

`judge` runs one case on two optimizer classes and a float64 oracle; `cases` lists the registered ones, `verify` runs
them all, and `train` trains a real network with both. The command `reimpl verify` and the tests call nothing else.
"""

from reimpl.verify.cases import Case, cases
from reimpl.verify.judge import CLOSE_FACTOR, Difference, Verdict, judge
from reimpl.verify.runner import Evidence, Progress, verify
from reimpl.verify.scenarios import SCENARIOS, Scenario
from reimpl.verify.training import Training, train

__all__ = [
    "CLOSE_FACTOR",
    "SCENARIOS",
    "Case",
    "Difference",
    "Evidence",
    "Progress",
    "Scenario",
    "Training",
    "Verdict",
    "cases",
    "judge",
    "train",
    "verify",
]
