"""`torch.optim`, written once: change the import, and not one bit of the result changes."""

from torch.optim import Optimizer, lr_scheduler, swa_utils

from reimpl.optim.adadelta import Adadelta
from reimpl.optim.adagrad import Adagrad
from reimpl.optim.adam import Adam
from reimpl.optim.optimizer import RuleOptimizer
from reimpl.optim.rmsprop import RMSprop
from reimpl.optim.sgd import SGD

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "Optimizer", "RMSprop", "RuleOptimizer", "lr_scheduler", "swa_utils"]
