"""The modules of batch normalisation: what PyTorch's table of modules does not reach."""

import copy
import io

import pytest
import torch
from torch.optim.swa_utils import update_bn

import reimpl.nn
import reimpl.nn.functional
from layers import assert_same, observe, pair

SHAPES = {"BatchNorm1d": (6, 3, 5), "BatchNorm2d": (4, 3, 2, 5), "BatchNorm3d": (3, 3, 2, 2, 4)}
WITH_BIAS = torch.__version__ >= "2.13"


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def repr_of_torch_before_bias(monkeypatch):
    """Torch 2.11 has no `bias`, and so none in its `repr`."""
    if not WITH_BIAS:
        cls = torch.nn.modules.batchnorm._NormBase
        shown = reimpl.nn.BatchNorm1d.extra_repr
        monkeypatch.setattr(cls, "extra_repr", shown)


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_option_gives_the_bits_of_torch(name, training, track, affine, momentum):
    x = randn(*SHAPES[name]).requires_grad_()
    options = {"eps": 1e-3, "momentum": momentum, "affine": affine, "track_running_stats": track}
    assert_same(*(observe(lambda: cls(3, **options), (x,), {}, training) for cls in pair(name)))  # noqa: B023


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("changed", [True, False])
def test_the_four_modes_over_several_batches(changed, momentum):
    """Train and evaluate, constructed with tracking or without, which is then set otherwise."""
    seen = []
    for cls in pair("BatchNorm1d"):
        layer = cls(3, momentum=momentum)
        outputs = [layer(randn(6, 3, seed=i)) for i in range(3)]
        layer.track_running_stats = not changed
        outputs += [layer(randn(6, 3, seed=i)) for i in range(3, 5)]
        layer.eval()
        outputs += [layer(randn(6, 3, seed=5)), layer(randn(1, 3, seed=6))]
        seen.append([*outputs, *layer.state_dict().values()])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*seen, strict=True))
    assert seen[0][-1] == (3 if changed else 5)


def test_without_statistics_evaluation_is_by_the_batch():
    layer = reimpl.nn.BatchNorm1d(3, track_running_stats=False).eval()
    assert layer(randn(50, 3) + 7).mean().abs() < 1e-6
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(randn(1, 3))


def test_tracking_that_is_turned_on_without_buffers():
    seen = []
    for cls in pair("BatchNorm1d"):
        layer = cls(3, track_running_stats=False, momentum=None)
        layer.track_running_stats = True
        seen.append([layer(randn(6, 3)), layer.eval()(randn(6, 3))])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*seen, strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_dimensions(name):
    for dims in range(1, 7):
        given = torch.zeros([2] * dims)
        assert_same(*(observe(lambda: cls(2), (given,), {}) for cls in pair(name)))  # noqa: B023


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("affine", "bias"), [(True, False), (False, True), (True, True)])
def test_bias(name, affine, bias):
    ours, theirs = pair(name)
    layer = ours(3, affine=affine, bias=bias)
    assert (layer.weight is not None, layer.bias is not None) == (affine, affine and bias)
    assert f"bias={affine and bias}" in repr(layer)
    with pytest.raises(TypeError):
        ours(3, 1e-5, 0.1, True, True, None, None, False)
    if WITH_BIAS:
        x = randn(*SHAPES[name]).requires_grad_()
        options = {"affine": affine, "bias": bias}
        assert_same(*(observe(lambda: cls(3, **options), (x,), {}) for cls in (ours, theirs)))  # noqa: B023


def test_a_batch_that_raises_is_not_counted():
    """Torch counts it: the one difference."""
    ours, theirs = (cls(3) for cls in pair("BatchNorm1d"))
    for layer in (ours, theirs):
        with pytest.raises(RuntimeError, match="running_mean should contain"):
            layer(randn(4, 2))
    assert (ours.num_batches_tracked, theirs.num_batches_tracked) == (0, 1)


