"""The LSTM from first principles: both forms of the call, every option, and derivatives of both orders."""

import functools
import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence

from layers import WHOLE, upstream
from reimpl.nn.functional import lstm, lstm_cell
from reimpl.verify.distance import relative_error

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")

LENGTHS = [4, 3, 1]


def draw(*shape, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(sum(shape))
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def problem(
    layers=1,
    bidirectional=False,
    proj=0,
    bias=True,
    form="padded",
    dropout=0.0,
    dtype=torch.float64,
    scale=1.0,
    **sizes,
):
    """Return a call that takes a function and tensors, and the tensors: input, states and parameters."""
    time, batch, inputs, hidden = (sizes.get(name, size) for name, size in zip("TNIH", (4, 3, 3, 4), strict=True))
    torch.manual_seed(0)
    module = torch.nn.LSTM(inputs, hidden, layers, bias=bias, bidirectional=bidirectional, proj_size=proj, dtype=dtype)
    params = [(scale * weight).detach().requires_grad_() for weight in module._flat_weights]
    states = layers * (2 if bidirectional else 1)
    hx = [draw(states, batch, proj or hidden, dtype=dtype), draw(states, batch, hidden, dtype=dtype)]
    settings = (bias, layers, dropout, True, bidirectional)
    if form == "packed":
        x = pack_padded_sequence(draw(time, batch, inputs), LENGTHS)
        first = x.data.detach().to(dtype).requires_grad_()

        def call(function, x_, h, c, *params):
            return function(x_, x.batch_sizes, (h, c), params, *settings)
    else:
        batch_first = form == "batch first"
        first = draw(*((batch, time) if batch_first else (time, batch)), inputs, dtype=dtype)

        def call(function, x, h, c, *params):
            return function(x, (h, c), params, *settings, batch_first)

    return call, [first, *hx, *params]


def passes(function, call, tensors):
    """Return outputs and gradients."""
    torch.manual_seed(3)
    outputs = call(function, *tensors)
    grads = torch.autograd.grad(outputs, tensors, [upstream(y) for y in outputs])
    return [*(y.detach() for y in outputs), *grads]


OPTIONS = [
    {"layers": layers, "bidirectional": bidirectional, "proj": proj, "bias": bias, "form": form}
    for layers, bidirectional, proj, bias, form in itertools.product(
        (1, 2), (False, True), (0, 2), (True, False), ("padded", "batch first", "packed")
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(options):
    call, tensors = problem(**options, dropout=0.5 if options["layers"] > 1 else 0)
    ours, theirs = (passes(function, call, tensors) for function in (lstm, torch.lstm))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("options", OPTIONS[::5], ids=str)
def test_derivatives_of_first_and_second_order(options):
    call, tensors = problem(**options)
    function = functools.partial(call, lstm)
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True, gen_non_contig_grad_outputs=True)


@pytest.mark.parametrize("used", range(3))
def test_derivatives_of_one_output_alone(used):
    call, tensors = problem(form="packed", bidirectional=True)
    tensors[0].requires_grad_(False)
    needed = tensors[1:]

    def function(*needed):
        return call(lstm, tensors[0], *needed)[used]

    assert gradcheck(function, needed, fast_mode=True)
    assert gradgradcheck(function, needed, fast_mode=True)


def test_derivatives_when_one_input_is_made_of_another():
    # h_0 is a function of x: its gradient must not be counted in x's own.
    call, (x, h, c, *params) = problem()

    def function(x):
        return call(lstm, x, h * x.sum(), c * x.mean(), *params)

    assert gradcheck(function, (x,), fast_mode=True)
    assert gradgradcheck(function, (x,), fast_mode=True)


@pytest.mark.parametrize("only", range(7))
def test_only_what_is_needed(only):
    call, tensors = problem()
    whole = passes(lstm, call, tensors)[3:]
    for k, tensor in enumerate(tensors):
        tensor.requires_grad_(k == only)
    torch.manual_seed(3)
    outputs = call(lstm, *tensors)
    (grad,) = torch.autograd.grad(outputs, tensors[only], [upstream(y) for y in outputs])
    torch.testing.assert_close(grad, whole[only])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"T": 40, "N": 8, "I": 16, "H": 32},
        {"T": 20, "N": 8, "I": 16, "H": 32, "layers": 2, "bidirectional": True},
        {"T": 40, "N": 8, "I": 16, "H": 32, "proj": 8},
        {"T": 40, "N": 8, "I": 16, "H": 32, "scale": 10.0},
        {"T": 40, "N": 8, "I": 16, "H": 32, "scale": 1e-3},
        {"form": "packed", "I": 16, "H": 32},
    ],
    ids=str,
)
def test_as_exact_as_torch(options, dtype):
    call, tensors = problem(**options, dtype=dtype)
    truth = passes(torch.lstm, call, [x.detach().double().requires_grad_() for x in tensors])
    ours, theirs = (passes(function, call, tensors) for function in (lstm, torch.lstm))
    floor = torch.finfo(dtype).eps / 2
    for mine, other, oracle in zip(ours, theirs, truth, strict=True):
        assert mine.dtype == dtype
        error, allowed = relative_error(mine, oracle), 4 * max(relative_error(other, oracle), floor)
        assert error <= allowed


def test_saturated_gates():
    call, tensors = problem(dtype=torch.float32)
    tensors[0] = (1e4 * tensors[0]).detach().requires_grad_()
    for mine, other in zip(passes(lstm, call, tensors), passes(torch.lstm, call, tensors), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, other)


def test_nan_stays_in_its_sample():
    call, (x, *rest) = problem()
    x = x.detach().clone()
    x[1, 0, 0] = float("nan")
    output = call(lstm, x, *rest)[0]
    assert output[1:, 0].isnan().all()
    assert output[0].isfinite().all()
    assert output[:, 1:].isfinite().all()


