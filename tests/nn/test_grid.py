"""Every claim of the registry about a layer holds."""

import pytest
import torch

import reimpl.nn
from reimpl.verify import cases, judge_layer
from reimpl.verify.layers import TABLES, layer_cases


def check(chosen, device="cpu"):
    verdicts = [
        judge_layer(getattr(reimpl.nn, case.layer), getattr(torch.nn, case.layer), case, device) for case in chosen
    ]
    assert verdicts
    failed = [f"{verdict.kind}: {verdict.case.name}: {verdict.difference}" for verdict in verdicts if not verdict.holds]
    assert not failed, "\n".join([f"{len(failed)} of {len(verdicts)} claims fail", *failed[:5]])


@pytest.mark.parametrize("layer", TABLES)
def test_claims(layer):
    assert layer in reimpl.nn.__all__
    check(list(layer_cases(layer)))


@pytest.mark.cuda
@pytest.mark.parametrize("layer", TABLES)
def test_claims_on_cuda(layer):
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        check([case for case in cases(device="cuda") if case.subject == layer], "cuda")
