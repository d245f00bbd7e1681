"""What holds of every layer: torch's signature, none of torch's code, and all that a module can be put through."""

import copy
import inspect
import io
import pickle
import types

import pytest
import torch

import reimpl.nn
import reimpl.nn.functional
from layers import LAYERS, assert_same, fresh, leaves, observe, pair

SHAPES = {1: (2, 4, 9), 2: (2, 4, 9, 8), 3: (2, 4, 6, 5, 7)}
SCORES = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
ARGUMENTS = {
    "Linear": (7, 5),
    **{f"Conv{n}d": (4, 6, 3) for n in SHAPES},
    **{f"{kind}Pool{n}d": (2,) for kind in ("Max", "Avg") for n in SHAPES},
    **{f"Adaptive{kind}Pool{n}d": (3,) for kind in ("Max", "Avg") for n in SHAPES},
    **{f"BatchNorm{n}d": (4,) for n in SHAPES},
    "Softmax": (1,),
    "LogSoftmax": (1,),
    "LSTM": (7, 5),
    "LSTMCell": (7, 5),
}
INPUTS = {
    **{f"{kind}{n}d": SHAPES[n] for n in SHAPES for kind in ("Conv", "MaxPool", "AvgPool", "BatchNorm")},
    **{f"Adaptive{kind}Pool{n}d": SHAPES[n] for kind in ("Max", "Avg") for n in SHAPES},
    "LSTM": (3, 2, 7),
}
HAS_STATE = ("Linear", "Conv1d", "Conv2d", "Conv3d", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "LSTM", "LSTMCell")
COMPUTE = [name for name in LAYERS if name not in ("Sequential", "Flatten")]
RANDOM = ("Dropout",)


def given(name):
    """Return the arguments of a layer's `forward`."""
    if name.endswith("Loss"):
        return (SCORES.clone().log_softmax(1).requires_grad_(), torch.tensor([0, 4, 2, 2, 1, 3]))
    generator = torch.Generator().manual_seed(2)
    return (torch.randn(INPUTS.get(name, (6, 7)), generator=generator).requires_grad_(),)


def make(name):
    """Return our layer, the same at each call."""
    torch.manual_seed(7)
    return pair(name)[0](*ARGUMENTS.get(name, ()))


def parameters_of(cls):
    return [
        (parameter.name, parameter.default, parameter.kind)
        for parameter in inspect.signature(cls.__init__).parameters.values()
    ]


@pytest.mark.parametrize("name", LAYERS)
def test_signature_is_torchs(name):
    ours, theirs = pair(name)
    expected = parameters_of(theirs)
    if name == "LSTM":  # torch's is (*args, **kwargs), passed on to a base class that wants the kind of network first
        expected = [parameter for parameter in parameters_of(torch.nn.RNNBase) if parameter[0] != "mode"]
    if torch.__version__ < "2.13" and name.startswith("BatchNorm"):
        expected.append(("bias", True, inspect.Parameter.KEYWORD_ONLY))
    assert parameters_of(ours) == expected
    forward = [inspect.signature(cls.forward).parameters for cls in (ours, theirs)]
    assert [(p.name, p.default) for p in forward[0].values()] == [(p.name, p.default) for p in forward[1].values()]


@pytest.mark.parametrize("name", LAYERS)
def test_no_line_of_torchs_class_runs(name):
    ours, theirs = pair(name)
    assert issubclass(ours, theirs)
    own = [cls for cls in theirs.__mro__ if cls not in torch.nn.Module.__mro__]
    assert theirs in own
    for cls in own:
        for key, value in vars(cls).items():
            if isinstance(value, (types.FunctionType, classmethod, staticmethod, property)):
                found = inspect.getattr_static(ours, key)
                function = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
                assert function.__module__.startswith("reimpl."), f"{name}.{key} is torch's"


@pytest.mark.parametrize("name", LAYERS)
def test_every_class_is_documented(name):
    text = vars(pair(name)[0])["__doc__"]
    for part in ("Differs from torch:", "Source:"):
        assert part in text


@pytest.mark.parametrize("name", reimpl.nn.functional.__all__)
def test_every_function_is_documented(name):
    text = getattr(reimpl.nn.functional, name).__doc__
    for part in ("Args:", "Returns:", "Differs from torch:", "Source:"):
        assert part in text


@pytest.mark.parametrize("name", COMPUTE)
def test_both_agree(name):
    ours, theirs = pair(name)
    arguments = ARGUMENTS.get(name, ())
    seen = [observe(lambda: cls(*arguments), given(name), {}) for cls in (ours, theirs)]  # noqa: B023
    if torch.__version__ < "2.13" and name.startswith("BatchNorm"):
        for one in seen:
            one.pop("repr")  # its `bias` is newer
    assert_same(*seen)


@pytest.mark.parametrize("functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "principles"])
@pytest.mark.parametrize("copy_of", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("name", COMPUTE)
def test_copies(name, copy_of, functional):
    layer = make(name)
    layer.functional = functional
    if copy_of == "deepcopy":
        other = copy.deepcopy(layer)
    elif copy_of == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert other.functional is functional
    for first, second in zip(layer.parameters(), other.parameters(), strict=True):
        assert first is not second
    outputs = []
    for module in (layer, other):
        torch.manual_seed(4)
        outputs.append(leaves(module(*given(name))))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


@pytest.mark.parametrize("name", HAS_STATE)
def test_checkpoints_are_torchs(name):
    ours, theirs = (cls(*ARGUMENTS[name]) for cls in pair(name))
    for target, source in ((ours, theirs), (theirs, ours)):
        for value in source.state_dict().values():
            value.copy_(torch.full_like(value, 3))
        assert target.load_state_dict(source.state_dict()).missing_keys == []
        assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), source.state_dict().values()))  # noqa: B905
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata


