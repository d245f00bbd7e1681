"""The judge of layers: what it sees, and that a fault does not get past it."""

from collections import Counter

import pytest
import torch

import reimpl.nn
import reimpl.nn.functional
from layers import LAYERS
from reimpl.verify import LAYER_FACTOR, Input, LayerCase, judge_layer
from reimpl.verify.layers import TABLES, layer_cases

BATCH = Input("batch", lambda draw: (draw.normal(6, 7),))


def case(engine="kernels", dtype=torch.float32, layer="Linear", options=None, given=BATCH):
    options = {"in_features": 7, "out_features": 5} if options is None else options
    return LayerCase(layer, layer.lower(), options, given, dtype, engine)


def judge(ours, **wanted):
    return judge_layer(ours, torch.nn.Linear, case(**wanted))


def test_exact():
    verdict = judge(reimpl.nn.Linear)
    assert (verdict.kind, verdict.ulp, verdict.difference) == ("exact", 0, None)
    assert verdict.holds


def test_every_layer_is_registered():
    assert set(TABLES) == set(LAYERS) - {"Sequential"}
    names = [case.name for layer in TABLES for case in layer_cases(layer)]
    assert len(set(names)) == len(names)


def test_every_function_is_registered():
    of_layers = {function for function, _ in TABLES.values() if function}
    assert of_layers <= set(reimpl.nn.functional.__all__)
    # Reached through a layer: pad by convolution, relu_ by ReLU, the others by the layers with `return_indices`.
    others = set(reimpl.nn.functional.__all__) - of_layers
    assert {name for name in others if not name.endswith("_with_indices")} == {"pad", "relu_"}


@pytest.mark.parametrize("layer", TABLES)
def test_both_engines_and_every_dtype(layer):
    found = Counter((case.engine, case.dtype) for case in layer_cases(layer))
    missing = layer == "AvgPool3d"
    assert len(found) == (3 if layer == "Flatten" else 3 if missing else 5)


class Biased(reimpl.nn.Linear):
    """A layer whose output is a little off."""

    def forward(self, input):
        return super().forward(input) * (1 + 2**-20)


class Forgetful(reimpl.nn.Linear):
    """A layer that draws its initial values in another order."""

    def reset_parameters(self):
        torch.rand(1)
        super().reset_parameters()


class Detached(reimpl.nn.Linear):
    """A layer whose bias learns nothing."""

    def forward(self, input):
        return self.functional.linear(input, self.weight, self.bias.detach())


class Renamed(reimpl.nn.Linear):
    """A layer with a parameter more."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = torch.nn.Parameter(torch.ones(1, dtype=self.weight.dtype))


@pytest.mark.parametrize(
    ("layer", "tensor"),
    [(Biased, "output 0"), (Forgetful, "weight"), (Detached, "all")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_fault_is_found(layer, tensor):
    verdict = judge(layer)
    assert not verdict.holds
    assert verdict.difference.tensor == tensor


def test_another_state_dict_is_refused():
    with pytest.raises(RuntimeError, match="scale"):
        judge(Renamed)


def test_first_principles_may_be_close_but_not_far():
    class Rounded(reimpl.nn.Linear):
        """Off by a share of the output that torch's own error of one rounding does not allow."""

        share = 0.0

        def forward(self, input):
            return super().forward(input) * (1 + self.share)

    verdict = judge(reimpl.nn.Linear, engine="first principles")
    assert verdict.holds
    Rounded.share = 2**-23
    assert judge(Rounded, engine="first principles").kind == "close"
    assert not judge(Rounded, engine="kernels").holds
    Rounded.share = 2**-18
    verdict = judge(Rounded, engine="first principles")
    assert verdict.kind == "differs"
    assert verdict.error > LAYER_FACTOR * verdict.reference_error
