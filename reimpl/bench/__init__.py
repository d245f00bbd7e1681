"""How fast a step is: every optimizer, ours and torch's, in one run. The command `reimpl bench`."""

from reimpl.bench.optimizers import ENGINES, OPTIMIZERS, VARIANTS, Result, Results, Variant, bench
from reimpl.bench.report import plot, print_results
from reimpl.bench.workloads import WORKLOADS, Workload

__all__ = [
    "ENGINES",
    "OPTIMIZERS",
    "VARIANTS",
    "WORKLOADS",
    "Result",
    "Results",
    "Variant",
    "Workload",
    "bench",
    "plot",
    "print_results",
]
