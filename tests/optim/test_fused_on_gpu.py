"""The kernel for GPUs: its text run block by block on the CPU, and the real one where there is a GPU."""

import ctypes

import pytest
import torch

import reimpl.optim
from reimpl.optim.engines import kernel
from reimpl.optim.engines.kernel import BLOCK_ELEMENTS, Spec, compile_for_gpu, make_kernel, shared_library

PLAYED = """
#define __global__
#define __device__
struct Index {{ int x; }};
static thread_local Index blockIdx, threadIdx, blockDim;
{source}
extern "C" void play(int blocks, int threads, const int64_t* table)
{{
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) kernel(table);
}}
"""


def play(source, _name):
    """Compile the text for a GPU as C++, and return what `torch.cuda._compile_kernel` would."""
    source = source.replace(kernel.CUDA_PRELUDE, "")
    library = shared_library(kernel.CPU_PRELUDE + PLAYED.format(source=source))
    library.play.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]

    def launch(grid, block, args):
        library.play(grid[0], block[0], args[0].data_ptr())

    return launch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_every_element_is_updated_once(monkeypatch, dtype):
    monkeypatch.setattr(torch.cuda, "_compile_kernel", play)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    cpu = torch.device("cpu")
    sizes = (1, 0, BLOCK_ELEMENTS - 1, 5, 0, 2 * BLOCK_ELEMENTS + 3, 17)
    options = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": True, "first_step": False}
    constants = tuple((name, value) for name, value in options.items() if isinstance(value, bool))
    spec = Spec(
        reimpl.optim.SGD.rule, (dtype,) * 3, constants, maximize=True, scaled=True, device=torch.device("cuda", 0)
    )
    made = make_kernel(spec, options, grad_scale=4.0)
    expected_kernel = make_kernel(spec._replace(device=cpu), options, grad_scale=4.0)
    columns = [[torch.randn(size, dtype=dtype) for size in sizes] for _ in range(3)]
    expected = [[tensor.clone() for tensor in column] for column in columns]
    numbers = [value for value in options.values() if not isinstance(value, bool)] + [4.0]
    for tensors, launch in ((columns, made.launch), (expected, expected_kernel.launch)):
        ends = kernel.array("q", torch.tensor(sizes).cumsum(0).tolist())
        launch(ends, [[tensor.data_ptr() for tensor in column] for column in tensors], numbers, cpu)
    rounding = torch.finfo(dtype).eps
    for column, others in zip(columns, expected, strict=True):
        for tensor, other in zip(column, others, strict=True):
            torch.testing.assert_close(tensor, other, rtol=2 * rounding, atol=2 * rounding)


def test_torch_without_a_run_time_compiler(monkeypatch):
    monkeypatch.delattr(torch.cuda, "_compile_kernel")
    with pytest.raises(kernel.NoKernelError, match="has no run-time compiler for CUDA"):
        compile_for_gpu("", torch.device("cuda", 0))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_on_cuda(name, dtype):
    def run(**options):
        torch.manual_seed(0)
        params = [torch.randn(shape, dtype=dtype, device="cuda").requires_grad_() for shape in ((), (33,), (700, 300))]
        optimizer = getattr(reimpl.optim, name)(params, **options)
        for _ in range(5):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
        return params

    for param, expected in zip(run(fused=True), run(foreach=False), strict=True):
        torch.testing.assert_close(param, expected)
