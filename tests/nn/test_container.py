"""Sequential and Flatten: everything that can be done to a chain, done to torch's at the same time."""

import copy
import itertools
import operator
import pickle
from collections import OrderedDict

import numpy
import pytest
import torch

import reimpl.nn as ours
from layers import assert_same, observe

theirs = torch.nn
BOTH = [ours, theirs]


def chain(nn, *sizes):
    """Return linear layers from each size to the next; the same weights at each call."""
    torch.manual_seed(3)
    return nn.Sequential(*(nn.Linear(m, n) for m, n in itertools.pairwise(sizes)))


def named(nn):
    return nn.Sequential(OrderedDict(first=nn.Linear(2, 3), act=nn.ReLU(), last=nn.Linear(3, 2)))


def look(value):
    """Return what can be seen of a value: a container's names, layers and parameters."""
    if isinstance(value, torch.nn.Module):
        return repr(value), [name for name, _ in value.named_modules()], list(value.state_dict())
    return value


def do(action, nn):
    """Return what an action on a module's containers returns or raises."""
    try:
        return look(action(nn))
    except Exception as error:
        return type(error), str(error).replace("reimpl.nn.container", "torch.nn.modules.container")


def changed(make, change):
    """Return an action that changes a container and shows it."""

    def action(nn):
        container = make(nn)
        change(container, nn)
        return container

    return action


def three(nn):
    return chain(nn, 2, 3, 4, 5)


ACTIONS = {
    "empty": lambda nn: nn.Sequential(),
    "named": named,
    "a dict": lambda nn: nn.Sequential({"a": nn.ReLU()}),
    "no module": lambda nn: nn.Sequential(nn.ReLU(), 3),
    "none": lambda nn: nn.Sequential(None),
    "no name": lambda nn: nn.Sequential(OrderedDict({0: nn.ReLU()})),
    "a dotted name": lambda nn: nn.Sequential(OrderedDict({"a.b": nn.ReLU()})),
    "two dicts": lambda nn: nn.Sequential(OrderedDict(), OrderedDict()),
    "a list": lambda nn: nn.Sequential([nn.ReLU()]),
    "len": lambda nn: len(three(nn)),
    "iterate": lambda nn: [repr(layer) for layer in three(nn)],
    "in": lambda nn: (lambda c: (c[1] in c, nn.ReLU() in c))(three(nn)),
    "reversed": lambda nn: [repr(layer) for layer in reversed(three(nn))],
    **{f"get {i}": lambda nn, i=i: three(nn)[i] for i in (0, 2, -1, -3, 3, -4, numpy.int64(1), True, 1.0, "0", None)},
    "get tensor": lambda nn: three(nn)[torch.tensor(1)],
    **{
        f"get {s}": lambda nn, s=s: three(nn)[s]
        for s in (slice(1, None), slice(None, -1), slice(None, None, 2), slice(None, None, -1), slice(5, 9))
    },
    "get named slice": lambda nn: named(nn)[1:],
    "get by name": lambda nn: named(nn).act,
    "set": changed(three, lambda c, nn: operator.setitem(c, 1, nn.ReLU())),
    "set -1": changed(named, lambda c, nn: operator.setitem(c, -1, nn.ReLU())),
    "set out of range": changed(three, lambda c, nn: operator.setitem(c, 3, nn.ReLU())),
    "set no module": changed(three, lambda c, nn: operator.setitem(c, 0, 3)),
    "set none": changed(three, lambda c, nn: operator.setitem(c, 0, None)),
    "set slice": changed(three, lambda c, nn: operator.setitem(c, slice(0, 1), nn.ReLU())),
    "del": changed(three, lambda c, nn: operator.delitem(c, 0)),
    "del -1": changed(three, lambda c, nn: operator.delitem(c, -1)),
    "del named": changed(named, lambda c, nn: operator.delitem(c, 0)),
    "del slice": changed(three, lambda c, nn: operator.delitem(c, slice(0, 3, 2))),
    "del all": changed(three, lambda c, nn: operator.delitem(c, slice(None))),
    "del out of range": changed(three, lambda c, nn: operator.delitem(c, 3)),
    "append": changed(three, lambda c, nn: c.append(nn.ReLU()).append(nn.Tanh())),
    "append named": changed(named, lambda c, nn: c.append(nn.ReLU())),
    "append no module": changed(three, lambda c, nn: c.append(3)),
    "extend": changed(three, lambda c, nn: c.extend(three(nn)).extend([nn.ReLU()])),
    "extend generator": changed(three, lambda c, nn: c.extend(nn.ReLU() for _ in range(2))),
    "extend no iterable": changed(three, lambda c, nn: c.extend(nn.ReLU())),
    **{f"insert {i}": changed(three, lambda c, nn, i=i: c.insert(i, nn.ReLU())) for i in (0, 1, 3, -1, -3, 4, -4, "0")},
    "insert into nothing": lambda nn: nn.Sequential().insert(0, nn.ReLU()),
    "insert -0 into nothing": lambda nn: nn.Sequential().insert(-1, nn.ReLU()),
    "insert named": changed(named, lambda c, nn: c.insert(1, nn.Tanh())),
    "insert no module": changed(three, lambda c, nn: c.insert(0, 3)),
    "pop": lambda nn: three(nn).pop(1),
    "pop leaves": changed(three, lambda c, nn: c.pop(-1)),
    "pop slice": lambda nn: three(nn).pop(slice(1, None)),
    "pop slice leaves": changed(three, lambda c, nn: c.pop(slice(1, None))),
    "pop out of range": lambda nn: three(nn).pop(7),
    "+": lambda nn: three(nn) + named(nn),
    "+ list": lambda nn: three(nn) + [nn.ReLU()],  # noqa: RUF005
    "+= list": lambda nn: operator.iadd(three(nn), [nn.ReLU()]),
    "+=": lambda nn: operator.iadd(three(nn), three(nn)),
    "+= itself": lambda nn: (lambda c: operator.iadd(c, c) if nn is ours else operator.iadd(c, nn.Sequential(*c)))(
        three(nn)
    ),
    **{f"* {n!r}": lambda nn, n=n: three(nn) * n for n in (1, 3, 0, -1, 2.0, "2", True)},
    **{f"{n!r} *": lambda nn, n=n: n * three(nn) for n in (2, 0, 2.0)},
    **{f"*= {n!r}": lambda nn, n=n: operator.imul(three(nn), n) for n in (1, 3, 0, -1, 2.0)},
    "dir": lambda nn: [name for name in dir(three(nn)) if name.isdigit()],
    "dir named": lambda nn: "act" in dir(named(nn)),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_every_action_shows_what_torchs_shows(action):
    mine, expected = (do(action, nn) for nn in BOTH)
    assert mine == expected


def test_what_changes_in_place_returns_the_container():
    container = three(ours)
    for same in (
        container.append(ours.ReLU()),
        container.insert(0, ours.ReLU()),
        container.extend([ours.ReLU()]),
        operator.iadd(container, three(ours)),
        operator.imul(container, 2),
    ):
        assert same is container


def test_sums_and_products_share_their_layers():
    container = three(ours)
    for other in (container + container, container * 2, 2 * container):
        assert type(other) is ours.Sequential
        assert other[0] is other[3] is container[0]
        assert len(list(other.parameters())) == len(list(container.parameters()))
    assert container[1:][0] is container[1]


def test_torchs_containers_are_taken_too():
    mixed = three(ours) + three(theirs)
    assert type(mixed) is ours.Sequential
    assert type(three(theirs) + three(ours)) is theirs.Sequential
    assert len(operator.iadd(mixed, three(theirs))) == 9


def test_a_subclass_slices_to_itself_and_adds_to_a_chain():
    class Mine(ours.Sequential):
        pass

    container = Mine(ours.ReLU(), ours.Tanh())
    assert type(container[:1]) is Mine
    assert type(container + container) is ours.Sequential


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_bits(dtype):
    def make(nn):
        return nn.Sequential(
            nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 4), nn.LogSoftmax(1)
        ).to(dtype)

    x = torch.randn(5, 12, dtype=dtype, requires_grad=True)
    for training in (True, False):
        assert_same(*(observe(lambda: make(nn), (x,), {}, training) for nn in BOTH))  # noqa: B023