def test_no_samples():
    call, tensors = problem(N=0)
    output, h_n, c_n = call(lstm, *tensors)
    assert [output.shape, h_n.shape, c_n.shape] == [(4, 0, 4), (1, 0, 4), (1, 0, 4)]
    grads = torch.autograd.grad(output.sum(), tensors)
    assert all(not grad.count_nonzero() for grad in grads)


def test_outputs_may_be_changed_in_place():
    call, (x, h, c, *params) = problem()
    for output in (*call(lstm, x, h, c, *params), *lstm_cell(x[0], (h[0], c[0]), *params)):
        expected = torch.autograd.grad(2 * output.sum(), x, retain_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(output.mul_(2).sum(), x, retain_graph=True)[0], expected)


def test_by_name():
    _, (x, h, c, *params) = problem()
    rest = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": True, "bidirectional": False}
    output = lstm(input=x, hx=(h, c), params=params, **rest, batch_first=False)[0]
    data, sizes = x.flatten(0, 1), torch.tensor([3] * 4)
    packed = lstm(data=data, batch_sizes=sizes, hx=(h, c), params=params, **rest)[0]
    assert torch.equal(packed, output.flatten(0, 1))
    assert torch.equal(lstm(data, sizes, (h, c), params, *rest.values())[0], packed)


def test_biases_have_gradients_of_their_own():
    _, (x, h, c, *params) = problem()
    torch.stack(lstm_cell(x[0], (h[0], c[0]), *params)).sum().backward()
    ih, hh = params[2].grad, params[3].grad
    assert torch.equal(ih, hh)
    ih.zero_()
    assert hh.count_nonzero()


@pytest.mark.parametrize("bias", [True, False])
def test_the_cell(bias):
    _, (x, h, c, *params) = problem(bias=bias)
    tensors = [t.detach().requires_grad_() for t in (x[0], h[0], c[0], *params)]

    def call(function, x, h, c, *params):
        return function(x, (h, c), *params)

    for mine, other in zip(passes(lstm_cell, call, tensors), passes(torch.lstm_cell, call, tensors), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-13)
    assert gradcheck(functools.partial(call, lstm_cell), tensors, fast_mode=True)
    assert gradgradcheck(functools.partial(call, lstm_cell), tensors, fast_mode=True)


def test_function_transforms_and_batched_gradients():
    call, (x, *rest) = problem(layers=2)

    def loss(x):
        return call(lstm, x, *rest)[0].pow(2).sum()

    (grad,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(x), grad)
    output = call(lstm, x, *rest)[0]
    upstreams = draw(5, *output.shape)
    (batched,) = torch.autograd.grad(output, x, upstreams, is_grads_batched=True, retain_graph=True)
    for mine, grad in zip(batched, upstreams, strict=True):
        torch.testing.assert_close(mine, torch.autograd.grad(output, x, grad, retain_graph=True)[0])


@pytest.mark.parametrize("options", [{"bidirectional": True, "T": 2}, {"proj": 2, "T": 2}], ids=str)
def test_compiles_whole(options):
    call, tensors = problem(**options)
    compiled = torch.compile(functools.partial(call, lstm), fullgraph=WHOLE, backend="aot_eager")
    torch.testing.assert_close(
        passes(lambda *args: args, lambda _, *x: compiled(*x), tensors), passes(lstm, call, tensors)
    )
    torch._dynamo.reset()


def test_errors():
    _, (x, h, c, *params) = problem()
    settings = (True, 1, 0.0, True, False)

    def refused(match, x=x, hx=(h, c), params=params, settings=(*settings, False)):
        with pytest.raises(RuntimeError, match=match):
            lstm(x, hx, params, *settings)

    refused("^lstm expects two hidden states$", hx=(h,))
    refused("^Expected sequence length to be larger than 0 in RNN$", x=x[:0])
    refused("^got an incorrect number of RNN parameters$", params=params[:3])
    refused("^got an incorrect number of RNN parameters$", hx=(h, c[..., :3]))
    refused("^Expected more hidden states in stacked_rnn$", settings=(True, 2, 0.0, True, False, False))
    refused("^Expected more weights in stacked_rnn$", params=[*params, *params])
    refused(r"^Expected hidden\[0\] size \(1, 3, 4\), got \[1, 2, 4\]$", hx=(h[:, :2], c[:, :2]))
    refused("shapes cannot be multiplied", x=x[..., :2])
    refused("must have the same dtype", x=x.float())
    refused("must have the same dtype", hx=(h.bfloat16(), c.bfloat16()), x=x.float())
    with pytest.raises(RuntimeError, match="batch_sizes should never grow"):
        lstm(x[0], torch.tensor([1, 2]), (h[:, :1], c[:, :1]), params, *settings)
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        lstm(x.flatten(0, 1), torch.tensor([3, 2]), (h, c), params, *settings)
    with pytest.raises(RuntimeError, match=r"^lstm_cell expects two hidden states$"):
        lstm_cell(x[0], (h[0],), *params)


def test_dropout_draws_torchs_mask():
    for form in ("padded", "batch first", "packed"):
        call, tensors = problem(layers=3, dropout=0.5, bidirectional=True, form=form, dtype=torch.float32)
        ours, theirs = (passes(function, call, tensors) for function in (lstm, torch.lstm))
        torch.testing.assert_close(ours[0], theirs[0])
        # A mask of zeros alone: what goes up is nothing, and the first layer's own states are whole.
        call, tensors = problem(layers=2, dropout=1.0, form=form)
        torch.testing.assert_close(passes(lstm, call, tensors)[:3], passes(torch.lstm, call, tensors)[:3])
