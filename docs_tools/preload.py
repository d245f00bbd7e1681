"""What the processes that run blocks are forked with."""

import matplotlib.pyplot
import pandas
import torch

import reimpl
import reimpl.nn
import reimpl.optim
import reimpl.verify

__all__ = ["matplotlib", "pandas", "reimpl", "torch"]
