"""A traced rule as a kernel: C around it, a compiler, and what it made kept in memory and on disk.

One call updates any number of tensors. Their elements are numbered through, and each thread (on a GPU: each block)
walks over an equal share of the numbers, wherever in a tensor it begins or ends. So a thousand small tensors cost what
one large one does, and nothing is copied.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from reimpl.optim.engines.symbolic import Coefficients, Trace, trace_rule, variable

GRAIN = 1 << 15
"""Elements that a thread should have: torch's own measure for processors."""
BLOCK, BLOCK_ELEMENTS = 512, 1 << 14
"""Threads of a block on a GPU, and the elements it walks over."""

STORED = {torch.float64: "double", torch.float32: "float", torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""C types of the dtypes that a kernel can read and write."""

Launch: TypeAlias = Callable[["array[int]", Sequence[Sequence[int]], Sequence[float], torch.device], None]
"""`launch(ends, addresses, scalars, device)`: where each parameter ends if they lay one behind the other, the addresses
of parameters, of gradients and of each state, and the coefficients."""


class Kernel(NamedTuple):
    """A compiled rule.

    Attributes:
        trace: what the rule did; its assumptions say for which coefficients the kernel is right.
        source: the C that was compiled.
        launch: runs it.
    """

    trace: Trace
    source: str
    launch: Launch

    def suits(self, numbers: Coefficients) -> bool:
        """Return whether the rule would do the same with these coefficients."""
        return all(ask(numbers) == answer for ask, answer in self.trace.assumptions)


class Spec(NamedTuple):
    """What a kernel is made for.

    Attributes:
        rule: the rule.
        dtypes: of parameter, gradient and each state tensor, None for state that is not kept.
        constants: the coefficients that are not numbers, by name.
        maximize: whether the gradient is negated.
        scaled: whether the gradient is divided by a scale first.
        device: the type of the device, and for CUDA its index.
    """

    rule: Callable[..., None]
    dtypes: tuple[torch.dtype | None, ...]
    constants: tuple[tuple[str, Any], ...]
    maximize: bool
    scaled: bool
    device: torch.device


class NoKernelError(RuntimeError):
    """Raised when no kernel can be made, with the cause."""


KERNELS: dict[Spec, list[Kernel | str]] = {}
"""The kernels of this process, or why there is none, so that it is not tried in every step."""
LOCK = threading.RLock()


def renew_lock() -> None:
    """Give a forked process a lock of its own: of another thread's, which is not there, it would wait for ever."""
    global LOCK
    LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=renew_lock)


def find_kernel(spec: Spec, coefficients: dict[str, Any], grad_scale: float | None) -> Kernel:
    """Return the kernel for a specification and coefficients, compiled if it is the first time.

    Raises:
        NoKernelError: if it cannot be made: the rule is not elementwise, or there is no compiler.
    """
    numbers = variable(coefficients, grad_scale)
    for known in KERNELS.get(spec, ()):
        if isinstance(known, str):
            raise NoKernelError(known)
        if known.suits(numbers):
            return known
    with LOCK:  # of several threads, one compiles
        made = KERNELS.setdefault(spec, [])
        if not any(isinstance(known, str) or known.suits(numbers) for known in made):
            try:
                made.append(make_kernel(spec, coefficients, grad_scale))
            except NoKernelError as error:
                made.append(str(error))
            except Exception as error:
                made.append(f"{type(error).__name__}: {error}")
    return find_kernel(spec, coefficients, grad_scale)


def make_kernel(spec: Spec, coefficients: dict[str, Any], grad_scale: float | None = None) -> Kernel:
    """Trace a rule and compile it.

    Raises:
        NotElementwiseError: if the rule cannot be traced.
        NoKernelError: if it cannot be compiled.
    """
    unknown = [str(dtype) for dtype in spec.dtypes if dtype is not None and dtype not in STORED]
    if unknown:
        raise NoKernelError(f"there are no kernels for {unknown[0]}")
    names = argument_names(spec.rule, len(spec.dtypes))
    kept = [name if dtype is not None else None for name, dtype in zip(names, spec.dtypes, strict=True)]
    trace, written = trace_rule(spec.rule, kept, coefficients, spec.maximize, grad_scale)
    columns = {name: STORED[dtype] for name, dtype in zip(names, spec.dtypes, strict=True) if dtype is not None}
    if spec.device.type == "cpu":
        source = CPU.format(prelude=CPU_PRELUDE, **parts(trace, columns, written))
        return Kernel(trace, source, compile_for_processor(source))
    if spec.device.type == "cuda":
        source = CUDA.format(prelude=CUDA_PRELUDE, **parts(trace, columns, written))
        return Kernel(trace, source, compile_for_gpu(source, spec.device))
    raise NoKernelError(f"there are no kernels for {spec.device.type} devices")


