"""The loop, differentiable and rows engines."""

import pytest
import torch

from reimpl.optim.engines import Batch, differentiable, loop, rows
from reimpl.optim.engines.differentiable import Value
from reimpl.optim.engines.rows import Rows


def momentum(param, grad, buffer, unused, *, lr, factor):
    buffer.mul_(factor).add_(grad)
    param.add_(buffer, alpha=-lr)
    assert unused is None


@pytest.mark.parametrize("maximize", [False, True])
def test_loop(maximize):
    params, grads = [torch.ones(2), torch.ones(3)], [torch.ones(2), 2 * torch.ones(3)]
    state = [torch.ones(2), torch.ones(3)]
    loop(momentum, Batch(params, grads, [state, None], {"lr": 0.5, "factor": 0.5}, maximize))
    sign = -1 if maximize else 1
    assert torch.equal(state[0], torch.full((2,), 0.5 + sign))
    assert torch.equal(params[1], 1 - 0.5 * torch.full((3,), 0.5 + 2 * sign))
    assert torch.equal(grads[1], torch.full((3,), 2.0))


def test_views_of_complex_tensors_share_memory():
    param = torch.ones(2, dtype=torch.complex64)
    batch = Batch([param], [param.clone()], [[param.clone()], None], {}, False).as_real()
    batch.params[0].zero_()
    assert not param.any()
    assert batch.grads[0].shape == batch.state[0][0].shape == (2, 2)
    assert batch.state[1] is None


def test_differentiable_records_the_step():
    lr = torch.tensor(0.5, requires_grad=True)
    param = torch.ones(2, requires_grad=True).clone()
    buffer, grad = torch.ones(2, requires_grad=True).clone(), torch.ones(2, requires_grad=True)
    batch = Batch([param], [grad], [[buffer], None], {"lr": lr, "factor": 0.5}, False)
    differentiable(momentum, batch)
    by_lr, by_grad = torch.autograd.grad(param.sum(), (lr, grad))
    assert by_lr == -3  # the buffer, 1.5, of two elements
    assert torch.equal(by_grad, torch.full((2,), -0.5))
    assert torch.equal(buffer, torch.full((2,), 1.5))


def test_value_never_writes():
    tensor = torch.ones(2)
    value = Value(tensor)
    assert value.add_(Value(torch.ones(2)), alpha=3) is value
    assert torch.equal(value.tensor, torch.full((2,), 4.0))
    assert torch.equal(tensor, torch.ones(2))
    assert value.sqrt() is not value
    other = torch.zeros(2)
    value.copy_(Value(other))
    other.fill_(7)
    assert not value.tensor.any()
    with pytest.raises(AttributeError):
        value.__array__()


def test_rows_touch_no_others():
    dense = torch.arange(6.0).reshape(3, 2)
    gradient = torch.sparse_coo_tensor([[2, 0]], torch.ones(2, 2), (3, 2), check_invariants=True).coalesce()
    touched = Rows(dense, gradient)
    assert torch.equal(touched.square(), torch.tensor([[0.0, 1.0], [16.0, 25.0]]))
    touched.add_(torch.ones(2, 2), alpha=10)
    assert torch.equal(dense, torch.tensor([[10.0, 11.0], [2.0, 3.0], [14.0, 15.0]]))
    touched.addcdiv_(torch.ones(2, 2), torch.full((2, 2), 2.0), value=2)
    touched.addcmul_(torch.ones(2, 2), torch.ones(2, 2))
    assert torch.equal(dense, torch.tensor([[12.0, 13.0], [2.0, 3.0], [16.0, 17.0]]))
    for unknown in ("mul_", "__array__"):
        with pytest.raises(AttributeError):
            getattr(touched, unknown)


def test_rows_sum_repeated_indices_before_the_rule():
    seen = []
    dense = torch.zeros(3, 2)
    gradient = torch.sparse_coo_tensor([[1, 1]], torch.ones(2, 2), (3, 2), check_invariants=True)
    rows(lambda param, grad: seen.append(grad), Batch([dense], [gradient], [], {}, False))
    assert torch.equal(seen[0], torch.full((1, 2), 2.0))