@pytest.mark.parametrize("version", [None, 1, 2])
@pytest.mark.parametrize("track", [True, False])
def test_a_checkpoint_from_before_batches_were_counted(version, track):
    seen = []
    for cls in pair("BatchNorm2d"):
        source = cls(3)
        source(randn(2, 3, 4, 4))
        state = source.state_dict()
        del state["num_batches_tracked"]
        state._metadata[""]["version"] = version
        layer = cls(3, track_running_stats=track)
        if track:
            layer(randn(2, 3, 4, 4, seed=1))
        result = layer.load_state_dict(state, strict=False)
        seen.append((result.missing_keys, result.unexpected_keys, [v.tolist() for v in layer.state_dict().values()]))
    assert seen[0] == seen[1]
    assert ("num_batches_tracked" in seen[0][0]) == (version == 2 and track)


def test_a_checkpoint_onto_the_meta_device():
    with torch.device("meta"):
        layer = reimpl.nn.BatchNorm1d(3)
    state = {name: torch.ones(3) for name in ("weight", "bias", "running_mean", "running_var")}
    layer.load_state_dict(state, assign=True)
    assert layer.num_batches_tracked.device.type == "cpu"
    assert layer.num_batches_tracked == 0


def test_versions_are_torchs():
    ours, theirs = (cls(3).state_dict()._metadata for cls in pair("BatchNorm1d"))
    assert ours == theirs == {"": {"version": 2}}


def test_reset():
    layers = [cls(3) for cls in pair("BatchNorm1d")]
    for layer in layers:
        layer(randn(6, 3))
        with torch.no_grad():
            layer.weight.mul_(3)
            layer.bias.add_(1)
        layer.reset_running_stats()
    assert layers[0].weight.tolist() == [3, 3, 3]
    for layer in layers:
        layer.reset_parameters()
    for mine, theirs in zip(layers[0].state_dict().values(), layers[1].state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_update_bn():
    loader = [randn(8, 3, seed=i) + i for i in range(4)]
    models = [torch.nn.Sequential(torch.nn.Identity(), cls(3, momentum=0.3)) for cls in pair("BatchNorm1d")]
    for model in models:
        update_bn(loader, model)
    ours, theirs = (model[1].state_dict().values() for model in models)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert models[0][1].momentum == 0.3


def test_convert_sync_batchnorm():
    layer = reimpl.nn.BatchNorm2d(3, eps=1e-4, momentum=None)
    layer(randn(2, 3, 4, 4))
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.Sequential(layer.eval()))
    assert type(model[0]) is torch.nn.SyncBatchNorm
    assert model[0].weight is layer.weight
    assert (model[0].eps, model[0].momentum, model[0].training) == (1e-4, None, False)
    assert torch.equal(model(randn(2, 3, 4, 4)), layer(randn(2, 3, 4, 4)))


@pytest.mark.parametrize("frozen", ["parameters", "no_grad"])
def test_frozen_parameters_do_not_stop_the_statistics(frozen):
    layer = reimpl.nn.BatchNorm1d(1)
    x = torch.tensor([[2.0], [4.0]])
    if frozen == "parameters":
        layer.requires_grad_(False)(x)
    else:
        with torch.no_grad():
            layer(x)
    assert layer.running_mean.item() == pytest.approx(0.3)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_from_first_principles(name, dtype, training):
    x = randn(*SHAPES[name]).to(dtype).requires_grad_()
    results = []
    for functional in (reimpl.nn.functional, torch.nn.functional):
        layer = pair(name)[0](3, momentum=None, dtype=dtype).train(training)
        layer.functional = functional
        output = layer(x)
        grads = torch.autograd.grad(output, (x, layer.weight, layer.bias), randn(*x.shape, seed=1).to(dtype))
        results.append((output, *grads, *layer.buffers()))
    torch.testing.assert_close(*results)
    assert results[0][-1] == training


def test_copies_keep_their_functional_and_their_counts():
    layer = reimpl.nn.BatchNorm1d(3)
    layer.functional = reimpl.nn.functional
    layer(randn(6, 3))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert other.functional is reimpl.nn.functional
        other(randn(6, 3))
        assert (layer.num_batches_tracked, other.num_batches_tracked) == (1, 2)