@pytest.mark.parametrize("name", COMPUTE)
def test_compiles_whole(name):
    if name == "LSTM":
        pytest.skip("torch.compile leaves torch's own LSTM to the interpreter, too")
    layer = make(name)
    expected = leaves(copy.deepcopy(layer)(*given(name)))
    if name in RANDOM:
        layer.eval()
        expected = leaves(layer(*given(name)))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    outputs = leaves(compiled(*given(name)))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", HAS_STATE)
def test_functional_call(name):
    layer = make(name)
    other = {key: value.detach() + 1 for key, value in layer.named_parameters()}
    outputs = leaves(torch.func.functional_call(layer, other, given(name)))
    twin = pair(name)[1](*ARGUMENTS[name])
    expected = leaves(torch.func.functional_call(twin, other, given(name)))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("name", COMPUTE)
def test_vmap_where_torch_has_it(name):
    args = fresh(given(name))
    stacked = tuple(torch.stack([arg.detach()] * 3) for arg in args)
    results = []
    for cls in pair(name):
        torch.manual_seed(7)
        layer = cls(*ARGUMENTS.get(name, ())).eval()
        try:
            results.append(leaves(torch.func.vmap(layer)(*stacked)))
        except Exception as error:
            results.append(str(error))
    if isinstance(results[1], str):
        assert isinstance(results[0], str)
    else:
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", COMPUTE)
def test_hooks_are_called(name):
    layer = make(name)
    called = []
    layer.register_forward_pre_hook(lambda *_: called.append("before"))
    layer.register_forward_hook(lambda *_: called.append("after"))
    layer.register_full_backward_hook(lambda *_: called.append("back"))
    output = leaves(layer(*given(name)))[0]
    output.sum().backward()
    assert called == ["before", "after", "back"]


@pytest.mark.parametrize("name", HAS_STATE)
def test_meta_device(name):
    ours, theirs = pair(name)
    layer = ours(*ARGUMENTS[name], device="meta")
    args = [arg.detach().to("meta") for arg in given(name)]
    twin = theirs(*ARGUMENTS[name], device="meta")
    for mine, other in zip(leaves(layer(*args)), leaves(twin(*args)), strict=True):
        assert (mine.device, mine.shape, mine.dtype) == (other.device, other.shape, other.dtype)
    layer = layer.to_empty(device="cpu")
    if hasattr(layer, "reset_parameters"):
        torch.manual_seed(3)
        layer.reset_parameters()
        torch.manual_seed(3)
        twin = theirs(*ARGUMENTS[name])
        for key, value in twin.named_parameters():
            assert torch.equal(layer.get_parameter(key), value)


@pytest.mark.parametrize("functional", [torch.nn.functional, reimpl.nn.functional], ids=["kernels", "principles"])
@pytest.mark.parametrize("name", COMPUTE)
def test_autocast(name, functional):
    layer, twin = make(name).eval(), copy.deepcopy(make(name)).eval()
    layer.functional = functional
    torch.manual_seed(7)
    twin = pair(name)[1](*ARGUMENTS.get(name, ())).eval()
    seen = []
    for module in (layer, twin):
        args = given(name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = leaves(module(*args))[0]
        output.float().sum().backward()
        seen.append((output, args[0].grad, *(param.grad for param in module.parameters())))
    for mine, theirs in zip(*seen, strict=True):
        assert mine.dtype == theirs.dtype
        if functional is torch.nn.functional:
            assert torch.equal(mine, theirs)
        else:
            torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)


OUTPUT_IS_KEPT = ("Sigmoid", "ReLU", "Tanh", "Softmax", "LogSoftmax")


@pytest.mark.parametrize("batched", [True, False], ids=["batch", "unbatched"])
@pytest.mark.parametrize("name", COMPUTE)
def test_output_may_be_changed_in_place_where_torchs_may(name, batched):
    layer = make(name)
    layer.functional = reimpl.nn.functional
    args = given(name)
    if not batched and name.startswith(("Conv", "MaxPool", "AvgPool", "Adaptive", "Linear", "LSTM")):
        args = (args[0][:, 0] if name == "LSTM" else args[0][0],)
    output = leaves(layer(*args))[0]
    torch.nn.functional.relu_(output)
    if name in OUTPUT_IS_KEPT:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
    else:
        output.sum().backward()


def test_channels_last_is_kept():
    layer = make("Conv2d").to(memory_format=torch.channels_last)
    output = layer(torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_what_is_not_ours_is_torchs():
    assert reimpl.nn.Embedding is torch.nn.Embedding
    assert reimpl.nn.functional.gelu is torch.nn.functional.gelu
    for module in (reimpl.nn, reimpl.nn.functional):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'Lineer'"):
            module.Lineer  # noqa: B018
    assert set(LAYERS) <= set(reimpl.nn.__all__)


def test_any_object_with_functions_will_do():
    layer = make("ReLU")
    layer.functional = types.SimpleNamespace(relu=lambda x, inplace: x + 1)
    assert torch.equal(copy.deepcopy(layer)(torch.zeros(2)), torch.ones(2))
