"""Models of our layers as graphs: exported, for ONNX, traced, quantised; the same operations and bits as torch's."""

import io

import pytest
import torch
from torch import fx, nn

import reimpl
import reimpl.nn
import reimpl.nn.functional
from layers import LAYERS, WHOLE, leaves
from reimpl.verify.distance import same_bits
from reimpl.verify.layers import TABLES, Draw

COMPUTE = [name for name in LAYERS if name != "Sequential"]
pytestmark = [  # of torch's and ours alike: of an LSTM's list of weights; and of what torch.onnx itself calls
    pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),  # torch 2.11, as it loads
]
strictly = pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])


def images(count):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def network(ours, training=False, functional=nn.functional):
    """Return a small convolutional network, of our layers or of torch's."""
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 10), nn.LogSoftmax(1)),
    )
    if ours:
        reimpl.swap(model, functional=functional)
    return model.train(training)


def operations(program):
    """Return what an exported program calls, sorted: our batch normalisation counts a batch after, torch's before."""
    return sorted(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def assert_same_bits(first, second):
    assert len(leaves(first)) == len(leaves(second)) > 0
    assert all(map(same_bits, leaves(first), leaves(second)))


# torch.export.


@strictly
@pytest.mark.parametrize("name", COMPUTE)
def test_export_of_each_layer(name, strict):
    (options, given), *_ = TABLES[name][1]
    args = given.make(Draw(0))
    programs, outputs = [], []
    for package in (reimpl.nn, nn):
        torch.manual_seed(1)
        layer = getattr(package, name)(**options).double()
        programs.append(torch.export.export(layer, args, strict=strict))
        torch.manual_seed(2)
        outputs.append(programs[-1].module()(*args))
    ours, theirs = programs
    assert operations(ours) == operations(theirs)
    assert set(ours.state_dict) == set(theirs.state_dict)
    assert_same_bits(*outputs)


@strictly
@pytest.mark.parametrize("training", [False, True])
def test_export_with_any_number_of_samples(strict, training):
    shapes = ({0: torch.export.Dim("samples", min=2)},)
    programs = [
        torch.export.export(network(ours, training), (images(4),), dynamic_shapes=shapes, strict=strict)
        for ours in (True, False)
    ]
    assert operations(programs[0]) == operations(programs[1])
    file = io.BytesIO()
    torch.export.save(programs[0], file)
    file.seek(0)
    ours, theirs, loaded = (program.module() for program in (*programs, torch.export.load(file)))
    for count in (2, 4, 7):
        outputs = []
        for module in (ours, theirs, loaded):
            torch.manual_seed(count)
            outputs.append([module(images(count)), module.state_dict()])
        assert_same_bits(outputs[0], outputs[1])
        assert_same_bits(outputs[2], outputs[1])


@pytest.mark.parametrize(
    "strict", [False, pytest.param(True, marks=pytest.mark.skipif(not WHOLE, reason="torch 2.11"))]
)
def test_export_from_first_principles(strict):
    """The graph then holds the arithmetic, and no kernel that it explains."""
    program = torch.export.export(network(True, functional=reimpl.nn.functional), (images(4),), strict=strict)
    called = " ".join(operations(program))
    assert not any(kernel in called for kernel in ("conv2d", "batch_norm", "max_pool", "linear", "log_softmax"))
    torch.testing.assert_close(program.module()(images(4)), network(False)(images(4)))


# ONNX.


def onnx_of(model, **options):
    """Return the ONNX program without its comments, which say on which lines of source it stands."""
    found = torch.onnx.export(model, (images(4),), dynamo=True, verbose=False, **options).model_proto
    for part in (found, found.graph, *found.graph.node, *found.graph.value_info, *found.graph.input):
        del part.metadata_props[:]
    return found


@pytest.mark.parametrize("sizes", ["fixed", "any number of samples"])
def test_onnx(sizes):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    options = {} if sizes == "fixed" else {"dynamic_shapes": ({0: torch.export.Dim("samples", min=2)},)}
    ours, theirs = (onnx_of(network(ours), **options).SerializeToString() for ours in (True, False))
    assert ours == theirs
    count = 4 if sizes == "fixed" else 7
    (output,) = runtime.InferenceSession(ours).run(None, {"input": images(count).numpy()})
    torch.testing.assert_close(torch.from_numpy(output), network(True)(images(count)))


# Tracing, and what reads classes and source instead of operations.


def test_jit_trace():
    ours, theirs = (torch.jit.trace(network(ours), images(4)) for ours in (True, False))
    assert [node.kind() for node in ours.inlined_graph.nodes()] == [
        node.kind() for node in theirs.inlined_graph.nodes()
    ]
    assert_same_bits(ours(images(7)), theirs(images(7)))


@pytest.mark.parametrize("name", LAYERS)
def test_jit_script_is_refused(name):
    (options, _), *_ = TABLES.get(name, (None, [({}, None)]))[1]
    layer = getattr(reimpl.nn, name)(**options)
    with pytest.raises(
        RuntimeError, match=rf"TorchScript does not compile reimpl\.nn\.{name}: reimpl\.unswap\(model\)"
    ):
        torch.jit.script(nn.ModuleList([layer]))


def test_jit_script_after_unswap():
    model = network(True)
    with pytest.raises(RuntimeError, match="TorchScript does not compile"):
        torch.jit.script(model)
    reimpl.unswap(model)
    assert_same_bits(torch.jit.script(model)(images(7)), network(False)(images(7)))


class LayersAreLeaves(fx.Tracer):
    """Keeps our layers whole, as `fx.Tracer` does with what is defined in `torch.nn`."""

    def is_leaf_module(self, module, name):
        ours = isinstance(module, reimpl.nn.Layer) and not isinstance(module, nn.Sequential)
        return ours or super().is_leaf_module(module, name)


def test_fx():
    model = network(True)
    with pytest.raises(fx.proxy.TraceError, match="symbolically traced variables cannot be used as inputs"):
        fx.symbolic_trace(model)
    ours, theirs = LayersAreLeaves().trace(model), fx.symbolic_trace(network(False))
    # Their arguments' annotations differ: ours are not evaluated.
    calls = [[(node.op, node.target, str(node.args)) for node in graph.nodes] for graph in (ours, theirs.graph)]
    assert calls[0] == calls[1]
    assert_same_bits(fx.GraphModule(model, ours)(images(4)), theirs(images(4)))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*are deprecated:UserWarning")
def test_dynamic_quantization():
    """It looks classes up in a table: it leaves ours as they are, and finds torch's after `unswap`."""

    def quantized(model):
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

    model = network(True)
    assert_same_bits(quantized(model)(images(4)), model(images(4)))
    reimpl.unswap(model)
    found, expected = quantized(model), quantized(network(False))
    assert type(found[6]) is type(expected[6]) is torch.ao.nn.quantized.dynamic.Linear
    assert_same_bits(found(images(4)), expected(images(4)))


def test_another_operation_is_noticed():
    model = network(True)
    model[2] = reimpl.nn.Tanh()
    programs = [torch.export.export(each, (images(4),)) for each in (model, network(False))]
    assert operations(programs[0]) != operations(programs[1])