def argument_names(rule: Callable[..., None], count: int) -> list[str]:
    """Return the names of the first arguments of a rule, by which the source calls them too."""
    code = getattr(rule, "__code__", None)
    names = list(code.co_varnames[: code.co_argcount]) if code else []
    return [f"{names[i]}_" if i < len(names) else f"tensor{i}_" for i in range(count)]


def parts(trace: Trace, columns: dict[str, str], written: dict[str, str]) -> dict[str, str]:
    """Return the pieces of C that depend on the rule."""
    real = "double" if "double" in columns.values() else "float"
    pointers = [
        f"{stored}* const {name}at = reinterpret_cast<{stored}*>(addresses[{index} * count + tensor]);"
        for index, (name, stored) in enumerate(columns.items())
    ]
    body = [
        *(f"const real {name} = load({name}at[i]);" for name in columns),
        *trace.statements,
        *(f"store({name}at[i], {value});" for name, value in written.items()),
    ]
    return {
        "real": real,
        "columns": str(len(columns)),
        "constants": "\n    ".join(f"const real {name} = real({text});" for text, name in trace.constants.items()),
        "pointers": "\n        ".join(pointers),
        "body": "\n            ".join(body),
    }


CPU_PRELUDE = """\
#include <cmath>
#include <cstdint>
#include <cstring>

using namespace std;

typedef _Float16 float16;

struct bfloat16 { uint16_t bits; };

static inline double load(double x) { return x; }
static inline float load(float x) { return x; }
static inline float load(float16 x) { return float(x); }
static inline float load(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float result;
    memcpy(&result, &bits, sizeof result);
    return result;
}
static inline void store(double& to, double x) { to = x; }
static inline void store(float& to, float x) { to = x; }
static inline void store(float& to, double x) { to = float(x); }
static inline void store(float16& to, float x) { to = float16(x); }
static inline void store(bfloat16& to, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    to.bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
static inline void store(float16& to, double x) { store(to, float(x)); }
static inline void store(bfloat16& to, double x) { store(to, float(x)); }
"""

CPU = """\
{prelude}
typedef {real} real;

extern "C" void kernel(int64_t count, const int64_t* ends, const int64_t* addresses, const double* scalars, int threads)
{{
    {constants}
    const int64_t total = ends[count - 1];
    #pragma omp parallel for num_threads(threads) schedule(static, 1) if(threads > 1)
    for (int part = 0; part < threads; part++) {{
        const int64_t first = total / threads * part, last = part + 1 < threads ? first + total / threads : total;
        int64_t tensor = 0;
        while (ends[tensor] <= first && tensor + 1 < count) tensor++;
        for (int64_t begin; tensor < count && (begin = tensor ? ends[tensor - 1] : 0) < last; tensor++) {{
        const int64_t from = first > begin ? first - begin : 0;
        const int64_t to = (last < ends[tensor] ? last : ends[tensor]) - begin;
        {pointers}
        #pragma omp simd
        for (int64_t i = from; i < to; i++) {{
            {body}
        }}
        }}
    }}
}}
"""

CUDA_PRELUDE = """\
typedef long long int64_t;

#define NAN __int_as_float(0x7fffffff)
#define INFINITY __int_as_float(0x7f800000)

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

__device__ inline double load(double x) { return x; }
__device__ inline float load(float x) { return x; }
__device__ inline float load(float16 x) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
}
__device__ inline float load(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline void store(double& to, double x) { to = x; }
__device__ inline void store(float& to, double x) { to = float(x); }
__device__ inline void store(float& to, float x) { to = x; }
__device__ inline void store(float16& to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ inline void store(bfloat16& to, float x) {
    const unsigned bits = __float_as_uint(x);
    to.bits = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
__device__ inline void store(float16& to, double x) { store(to, float(x)); }
__device__ inline void store(bfloat16& to, double x) { store(to, float(x)); }
"""

CUDA = """\
{prelude}
typedef {real} real;
#define COLUMNS {columns}

extern "C" __global__ void kernel(const int64_t* table)
{{
    // The table holds: how many tensors, elements of a block, where each tensor ends, addresses, scalars.
    const int64_t count = table[0], share = table[1];
    const int64_t* ends = table + 2;
    const int64_t* addresses = ends + count;
    const double* scalars = reinterpret_cast<const double*>(addresses + COLUMNS * count);
    {constants}
    const int64_t total = ends[count - 1], first = share * blockIdx.x;
    const int64_t last = first + share < total ? first + share : total;
    int64_t tensor = 0, high = count - 1;
    while (tensor < high) {{
        const int64_t middle = (tensor + high) / 2;
        if (ends[middle] <= first) tensor = middle + 1; else high = middle;
    }}
    for (int64_t begin; tensor < count && (begin = tensor ? ends[tensor - 1] : 0) < last; tensor++) {{
        const int64_t from = first > begin ? first - begin : 0;
        const int64_t to = (last < ends[tensor] ? last : ends[tensor]) - begin;
        {pointers}
        #pragma unroll 4
        for (int64_t i = from + threadIdx.x; i < to; i += blockDim.x) {{
            {body}
        }}
    }}
}}
"""


