"""What the processes that run blocks are forked with: everything that the first of something costs, paid once."""

import matplotlib as mpl
import pandas
import torch

import reimpl
import reimpl.nn
import reimpl.optim
import reimpl.verify
from docs_tools import figures

# With one thread torch starts none, and a process without threads can be forked.
torch.set_num_threads(1)
_param = torch.zeros(1, requires_grad=True)
_param.grad = torch.zeros(1)
torch.optim.SGD([_param], lr=0.1).step()

mpl.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

with mpl.rc_context(figures.style()):
    _figure, _axes = plt.subplots()
    _axes.plot([0, 1], label="−1")
    _axes.set_xlabel("θ₁")
    _axes.legend()
    figures.to_svg(_figure, "", "")
    plt.close("all")

__all__ = ["pandas", "reimpl"]
