"""`swap` and `unswap`: the same objects, other classes."""

import copy

import pytest
import torch
from torch import nn

import reimpl
import reimpl.nn
import reimpl.nn.functional


class Scaled(nn.Linear):
    """A subclass of a torch layer."""


class Net(nn.Module):
    """Layers of every fate: swapped, shared, subclassed, unknown, ours already."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.flat = nn.Flatten()
        self.first = nn.Linear(16, 8)
        self.again = self.first
        self.scaled = Scaled(8, 8)
        self.unknown = nn.GELU()
        self.several = nn.ModuleList([nn.Tanh(), reimpl.nn.Sigmoid()])
        self.drop = nn.Dropout(0.5)
        self.rows = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 5)
        self.loss = nn.CrossEntropyLoss(weight=torch.tensor([0.3, 1.0, 2.0, 1.0, 0.7]))

    def forward(self, images, labels):
        x = self.unknown(self.scaled(self.first(self.flat(self.features(images)))))
        for layer in self.several:
            x = layer(x)
        output, _ = self.rows(self.drop(x).unsqueeze(1))
        return self.loss(self.head(output[:, -1]), labels)


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 3, 6, 6, generator=generator), torch.tensor([0, 1, 2, 3, 4, 1])


def step(model, seed=4):
    """Return loss, gradients and buffers of a pass."""
    torch.manual_seed(seed)
    model.zero_grad()
    images, labels = batch()
    loss = model(images.to(model.head.weight.dtype), labels)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters()), *(b.clone() for b in model.buffers())]


def test_report():
    report = reimpl.swap(Net())
    assert report.swapped["features.0"] == "torch.nn.Conv2d → reimpl.nn.Conv2d"
    assert set(report.swapped) == {
        *("features", "features.0", "features.1", "features.2", "features.3", "flat", "first"),
        *("several.0", "drop", "rows", "head", "loss"),
    }
    assert report.left == {
        "scaled": f"{__name__}.Scaled is a subclass of torch.nn.Linear",
        "unknown": "torch.nn.GELU is not in reimpl.nn",
    }
    assert str(report).startswith("swapped 12 layers, left 2\n  features: torch.nn.Sequential → reimpl.nn.Sequential")


def test_everything_but_the_class_stays():
    model = Net()
    model.features[1].eval()
    model.first.double()
    called = []
    model.head.register_forward_hook(lambda *_: called.append(1))
    model.head.extra = "kept"
    before = {name: (module, dict(module.__dict__)) for name, module in model.named_modules()}
    parameters = list(model.parameters())
    reimpl.swap(model)
    for name, module in model.named_modules():
        assert module is before[name][0]
        assert module.__dict__ == before[name][1]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert model.again is model.first
    assert not model.features[1].training
    assert model.first.weight.dtype == torch.float64
    assert type(model.head) is reimpl.nn.Linear
    model.head(torch.zeros(6))
    assert called == [1]


def test_swapped_model_computes_the_same_bits():
    theirs = Net()
    ours = copy.deepcopy(theirs)
    reimpl.swap(ours)
    for seed in range(2):
        assert all(torch.equal(a, b) for a, b in zip(step(ours, seed), step(theirs, seed), strict=True))


def test_first_principles():
    theirs = Net().double()
    ours = copy.deepcopy(theirs)
    reimpl.swap(ours, functional=reimpl.nn.functional)
    assert ours.several[1].functional is reimpl.nn.functional
    for mine, expected in zip(step(ours), step(theirs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)
    reimpl.swap(ours)
    assert ours.first.functional is torch.nn.functional
    assert "functional" not in ours.first.__dict__


def test_unswap():
    theirs = Net()
    ours = copy.deepcopy(theirs)
    reimpl.swap(ours, functional=reimpl.nn.functional)
    report = reimpl.unswap(ours)
    assert report.swapped["first"] == "reimpl.nn.Linear → torch.nn.Linear"
    assert report.left == {}
    for name, module in ours.named_modules():
        if name != "several.1":
            assert type(module) is type(theirs.get_submodule(name))
            assert set(module.__dict__) == set(theirs.get_submodule(name).__dict__)
    assert type(ours.several[1]) is nn.Sigmoid
    assert all(torch.equal(a, b) for a, b in zip(step(ours), step(theirs), strict=True))


def test_an_optimizer_goes_on():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reimpl.swap(model)
    before = model.head.weight.detach().clone()
    step(model)
    optimizer.step()
    assert not torch.equal(model.head.weight, before)


def test_a_single_layer_and_a_subclass_of_ours():
    layer = nn.Linear(3, 2)
    assert reimpl.swap(layer).swapped == {"": "torch.nn.Linear → reimpl.nn.Linear"}
    assert "(the model): torch.nn.Linear" in str(reimpl.swap(nn.Linear(3, 2)))

    class Mine(reimpl.nn.Linear):
        pass

    mine = Mine(3, 2)
    assert reimpl.swap(mine, functional=reimpl.nn.functional).swapped == {}
    assert reimpl.unswap(mine).left == {"": f"{Mine.__module__}.{Mine.__qualname__} is a subclass of reimpl.nn.Linear"}


def test_parametrized_layers_are_left_alone():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    report = reimpl.swap(model)
    assert "is a subclass of torch.nn.Linear" in report.left["0"]


@pytest.mark.parametrize("function", [reimpl.swap, reimpl.unswap])
def test_bad_argument(function):
    with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, but got type"):
        function(nn.Linear)


@pytest.mark.parametrize("name", ["ResNet", "BERT"])
def test_public_architecture(name):
    transformers = pytest.importorskip("transformers", reason="the architectures come from transformers")
    torch.manual_seed(0)
    if name == "ResNet":
        config = transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[2, 2, 1, 1], num_labels=10
        )
        model = transformers.ResNetForImageClassification(config)
        inputs = {"pixel_values": torch.randn(3, 3, 64, 64)}
    else:
        config = transformers.BertConfig(
            vocab_size=100,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            num_labels=10,
        )
        model = transformers.BertForSequenceClassification(config)
        inputs = {"input_ids": torch.randint(100, (3, 12))}
    inputs["labels"] = torch.tensor([1, 7, 3])
    swapped = copy.deepcopy(model)
    report = reimpl.swap(swapped)
    assert len(report.swapped) > 10
    outputs = []
    for network in (model, swapped):
        network.train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        torch.manual_seed(1)
        result = network(**inputs)
        result.loss.backward()
        optimizer.step()
        network.eval()
        outputs.append([result.loss, result.logits, network(**inputs).logits, *network.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