def test_checkpoints_are_torchs():
    first, second = named(ours), named(theirs)
    second.load_state_dict(first.state_dict())
    first.load_state_dict(second.state_dict())
    x = torch.randn(3, 2)
    assert torch.equal(first(x), second(x))


def test_copies():
    container = named(ours)
    x = torch.randn(3, 2)
    for other in (copy.deepcopy(container), pickle.loads(pickle.dumps(container))):
        assert torch.equal(other(x), container(x))
        assert look(other) == look(container)


def test_repeating_named_layers():
    container = named(ours)
    container *= 2
    assert list(container._modules) == ["first", "act", "last", "3", "4", "5"]


def test_an_empty_chain_is_the_identity():
    x = torch.ones(2)
    assert ours.Sequential()(x) is x


def test_anything_may_pass_along_the_chain():
    class Split(torch.nn.Module):
        def forward(self, x):
            return x, -x

    class Join(torch.nn.Module):
        def forward(self, pair):
            return pair[0] + pair[1]

    assert torch.equal(ours.Sequential(Split(), Join())(torch.ones(2)), torch.zeros(2))


def test_compiles_and_maps():
    container = three(ours)
    x = torch.randn(4, 2)
    compiled = torch.compile(container, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), container(x))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.func.vmap(container)(x), container(x))


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((), (2, 3, 4)),
        ((), (2, 3)),
        ((), (3,)),
        ((), ()),
        ((0,), ()),
        ((0,), (2, 3, 4)),
        ((1, 2), (2, 3, 4, 5)),
        ((-2, -1), (2, 3, 4)),
        ((2, 1), (2, 3, 4)),
        ((0, 5), (2, 3)),
        ((), (0, 3, 4)),
    ],
)
def test_flatten(arguments, shape):
    x = torch.randn(shape, requires_grad=True)
    assert_same(*(observe(lambda: nn.Flatten(*arguments), (x,), {}) for nn in BOTH))  # noqa: B023


def test_flatten_copies_only_what_does_not_lie_in_order():
    x = torch.randn(2, 3, 4)
    assert ours.Flatten()(x).data_ptr() == x.data_ptr()
    turned = x.transpose(1, 2)
    assert ours.Flatten()(turned).data_ptr() != x.data_ptr()
    assert torch.equal(ours.Flatten()(turned), torch.nn.Flatten()(turned))


def test_global_pooling():
    layer = ours.Sequential(ours.AdaptiveMaxPool2d((1, 1)), ours.Flatten())
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(layer(x), x.amax((2, 3)))
