"""Message passing: compiled against reference, its derivatives, and the GPU's kernels run on the CPU."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils import cpp_extension
from torch.utils.flop_counter import FlopCounterMode

from dyn_d2.ops import message_passing as op

compiled = pytest.mark.skipif(not op.load(), reason="no compiled kernel on this machine")
# (N, C, H, W), kernel channels, window, steps
CASES = [
    ((2, 3, 5, 7), 3, 3, None),
    ((2, 3, 7, 4), 1, 5, 3),
    ((3, 2, 14, 14), 2, 3, None),
    ((2, 2, 33, 9), 2, 3, 40),
    ((2, 4, 2, 3), 1, 7, 5),  # window larger than the map
    ((1, 2, 3, 1), 2, 3, 2),
    ((1, 1, 1, 1), 1, 3, 4),
    ((1, 2, 4, 4), 2, 1, 3),
    ((1, 2, 4, 4), 2, 3, 0),
    ((1, 1, 60, 70), 1, 3, None),  # states of several segments
]


def inputs(shape, kernel_channels, window, dtype=torch.float32):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    weights = torch.rand(shape[0], kernel_channels, window**2, *shape[2:], dtype=dtype)
    return x.requires_grad_(), weights.requires_grad_()


def with_gradients(function, x, weights, *arguments):
    out = function(x, weights, *arguments)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out, *torch.autograd.grad(out, (x, weights), grad, materialize_grads=True)


def assert_equal(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("normalize", op.NORMALIZATIONS)
def test_reference_follows_the_equation(normalize):
    (height, width), window, eps = (3, 4), 3, 0.1
    x, weights = (tensor.detach() for tensor in inputs((1, 1, height, width), 1, window))
    got = op.message_passing_reference(x, weights, 1, normalize, eps)[0, 0]
    degree = weights[0, 0].sum(0) + eps
    for u, v in itertools.product(range(height), range(width)):
        expected = 0.0
        for p, q in itertools.product(range(u - 1, u + 2), range(v - 1, v + 2)):
            if 0 <= p < height and 0 <= q < width:
                weight = weights[0, 0, (p - u + 1) * window + q - v + 1, u, v]
                divisor = {"random_walk": degree[u, v], "symmetric": (degree[u, v] * degree[p, q]).sqrt(), "none": 1}
                expected += weight / divisor[normalize] * x[0, 0, p, q]
        assert abs(got[u, v] - expected) < 1e-6


def test_reference_is_the_loop_of_unfold_multiply_sum():
    x, weights = inputs((2, 3, 6, 5), 3, 3)
    expected, kernels = x, weights / (weights.sum(2, keepdim=True) + 1e-5)
    for _ in range(6):
        expected = (F.unfold(expected, 3, padding=1).view(2, 3, 9, 6, 5) * kernels).sum(2)
    torch.testing.assert_close(op.message_passing_reference(x, weights), expected)


@compiled
@pytest.mark.parametrize("normalize", op.NORMALIZATIONS)
@pytest.mark.parametrize(("shape", "kernel_channels", "window", "steps"), CASES)
def test_equals_reference(shape, kernel_channels, window, steps, normalize):
    x, weights = inputs(shape, kernel_channels, window)
    if normalize == "none":
        weights = (weights / window**2).detach().requires_grad_()
    arguments = (x, weights, steps, normalize)
    assert_equal(
        with_gradients(op.message_passing, *arguments), with_gradients(op.message_passing_reference, *arguments)
    )


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (2, 0, 5, 5), (2, 3, 0, 5), (2, 3, 5, 0)])
@pytest.mark.parametrize("function", [op.message_passing, op.message_passing_reference])
def test_nothing_goes_forward_and_back(function, shape):
    x, weights = inputs(shape, shape[1], 3)
    out, grad_x, grad_weights = with_gradients(function, x, weights)
    assert out.shape == grad_x.shape == x.shape and grad_weights.shape == weights.shape


@compiled
def test_no_channels_share_weights_that_get_no_gradient():
    x, weights = inputs((2, 0, 4, 4), 1, 3)
    assert not with_gradients(op.message_passing, x, weights)[2].any()


@compiled
def test_memory_layout_does_not_matter():
    x = torch.randn(2, 6, 5, 10).to(memory_format=torch.channels_last)[:, ::2, :, ::2].requires_grad_()
    weights = torch.rand(2, 5, 5, 9, 1).permute(0, 4, 3, 1, 2).expand(-1, 3, -1, -1, -1).requires_grad_()
    assert not x.is_contiguous() and not weights.is_contiguous()
    got = with_gradients(op.message_passing, x, weights)
    expected = with_gradients(op.message_passing_reference, x, weights)
    assert_equal(got, expected)
    assert_equal([op.message_passing(x, weights)], [op.message_passing(x.contiguous(), weights.contiguous())], 0)
    out = op.message_passing(x, weights)
    assert_equal(torch.autograd.grad(out.sum(), (x, weights)), torch.autograd.grad(
        op.message_passing_reference(x, weights).sum(), (x, weights)))  # fmt: skip


@compiled
@pytest.mark.parametrize("normalize", op.NORMALIZATIONS)
@pytest.mark.parametrize(("kernel_channels", "window"), [(2, 3), (1, 3), (1, 5)])
def test_gradcheck(kernel_channels, window, normalize):
    x, weights = inputs((2, 2, 3, 4), kernel_channels, window, torch.float64)
    assert torch.autograd.gradcheck(lambda *tensors: op.message_passing(*tensors, 5, normalize), (x, weights))


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", ["random_walk", "symmetric"])
def test_half_precision_is_rounded_once(dtype, normalize):
    x, weights = inputs((2, 3, 14, 14), 3, 3, dtype)
    got = with_gradients(op.message_passing, x, weights, None, normalize)
    assert {tensor.dtype for tensor in got} == {dtype}
    wide = (x.detach().float().requires_grad_(), weights.detach().float().requires_grad_())
    expected = with_gradients(op.message_passing_reference, *wide, None, normalize)
    # One rounding to nearest in the output and the gradient of x; the gradient that comes in is rounded as well.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got[0].float(), expected[0], atol=1e-5, rtol=eps)
    for a, b in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(a.float(), b, atol=4 * eps, rtol=4 * eps)


@compiled
def test_autocast_and_unequal_dtypes():
    x, weights = inputs((2, 3, 6, 6), 3, 3)
    convolution = torch.nn.Conv2d(3, 3, 1)
    with torch.autocast("cpu", torch.bfloat16):
        y = convolution(x)
        assert y.dtype == torch.bfloat16
        assert op.message_passing(y, weights.bfloat16()).dtype == torch.bfloat16
        out = op.message_passing(y, weights)
    assert out.dtype == torch.float32
    assert_equal([out], [op.message_passing_reference(y.float(), weights)])
    out.sum().backward()
    assert weights.grad.dtype == torch.float32 and convolution.weight.grad.isfinite().all()


@compiled
@pytest.mark.parametrize("normalize", op.NORMALIZATIONS)
def test_under_compile(normalize):
    def function(x, weights):
        return op.message_passing(x * 2, weights.sigmoid(), None, normalize).relu()

    program = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((2, 3, 6, 5), (3, 3, 6, 5), (2, 3, 7, 9)):
        x, weights = inputs(shape, 3, 3)
        assert_equal(with_gradients(program, x, weights), with_gradients(function, x, weights))


@compiled
@pytest.mark.parametrize("kernel_channels", [1, 3])
def test_registration(kernel_channels):
    x, weights = inputs((2, 3, 6, 5), kernel_channels, 3)
    torch.library.opcheck(torch.ops.dyn_d2.message_passing.default, (x, weights, 4, True, 1e-5))
    grad = torch.randn(x.shape)
    torch.library.opcheck(
        torch.ops.dyn_d2.message_passing_backward.default, (grad, x.detach(), weights.detach(), 4, True, 1e-5)
    )


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_numbers(threads):
    before, (x, weights) = torch.get_num_threads(), inputs((3, 4, 9, 9), 4, 3)
    expected = with_gradients(op.message_passing, x, weights)
    torch.set_num_threads(threads)
    try:
        assert_equal(with_gradients(op.message_passing, x, weights), expected, 0)
    finally:
        torch.set_num_threads(before)


@compiled
def test_only_the_inputs_are_kept_for_the_backward_pass():
    x, weights = inputs((2, 3, 8, 8), 3, 3)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        op.message_passing(x, weights)
    assert {tensor.data_ptr() for tensor in kept} == {x.data_ptr(), weights.data_ptr()}


@compiled
def test_second_derivatives_are_refused():
    x, weights = inputs((1, 1, 3, 3), 1, 3)
    (grad,) = torch.autograd.grad(op.message_passing(x, weights).square().sum(), weights, create_graph=True)
    with pytest.raises(NotImplementedError, match="message_passing_reference"):
        grad.sum().backward()


@compiled
def test_costs_are_counted():
    x, weights = inputs((2, 3, 5, 7), 1, 3)
    with FlopCounterMode(display=False) as counter:
        op.message_passing(x, weights, 4).sum().backward()
    assert counter.get_total_flops() == (1 + 3) * 2 * x.numel() * 9 * 4


@compiled
def test_a_frozen_input_gets_no_gradient():
    x, weights = inputs((2, 3, 5, 5), 3, 3)
    (expected,) = torch.autograd.grad(op.message_passing_reference(x, weights).square().sum(), weights)
    (got,) = torch.autograd.grad(op.message_passing(x.detach(), weights).square().sum(), weights)
    assert_equal([got], [expected])


def test_without_a_compiler_the_reference_runs(monkeypatch):
    monkeypatch.setattr(op, "load", lambda device="cpu": False)
    x, weights = inputs((2, 3, 5, 7), 3, 3)
    assert_equal(
        with_gradients(op.message_passing, x, weights), with_gradients(op.message_passing_reference, x, weights)
    )


X, WEIGHTS = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 9, 4, 5)


@pytest.mark.parametrize("function", [op.message_passing, op.message_passing_reference])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, torch.zeros(2, 3, 16, 4, 5)), "odd window"),
        ((X, torch.zeros(2, 3, 15, 4, 5)), "odd window"),
        ((X, torch.zeros(2, 3, 0, 4, 5)), "odd window"),
        ((X, torch.zeros(2, 2, 9, 4, 5)), r"have to be \(2, 3 or 1, 9, 4, 5\)"),
        ((X, torch.zeros(1, 3, 9, 4, 5)), "do not fit"),
        ((X, torch.zeros(2, 3, 9, 5, 4)), "do not fit"),
        ((X[0], WEIGHTS), "takes x"),
        ((X, WEIGHTS[:, 0]), "takes x"),
        ((X.long(), WEIGHTS), "floating point"),
        ((X, WEIGHTS.to("meta")), "one device"),
        ((X, WEIGHTS, -1), "steps"),
        ((X, WEIGHTS, 2, "rows"), "random_walk"),
        ((X, WEIGHTS, 2, "none", -1.0), "eps"),
    ],
)
def test_wrong_arguments_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@compiled
def test_wrong_arguments_of_the_operator_itself_are_refused():
    with pytest.raises(RuntimeError, match="do not fit"):
        torch.ops.dyn_d2.message_passing(X, WEIGHTS[:, :2], 3, True, 1e-5)
    with pytest.raises(RuntimeError, match="gradient"):
        torch.ops.dyn_d2.message_passing_backward(X[:1], X, WEIGHTS, 3, True, 1e-5)


@pytest.fixture(scope="module")
def cuda_on_cpu(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    library = tmp_path_factory.mktemp("cuda") / "cuda_on_cpu.so"
    source = Path(__file__).with_name("cuda_on_cpu.cpp")
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-unknown-pragmas"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).run_kernel
    function.restype = ctypes.c_bool
    function.argtypes = [ctypes.c_bool, *[ctypes.c_int] * 9, ctypes.c_bool, ctypes.c_double, *[ctypes.c_void_p] * 5]
    return function


@pytest.mark.parametrize(
    ("shape", "kernel_channels", "window", "steps", "segment", "pixels", "threads"),
    [
        ((2, 2, 5, 4), 2, 3, 5, 5, 1, 20),
        ((1, 3, 5, 7), 1, 3, 7, 3, 1, 64),
        ((2, 1, 7, 5), 1, 3, 4, 2, 2, 32),
        ((1, 2, 1, 1), 2, 3, 3, 1, 1, 3),
        ((1, 2, 4, 5), 1, 3, 5, 2, 0, 8),
        ((1, 2, 5, 3), 2, 5, 5, 3, 0, 32),
        ((1, 1, 3, 4), 1, 3, 0, 1, 1, 32),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_gpu_kernels_thread_by_thread(cuda_on_cpu, shape, kernel_channels, window, steps, segment, pixels, threads,
                                      normalize):  # fmt: skip
    x, weights = inputs(shape, kernel_channels, window)
    expected = with_gradients(
        op.message_passing_reference, x, weights, steps, "random_walk" if normalize else "none", 1e-5
    )
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    got = [torch.full_like(tensor, torch.nan) for tensor in (x, x, weights)]
    tensors = [tensor.data_ptr() for tensor in (grad, x, weights)]
    sizes = (*shape[2:], window, shape[1] // kernel_channels, steps, segment, normalize, 1e-5)
    blocks = shape[0] * shape[1], shape[0] * kernel_channels
    assert cuda_on_cpu(False, pixels, threads, blocks[0], *sizes, *tensors, got[0].data_ptr(), None)
    assert cuda_on_cpu(True, pixels, threads, blocks[1], *sizes, *tensors, *(t.data_ptr() for t in got[1:]))
    scale = max(tensor.abs().max().item() for tensor in expected)
    assert_equal([tensor / scale for tensor in got], [tensor / scale for tensor in expected])


@pytest.mark.slow
def test_cuda_source_compiles_without_a_gpu(tmp_path):
    if shutil.which("nvcc") is None or torch.version.cuda is None:
        pytest.skip("needs nvcc, and a torch with CUDA's headers")
    target = tmp_path / "kernels.o"
    includes = [f"-I{folder}" for folder in cpp_extension.include_paths("cuda")]
    # Code for both is made of one intermediate code, which takes half of the time.
    architectures = "-gencode=arch=compute_80,code=[sm_80,sm_90]"
    command = ["nvcc", "-c", "-std=c++20", "-O0", "-Xcompiler=-fPIC", architectures, *includes]
    run = subprocess.run([*command, str(op._CUDA_SOURCES[0]), "-o", str(target)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert target.stat().st_size > 0


@compiled
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize(("shape", "kernel_channels", "window", "steps"), [*CASES, ((3, 2, 28, 28), 2, 3, None)])
def test_gpu_equals_reference(shape, kernel_channels, window, steps):
    assert op.load("cuda"), "the CUDA source did not compile"
    x, weights = (tensor.detach().cuda().requires_grad_() for tensor in inputs(shape, kernel_channels, window))
    got = with_gradients(op.message_passing, x, weights, steps)
    assert_equal(got, with_gradients(op.message_passing_reference, x, weights, steps))
