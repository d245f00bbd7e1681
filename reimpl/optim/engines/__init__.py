"""How a rule runs: on each tensor, on lists of tensors, as one kernel, on sparse rows, or recorded by autograd.

No engine knows an optimizer and no rule knows an engine. A rule is a function
`rule(param, grad, *state, **coefficients)` that changes its tensors in place; an engine takes a rule and a `Batch` and
decides what stands behind the word "tensor".
"""

from reimpl.optim.engines.batch import Batch, Engine, Rule
from reimpl.optim.engines.differentiable import differentiable
from reimpl.optim.engines.foreach import TensorList, foreach
from reimpl.optim.engines.fused import fused
from reimpl.optim.engines.loop import loop
from reimpl.optim.engines.rows import rows

__all__ = ["Batch", "Engine", "Rule", "TensorList", "differentiable", "foreach", "fused", "loop", "rows"]
