"""The instrument: whether an optimizer or a layer gives torch's bits, and if not, how far it is from the truth.

`judge` runs one case on two optimizer classes and a float64 oracle, `judge_layer` on two layers; `cases` lists the
registered ones, `verify` runs them all, and `train` trains a real network on both stacks. The command `reimpl verify`
and the tests call nothing else. Anybody's optimizer is judged by the contract (`run_contract`), or against one of
torch's (`comparison`, `judge_foreign`).
"""

from reimpl.verify.cases import cases
from reimpl.verify.contract import CHECKS, ContractError, Outcome, probe, run_check, run_contract
from reimpl.verify.foreign import Comparison, comparison, judge_foreign
from reimpl.verify.judge import CLOSE_FACTOR, judge
from reimpl.verify.layer_judge import LAYER_FACTOR, judge_layer
from reimpl.verify.layers import Input, LayerCase
from reimpl.verify.optimizers import Case
from reimpl.verify.runner import Evidence, Progress, verify, verify_against, verify_contract
from reimpl.verify.scenarios import SCENARIOS, Scenario
from reimpl.verify.training import Training, train
from reimpl.verify.verdict import Difference, Verdict

__all__ = [
    "CHECKS",
    "CLOSE_FACTOR",
    "LAYER_FACTOR",
    "SCENARIOS",
    "Case",
    "Comparison",
    "ContractError",
    "Difference",
    "Evidence",
    "Input",
    "LayerCase",
    "Outcome",
    "Progress",
    "Scenario",
    "Training",
    "Verdict",
    "cases",
    "comparison",
    "judge",
    "judge_foreign",
    "judge_layer",
    "probe",
    "run_check",
    "run_contract",
    "train",
    "verify",
    "verify_against",
    "verify_contract",
]
