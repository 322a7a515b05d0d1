// Sizes of the operator's arguments, checked: what CPU and GPU have in common.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

namespace message_passing {

struct Sizes {
  int64_t instances, channels, height, width, taps, kernel_channels, steps;
  bool normalize;
  double eps;

  int64_t window() const { return std::llround(std::sqrt(static_cast<double>(taps))); }
  int64_t pixels() const { return height * width; }
  int64_t channels_per_kernel() const { return channels / kernel_channels; }
};

inline Sizes check(const at::Tensor& x, const at::Tensor& weights, int64_t steps, bool normalize, double eps) {
  TORCH_CHECK(x.dim() == 4 && weights.dim() == 5, "message_passing: x has 4 dimensions and weights have 5.");
  TORCH_CHECK(x.scalar_type() == weights.scalar_type() && x.device() == weights.device(),
              "message_passing: x and weights need one dtype and device.");
  const Sizes sizes = {x.size(0), x.size(1), x.size(2), x.size(3), weights.size(2),
                       weights.size(1), steps, normalize, eps};
  TORCH_CHECK(sizes.window() * sizes.window() == sizes.taps && sizes.taps % 2 == 1 && steps >= 0 &&
                  weights.size(0) == sizes.instances && weights.size(3) == sizes.height &&
                  weights.size(4) == sizes.width &&
                  (sizes.kernel_channels == sizes.channels || sizes.kernel_channels == 1),
              "message_passing: weights of the shape ", weights.sizes(), " do not fit x of the shape ", x.sizes(), ".");
  return sizes;
}

inline void check_grad(const at::Tensor& grad, const at::Tensor& x) {
  TORCH_CHECK(grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type() && grad.device() == x.device(),
              "message_passing: the gradient has to have the shape, dtype and device of x.");
}

}  // namespace message_passing
