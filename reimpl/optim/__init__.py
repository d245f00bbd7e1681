"""`torch.optim`, written once: change the import, and not one bit of the result changes."""

from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler, swa_utils

from reimpl.optim.adadelta import Adadelta
from reimpl.optim.adafactor import Adafactor
from reimpl.optim.adagrad import Adagrad
from reimpl.optim.adam import Adam
from reimpl.optim.adamax import Adamax
from reimpl.optim.adamw import AdamW
from reimpl.optim.asgd import ASGD
from reimpl.optim.lbfgs import LBFGS
from reimpl.optim.muon import Muon
from reimpl.optim.nadam import NAdam
from reimpl.optim.optimizer import RuleOptimizer
from reimpl.optim.radam import RAdam
from reimpl.optim.rmsprop import RMSprop
from reimpl.optim.rprop import Rprop
from reimpl.optim.sgd import SGD
from reimpl.optim.sparse_adam import SparseAdam

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "RuleOptimizer",
    "SparseAdam",
    "lr_scheduler",
    "swa_utils",
]


def __getattr__(name: str) -> Any:
    try:
        return getattr(torch.optim, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
