// The operator on the GPU: which kernel, how many threads, how much shared memory.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "message_passing.h"
#include "message_passing_kernels.cuh"

namespace message_passing {
namespace {

using at::Tensor;
constexpr int64_t USUAL_BYTES = 48 * 1024;  // of shared memory, which a kernel has without asking for more

// States of the backward kernel, in the fewest planes: about sqrt(T) segments of as many steps.
TileShape tile_shape(const Sizes& sizes) {
  const int64_t most = std::numeric_limits<int>::max();
  TORCH_CHECK(sizes.instances * sizes.channels <= most && sizes.taps * sizes.pixels() <= most && sizes.steps <= most,
              "message_passing: too large for the GPU.");
  TileShape shape = {static_cast<int>(sizes.height), static_cast<int>(sizes.width), static_cast<int>(sizes.window()),
                     static_cast<int>(sizes.channels_per_kernel()), static_cast<int>(sizes.steps)};
  shape.segment = 1;
  while (static_cast<int64_t>(shape.segment) * shape.segment < shape.steps) ++shape.segment;
  shape.segments = (shape.steps + shape.segment - 1) / shape.segment;
  shape.normalize = sizes.normalize, shape.eps = sizes.eps;
  return shape;
}

bool in_registers(const TileShape& shape) { return shape.window == 3 && shape.pixels() <= 2 * MAX_THREADS; }

int threads(const TileShape& shape) {
  if (!in_registers(shape)) return shape.pixels() < 256 ? (shape.pixels() + 31) / 32 * 32 : 256;
  const int pixels_per_thread = shape.pixels() <= MAX_THREADS ? 1 : 2;
  return ((shape.pixels() + pixels_per_thread - 1) / pixels_per_thread + 31) / 32 * 32;
}

// ``planes`` planes, and ``copies`` numbers for each tap of each pixel unless they are in registers.
int64_t bytes(const TileShape& shape, int planes, int copies, int64_t number) {
  const int64_t kernels = in_registers(shape) ? 0 : static_cast<int64_t>(copies) * shape.taps() * shape.pixels();
  return number * (static_cast<int64_t>(planes) * shape.plane() + kernels);
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int64_t blocks, int64_t memory, const TileShape& shape, Arguments... arguments) {
  if (memory > USUAL_BYTES) {
    int device = 0, most = 0;
    C10_CUDA_CHECK(cudaGetDevice(&device));
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    TORCH_CHECK(memory <= most, "message_passing: maps of ", shape.height, " x ", shape.width, " with ", shape.taps(),
                " taps need ", memory, " bytes of shared memory, this GPU has ", most, ".");
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(memory)));
  }
  kernel<<<static_cast<unsigned>(blocks), threads(shape), memory, c10::cuda::getCurrentCUDAStream()>>>(shape,
                                                                                                     arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor forward(const Tensor& x, const Tensor& weights, int64_t steps, bool normalize, double eps) {
  const Sizes sizes = check(x, weights, steps, normalize, eps);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor x_ = x.contiguous(), weights_ = weights.contiguous();
  Tensor out = at::empty_like(x_);
  if (x.numel() == 0) return out;
  const TileShape shape = tile_shape(sizes);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "message_passing", [&] {
    using S = scalar_t;
    using A = at::opmath_type<scalar_t>;
    const auto kernel = !in_registers(shape)               ? forward_kernel<S, A, 0, 0>
                        : shape.pixels() <= MAX_THREADS ? forward_kernel<S, A, 9, 1>
                                                        : forward_kernel<S, A, 9, 2>;
    launch(kernel, sizes.instances * sizes.channels, bytes(shape, 2, 1, sizeof(A)), shape, x_.const_data_ptr<S>(),
           weights_.const_data_ptr<S>(), out.mutable_data_ptr<S>());
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& weights, int64_t steps,
                                    bool normalize, double eps) {
  const Sizes sizes = check(x, weights, steps, normalize, eps);
  check_grad(grad, x);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor grad_ = grad.contiguous(), x_ = x.contiguous(), weights_ = weights.contiguous();
  Tensor grad_x = at::empty_like(x_);
  if (x.numel() == 0) return {grad_x, at::zeros_like(weights_)};
  Tensor grad_weights = at::empty_like(weights_);
  TileShape shape = tile_shape(sizes);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "message_passing_backward", [&] {
    using S = scalar_t;
    using A = at::opmath_type<scalar_t>;
    // All states at once where they are small: nothing is computed a third time.
    TileShape whole = shape;
    whole.segment = std::max(shape.steps, 1), whole.segments = std::min(shape.steps, 1);
    if (bytes(whole, whole.planes(), 2, sizeof(A)) <= USUAL_BYTES) shape = whole;
    const auto kernel = !in_registers(shape)               ? backward_kernel<S, A, 0, 0>
                        : shape.pixels() <= MAX_THREADS ? backward_kernel<S, A, 9, 1>
                                                        : backward_kernel<S, A, 9, 2>;
    launch(kernel, sizes.instances * sizes.kernel_channels, bytes(shape, shape.planes(), 2, sizeof(A)), shape,
           grad_.const_data_ptr<S>(), x_.const_data_ptr<S>(), weights_.const_data_ptr<S>(),
           grad_x.mutable_data_ptr<S>(), grad_weights.mutable_data_ptr<S>());
  });
  return {grad_x, grad_weights};
}

}  // namespace
}  // namespace message_passing

TORCH_LIBRARY_IMPL(dyn_d2, CUDA, library) {
  library.impl("message_passing", &message_passing::forward);
  library.impl("message_passing_backward", &message_passing::backward);
}
