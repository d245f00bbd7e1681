"""LSTM and LSTMCell: what the tables of modules and cases do not put them through."""

import copy
import inspect
import pickle
import warnings
from itertools import chain

import pytest
import torch
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import reimpl.nn
import reimpl.nn.functional
from layers import assert_same, leaves, observe

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

PAIR = (reimpl.nn.LSTM, torch.nn.LSTM)
CELLS = (reimpl.nn.LSTMCell, torch.nn.LSTMCell)


@pytest.fixture(autouse=True)
def every_warning():
    """Of each layer, not of the first alone: torch warns once that oneDNN has no projection."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def states(count, batch, hidden=4, outputs=None):
    shape = (count, batch) if batch else (count,)
    return draw(*shape, outputs or hidden).requires_grad_(), draw(*shape, hidden).requires_grad_()


def same(arguments, args, classes=PAIR, **options):
    """Assert that both layers show the same, and return what."""
    seen = [observe(lambda: cls(*arguments, **options), args, {}) for cls in classes]  # noqa: B023
    assert_same(*seen)
    return seen[0]


def twins(*arguments, **options):
    """Return both layers with the same weights."""
    made = []
    for cls in PAIR:
        torch.manual_seed(2)
        made.append(cls(*arguments, **options))
    return made


def assert_agree(layers, *args):
    """Assert that both layers return the same bits."""
    outputs = []
    for layer in layers:
        torch.manual_seed(6)
        outputs.append(leaves(layer(*args)))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize(
    "given",
    [
        (pack_padded_sequence(draw(5, 3, 3), [5, 3, 3]), states(4, 3)),
        (pack_padded_sequence(draw(5, 3, 3), [2, 5, 1], enforce_sorted=False), states(4, 3)),
        (pack_sequence([draw(4, 3), draw(2, 3)]),),
        (draw(5, 3), states(4, None)),
        (draw(5, 0, 3),),
        (draw(1, 1, 3),),
        (draw(3, 3, 5).permute(2, 0, 1),),
        (draw(5, 6, 3)[:, ::2], states(4, 3)),
        (torch.full((3, 2, 3), float("nan")),),
        (1e4 * draw(3, 2, 3),),
    ],
    ids=["sorted", "unsorted", "sequences", "unbatched", "empty", "one", "permuted", "strided", "nan", "large"],
)
def test_inputs(given):
    for options in ({}, {"dropout": 0.5}):
        assert "error" not in same((3, 4, 2), given, bidirectional=True, **options)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({}, (draw(2, 3, 3, 3),)),
        ({}, (draw(3),)),
        ({}, (draw(5, 2, 7),)),
        ({}, (draw(5, 2, 3).double(),)),
        ({}, (draw(0, 2, 3),)),
        ({}, (draw(5, 2, 3), states(1, 3))),
        ({}, (draw(5, 2, 3), states(2, 2))),
        ({}, (draw(5, 2, 3), states(1, None))),
        ({}, (draw(5, 3), states(1, 1))),
        ({}, (draw(5, 2, 3), draw(1, 2, 4))),
        ({}, (draw(5, 2, 3), (draw(1, 2, 4), draw(1, 2, 5)))),
        ({"proj_size": 2}, (draw(5, 2, 3), states(1, 2))),
        ({"batch_first": True}, (draw(2, 5, 3), (draw(2, 1, 4), draw(2, 1, 4)))),
        ({}, (pack_padded_sequence(draw(5, 2, 3), [5, 3]), states(1, 3))),
        ({"dropout": 2}, ()),
        ({"dropout": True}, ()),
        ({"dropout": "x"}, ()),
        ({"bias": 1}, ()),
        ({"batch_first": 0}, ()),
        ({"num_layers": 0}, ()),
        ({"proj_size": -1}, ()),
        ({"proj_size": 4}, ()),
        ({"input_size": 0}, ()),
        ({"input_size": 2.0}, ()),
        ({"hidden_size": -3}, ()),
        ({"hidden_size": "4"}, ()),
        ({"dropout": 0.5}, (draw(5, 2, 3),)),
    ],
)
def test_errors_and_warnings(options, given):
    seen = same((), given, **{"input_size": 3, "hidden_size": 4, **options})
    assert "error" in seen or seen["warnings"]


@pytest.mark.parametrize(
    "given",
    [
        (draw(2, 3), states(2, None)),
        (draw(2, 3, 3),),
        (draw(2, 7),),
        (draw(2, 3), (draw(2, 2, 4), draw(2, 4))),
        (draw(2, 3), (draw(3, 4), draw(2, 4))),
        (draw(2, 3), (draw(2, 5), draw(2, 4))),
        (draw(0, 3),),
    ],
)
@pytest.mark.parametrize("functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "principles"])
def test_cells(given, functional):
    seen = same((3, 4), given, CELLS, bias=False)
    layer = reimpl.nn.LSTMCell(3, 4, bias=False)
    layer.functional = functional
    if "error" in seen:
        with pytest.raises(seen["error"][0]) as error:
            layer(*given)
        assert str(error.value) == seen["error"][1]
    else:
        assert layer(*given)[0].shape == seen["output 0"].shape


def test_cells_with_states_of_a_wrong_form():
    for given in ((draw(2, 3), torch.stack([draw(2, 4)] * 2)), (draw(3), states(4, None))):
        assert "error" in same((3, 4), given, CELLS)


def test_the_warning_shows_the_callers_line():
    with pytest.warns(UserWarning, match="dropout option") as caught:
        reimpl.nn.LSTM(3, 4, dropout=0.5)
    assert caught[0].filename == __file__


def test_the_signature_is_torchs_without_the_mode():
    theirs = dict(inspect.signature(torch.nn.RNNBase.__init__).parameters)
    del theirs["mode"]
    ours = inspect.signature(reimpl.nn.LSTM.__init__).parameters
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


def assign(layer):
    layer.weight_hh_l0 = torch.nn.Parameter(torch.ones(16, 4))


def assign_data(layer):
    layer.weight_hh_l0.data = torch.ones(16, 4)


def in_place(layer):
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)


def load(layer):
    values = {name: value + 1 for name, value in layer.state_dict().items()}
    layer.load_state_dict(values, assign=True)


def share(layer):
    layer.weight_hh_l0_reverse = layer.weight_hh_l0


def in_the_list(layer):
    layer._flat_weights[1] = torch.ones(16, 4)


def register(layer):
    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(layer, "weight_hh_l0", Doubled())


def at_random(layer):
    class Dropped(torch.nn.Module):
        def forward(self, weight):
            return torch.nn.functional.dropout(weight)

    torch.manual_seed(1)
    parametrize.register_parametrization(layer, "weight_hh_l0", Dropped(), unsafe=True)


def normalise(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(layer, "weight_hh_l0")


def normalise_and_back(layer):
    normalise(layer)
    torch.nn.utils.remove_weight_norm(layer, "weight_hh_l0")


def drop_by_hand(layer):
    raw = layer.weight_hh_l0
    del layer._parameters["weight_hh_l0"]
    layer.register_parameter("raw", raw)
    layer.weight_hh_l0 = raw * 0.5


@pytest.mark.parametrize(
    "change",
    [
        assign, assign_data, in_place, load, share, in_the_list, register,
        at_random, normalise, normalise_and_back, drop_by_hand,
    ],
)  # fmt: skip
def test_changed_weights_are_seen(change):
    x = draw(5, 2, 3)
    both = twins(3, 4, bidirectional=True)
    before = both[0](x)[0]
    for layer in both:
        change(layer)
        # Right after the change, before any forward.
        assert len(layer._flat_weights) == len(layer._flat_weights_names) == 8
    assert [isinstance(w, torch.nn.Parameter) for w in both[0]._flat_weights] == [
        isinstance(w, torch.nn.Parameter) for w in both[1]._flat_weights
    ]
    for _ in range(2):
        assert_agree(both, x)
    if change not in (normalise, normalise_and_back):
        assert not torch.allclose(both[0](x)[0], before)


def test_functional_call_leaves_nothing_behind():
    x = draw(5, 2, 3)
    layer = reimpl.nn.LSTM(3, 4)
    before = layer(x)[0]
    ones = {name: torch.ones_like(value) for name, value in layer.named_parameters()}
    torch.func.functional_call(layer, ones, (x,))
    assert torch.equal(layer(x)[0], before)
    assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))


@pytest.mark.parametrize("swap", [False, True])
def test_conversion(swap):
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        layer, twin = twins(3, 4, 2, proj_size=2)
        layer(draw(5, 2, 3))
        layer.double(), twin.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert all(a is b for a, b in zip(layer._flat_weights, layer.parameters(), strict=True))
    assert_agree((layer, twin), draw(5, 2, 3).double())


def test_all_weights_and_state():
    layer, twin = twins(3, 4, 2, bidirectional=True, proj_size=2, bias=False)
    assert [[w.shape for w in weights] for weights in layer.all_weights] == [
        [w.shape for w in weights] for weights in twin.all_weights
    ]
    assert all(w is p for w, p in zip(chain(*layer.all_weights), layer.parameters(), strict=True))
    assert layer.__getstate__().keys() == twin.__getstate__().keys()
    # `swap` exchanges the class alone.
    assert vars(layer).keys() == vars(twin).keys()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_weights_of_their_own(duplicate):
    layer = reimpl.nn.LSTM(3, 4, 2)
    layer.functional = reimpl.nn.functional
    other = duplicate(layer)
    assert all(a is b for a, b in zip(other._flat_weights, other.parameters(), strict=True))
    assert other.functional is reimpl.nn.functional
    assert not other._weights_have_changed()


def test_old_pickles():
    layer, twin = twins(3, 4, 2, bidirectional=True)
    x = draw(5, 2, 3)
    for old in (layer, twin):
        state = old.__getstate__()
        for name in ("proj_size", "_flat_weights_names", "_all_weights", "_flat_weights"):
            del state[name]
        state["all_weights"] = old.all_weights
        new = object.__new__(type(old))
        new.__setstate__(state)
        assert new.proj_size == 0
        assert new._flat_weights_names == old._flat_weights_names
        assert torch.equal(new(x)[0], layer(x)[0])


def test_replicas_have_lists_of_their_own():
    layer = reimpl.nn.LSTM(3, 4)
    replica = layer._replicate_for_data_parallel()
    replica.weight_hh_l0 = torch.zeros(16, 4)
    assert layer._flat_weights[1] is layer.weight_hh_l0
    assert replica._flat_weights[1] is replica.weight_hh_l0


def test_subclasses_find_the_checks():
    class Noted(reimpl.nn.LSTM):
        def check_forward_args(self, input, hidden, batch_sizes):
            self.checked = self.get_expected_hidden_size(input, batch_sizes)
            super().check_forward_args(input, hidden, batch_sizes)

    layer = Noted(3, 4, proj_size=2)
    layer(draw(5, 2, 3))
    assert layer.checked == (1, 2, 2)
    h, c = layer.permute_hidden((draw(1, 2, 2), draw(1, 2, 4)), torch.tensor([1, 0]))
    assert torch.equal(h, draw(1, 2, 2).flip(1))
    assert torch.equal(c, draw(1, 2, 4).flip(1))
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 2\), got \[1, 2, 4\]"):
        layer.check_hidden_size(c, layer.checked)


@pytest.mark.parametrize("layer", ["LSTM", "LSTMCell"])
def test_compiled_whole(layer):
    made = getattr(reimpl.nn, layer)(3, 4)
    x = draw(2, 3)
    expected = leaves(made(x))
    with torch._dynamo.config.patch(allow_rnn=True):
        outputs = leaves(torch.compile(made, fullgraph=True, backend="eager")(x))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "given", [(draw(6, 3),), (draw(3), (draw(4), draw(4))), (draw(6, 3), (draw(6, 4), draw(6, 4)))]
)
def test_cells_without_error(given):
    for bias in (True, False):
        assert "error" not in same((3, 4), given, CELLS, bias=bias)


PACKED = pack_padded_sequence(draw(5, 3, 3), [2, 5, 1], enforce_sorted=False)


@pytest.mark.parametrize("given", [(draw(5, 3, 3),), (draw(5, 3), states(4, None)), (PACKED, states(4, 3)), (PACKED,)])
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"bias": False}, {"proj_size": 2}, {"batch_first": True}])
def test_first_principles(given, options):
    if "proj_size" in options:
        given = given[:1]
    if "batch_first" in options and given[0] is not PACKED and given[0].dim() == 3:
        given = (given[0].transpose(0, 1),)
    layer, twin = twins(3, 4, 2, bidirectional=True, **options)
    layer.functional = reimpl.nn.functional
    seen = [observe(lambda: module, given, {}) for module in (layer, twin)]  # noqa: B023
    assert list(seen[0]) == list(seen[1])
    for name, value in seen[1].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(seen[0][name], value)
            assert seen[0][name].stride() == value.stride(), name


def test_first_principles_differentiated_twice():
    layer = reimpl.nn.LSTM(3, 4).double()
    twin = copy.deepcopy(layer)
    layer.functional = reimpl.nn.functional
    found = []
    for module in (layer, twin):
        x = draw(5, 2, 3).double().requires_grad_()
        (first,) = torch.autograd.grad(module(x)[0].pow(2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), [x, *module.parameters()]))
    torch.testing.assert_close(*found)


def test_a_packed_batch_is_each_sequence_alone():
    layer = reimpl.nn.LSTM(3, 4, bidirectional=True)
    layer.functional = reimpl.nn.functional
    output, (h_n, c_n) = layer(PACKED)
    padded, lengths = pad_packed_sequence(output)
    x = draw(5, 3, 3)
    for k, length in enumerate(lengths):
        alone, (h, c) = layer(x[:length, k])
        torch.testing.assert_close(padded[:length, k], alone)
        torch.testing.assert_close((h_n[:, k], c_n[:, k]), (h, c))
