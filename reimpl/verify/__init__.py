"""The instrument: whether an optimizer or a layer gives torch's bits, and if not, how far it is from the truth.

`judge` runs one case on two optimizer classes and a float64 oracle, `judge_layer` on two layers; `cases` lists the
registered ones, `verify` runs them all, and `train` trains a real network on both stacks. The command `reimpl verify`
and the tests call nothing else.
"""

from reimpl.verify.cases import cases
from reimpl.verify.judge import CLOSE_FACTOR, judge
from reimpl.verify.layer_judge import LAYER_FACTOR, judge_layer
from reimpl.verify.layers import Input, LayerCase
from reimpl.verify.optimizers import Case
from reimpl.verify.runner import Evidence, Progress, verify
from reimpl.verify.scenarios import SCENARIOS, Scenario
from reimpl.verify.training import Training, train
from reimpl.verify.verdict import Difference, Verdict

__all__ = [
    "CLOSE_FACTOR",
    "LAYER_FACTOR",
    "SCENARIOS",
    "Case",
    "Difference",
    "Evidence",
    "Input",
    "LayerCase",
    "Progress",
    "Scenario",
    "Training",
    "Verdict",
    "cases",
    "judge",
    "judge_layer",
    "train",
    "verify",
]