def compile_for_processor(source: str) -> Launch:
    """Return a function that runs the kernel on this processor, from the disk if it was compiled before.

    Raises:
        NoKernelError: if there is no compiler, or it fails.
    """
    library = shared_library(source)
    kernel = library.kernel
    kernel.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    kernel.restype = None

    def launch(ends: array[int], columns: Sequence[Sequence[int]], scalars: Sequence[float], _: torch.device) -> None:
        addresses = array("q")
        for column in columns:
            addresses.extend(column)
        numbers = array("d", scalars)
        threads = max(1, min(torch.get_num_threads(), ends[-1] // GRAIN))
        kernel(len(ends), *(data.buffer_info()[0] for data in (ends, addresses, numbers)), threads)

    return launch


def shared_library(source: str) -> ctypes.CDLL:
    """Compile C++ unless the disk has it, and load it.

    Raises:
        NoKernelError: if there is no compiler, or it fails, or there is no room for what it makes.
    """
    compiler = os.environ.get("CXX") or "g++"
    command = [*compiler.split(), *FLAGS, *instructions()]
    name = hashlib.sha256("\n".join([*command, platform.machine(), source]).encode()).hexdigest()[:24]
    file = cache_folder() / f"{name}.so"
    try:
        if not file.exists():
            run_compiler(command, source, file)
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NoKernelError(f"{type(error).__name__}: {error}") from error


def run_compiler(command: list[str], source: str, file: Path) -> None:
    """Compile C++ into a shared library.

    Raises:
        NoKernelError: if there is no compiler, or it fails.
        OSError: if it cannot be started, or leaves nothing behind.
    """
    if shutil.which(command[0]) is None:
        raise NoKernelError(f"there is no C++ compiler {command[0]!r}; the environment variable CXX can name another")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made, text = Path(folder, file.name), Path(folder, "kernel.cpp")
        text.write_text(source, encoding="utf-8")
        run = subprocess.run([*command, str(text), "-o", str(made)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise NoKernelError(f"{command[0]} failed: {first_error(run.stderr)}")
        os.replace(made, file)  # at once, for whoever compiles the same


FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-strict-aliasing",
    "-ffp-contract=off",  # else what is left over behind the last full vector is rounded otherwise, wherever that is
    "-fno-tree-pre",  # it makes branches of selections, and then nothing is vectorised
)
INSTRUCTIONS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
}
"""What the processor can do, by torch's name for it."""


def instructions() -> list[str]:
    """Return the compiler's flags for the instructions that torch's own kernels use here."""
    return INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), [])


def first_error(output: str) -> str:
    """Return the line of a compiler's output that names the fault."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "it says nothing")


def cache_folder() -> Path:
    """Return our folder where torch keeps what it compiled."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not folder:
        user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
        folder = str(Path(tempfile.gettempdir(), f"torchinductor_{user}"))
    return Path(folder, "reimpl")


def compile_for_gpu(source: str, device: torch.device) -> Launch:
    """Return a function that runs the kernel on a CUDA device.

    Raises:
        NoKernelError: if torch brings no run-time compiler, or it fails.
    """
    if not hasattr(torch.cuda, "_compile_kernel"):
        raise NoKernelError(f"torch {torch.__version__} has no run-time compiler for CUDA")
    with torch.cuda.device(device):
        kernel: Callable[..., None] = torch.cuda._compile_kernel(source, "kernel")

    def launch(
        ends: array[int], columns: Sequence[Sequence[int]], scalars: Sequence[float], device: torch.device
    ) -> None:
        table = array("q", [len(ends), BLOCK_ELEMENTS])
        for part in (ends, *columns):
            table.extend(part)
        table.frombytes(array("d", scalars).tobytes())
        blocks = -(-ends[-1] // BLOCK_ELEMENTS)
        if blocks:
            on_device = torch.frombuffer(table, dtype=torch.int64).pin_memory().to(device, non_blocking=True)
            with torch.cuda.device(device):
                kernel(grid=(blocks, 1, 1), block=(BLOCK, 1, 1), args=[on_device])

    return launch
