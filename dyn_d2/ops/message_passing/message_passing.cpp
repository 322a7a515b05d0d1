// T steps of x[p] <- sum over taps j of K_j[p] x[p + shift_j], forward and backward, for one map after another.
//
// A map and its kernels are copied into planes: the pixels row by row, rounded up to whole vectors, with a margin of
// zeros on both sides. K_j[p] is set to 0 where its tap lies outside of the map, so that one constant shift per tap
// serves all pixels, although it leads from the end of one row to the start of the next: there it is multiplied by 0.
// (An infinite value meets that 0 as well, and gives NaN one pixel further than it should.) The same holds for the
// transposed step, g[p] <- sum over taps of K_j[p - shift_j] g[p - shift_j]. Planes stay in the cache for all T steps.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "message_passing.h"

namespace message_passing {
namespace {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int GROUP = 9;                           // taps whose gradients are summed in registers at once
constexpr int64_t STATE_BYTES = 512 * 1024;        // of states and gradients that stay in the cache together

using at::Tensor;

template <typename A>
struct Vectors {
  static constexpr int64_t lanes = VECTOR_BYTES / sizeof(A);
  typedef A Loose __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(A)), may_alias));
};

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Where things are in planes of numbers of type A.
template <typename A>
struct Layout {
  int64_t pixels, length, margin, plane;
  std::vector<int64_t> shifts;  // of the taps

  explicit Layout(const Sizes& sizes) : pixels(sizes.pixels()) {
    const int64_t window = sizes.window(), half = window / 2;
    length = round_up(pixels, Vectors<A>::lanes);
    margin = round_up(half * (sizes.width + 1), Vectors<A>::lanes);
    plane = margin + length + margin;
    for (int64_t j = 0; j < sizes.taps; ++j) shifts.push_back((j / window - half) * sizes.width + j % window - half);
  }
};

// Planes whose margins and last, incomplete vector start as zeros. [i] is the first pixel of plane i.
template <typename A>
class Planes {
 public:
  Planes(const Layout<A>& layout, int64_t count)
      : plane_(layout.plane), storage_(count * layout.plane + Vectors<A>::lanes) {
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    first_ = storage_.data() + (round_up(address, VECTOR_BYTES) - address) / sizeof(A) + layout.margin;
  }
  Planes(const Planes&) = delete;
  Planes& operator=(const Planes&) = delete;

  A* operator[](int64_t i) { return first_ + i * plane_; }

 private:
  int64_t plane_;
  std::vector<A> storage_;
  A* first_;
};

// out = K x or, TRANSPOSED, out = K^T x. TAPS 0: as many as given.
template <typename A, int TAPS, bool TRANSPOSED>
void step(const Layout<A>& layout, const A* kernels, const A* x, A* out) {
  using Vector = typename Vectors<A>::Loose;
  const int64_t taps = TAPS ? TAPS : layout.shifts.size();
  const int64_t* shifts = layout.shifts.data();
  for (int64_t p = 0; p < layout.length; p += Vectors<A>::lanes) {
    Vector sum = {};
#pragma GCC unroll 9
    for (int64_t j = 0; j < taps; ++j) {
      const int64_t read = TRANSPOSED ? p - shifts[j] : p + shifts[j];
      sum += *reinterpret_cast<const Vector*>(kernels + j * layout.plane + (TRANSPOSED ? read : p)) *
             *reinterpret_cast<const Vector*>(x + read);
    }
    *reinterpret_cast<Vector*>(out + p) = sum;
  }
}

template <typename A, bool TRANSPOSED>
void step(const Layout<A>& layout, const A* kernels, const A* x, A* out) {
  if (layout.shifts.size() == 9) {
    step<A, 9, TRANSPOSED>(layout, kernels, x, out);
  } else {
    step<A, 0, TRANSPOSED>(layout, kernels, x, out);
  }
}

// grad_kernels_j[p] += sum over t of grads[t + 1][p] states[t][p + shift_j], for COUNT taps from ``first`` on.
template <typename A, int COUNT>
void correlate(const Layout<A>& layout, int64_t first, int64_t steps, const A* states, const A* grads, A* grad_kernels) {
  using Vector = typename Vectors<A>::Loose;
  int64_t shifts[COUNT];
  std::copy_n(layout.shifts.begin() + first, COUNT, shifts);
  for (int64_t p = 0; p < layout.length; p += Vectors<A>::lanes) {
    Vector sums[COUNT] = {};
    for (int64_t t = 0; t < steps; ++t) {
      const Vector grad = *reinterpret_cast<const Vector*>(grads + (t + 1) * layout.plane + p);
      const A* state = states + t * layout.plane + p;
#pragma GCC unroll 9
      for (int j = 0; j < COUNT; ++j) sums[j] += grad * *reinterpret_cast<const Vector*>(state + shifts[j]);
    }
    for (int j = 0; j < COUNT; ++j) {
      *reinterpret_cast<Vector*>(grad_kernels + (first + j) * layout.plane + p) += sums[j];
    }
  }
}

// Zeros where a tap lies outside of the map.
template <typename A>
void close_borders(const Sizes& sizes, const Layout<A>& layout, A* kernels) {
  const int64_t window = sizes.window(), half = window / 2, height = sizes.height, width = sizes.width;
  for (int64_t j = 0; j < sizes.taps; ++j) {
    const int64_t dy = j / window - half, dx = j % window - half;
    const int64_t rows = std::min(std::abs(dy), height), columns = std::min(std::abs(dx), width);
    A* kernel = kernels + j * layout.plane;
    std::fill_n(kernel + (dy < 0 ? 0 : height - rows) * width, rows * width, A(0));
    A* column = kernel + (dx < 0 ? 0 : width - columns);
    for (int64_t i = 0; i < columns; ++i) {
      for (int64_t y = 0; y < height; ++y) column[y * width + i] = A(0);
    }
  }
}

// The kernels of one map, (taps, pixels) in ``weights``, into planes; ``factors``: what weights were multiplied by.
template <typename S, typename A>
void load_kernels(const Sizes& sizes, const Layout<A>& layout, const S* weights, A* kernels, A* factors) {
  const int64_t pixels = layout.pixels;
  std::fill_n(factors, pixels, sizes.normalize ? static_cast<A>(sizes.eps) : A(1));
  if (sizes.normalize) {
    for (int64_t j = 0; j < sizes.taps; ++j) {
      for (int64_t p = 0; p < pixels; ++p) factors[p] += static_cast<A>(weights[j * pixels + p]);
    }
    for (int64_t p = 0; p < pixels; ++p) factors[p] = A(1) / factors[p];
  }
  for (int64_t j = 0; j < sizes.taps; ++j) {
    A* kernel = kernels + j * layout.plane;
    for (int64_t p = 0; p < pixels; ++p) kernel[p] = static_cast<A>(weights[j * pixels + p]) * factors[p];
  }
  close_borders(sizes, layout, kernels);
}

// From the gradient of the kernels to that of the weights: of w_j / (sum of w + eps).
template <typename S, typename A>
void store_grad_weights(const Sizes& sizes, const Layout<A>& layout, const A* kernels, const A* factors,
                        A* grad_kernels, A* common, S* grad_weights) {
  close_borders(sizes, layout, grad_kernels);
  std::fill_n(common, layout.pixels, A(0));
  for (int64_t j = 0; j < sizes.taps && sizes.normalize; ++j) {
    const A *kernel = kernels + j * layout.plane, *grad = grad_kernels + j * layout.plane;
    for (int64_t p = 0; p < layout.pixels; ++p) common[p] += kernel[p] * grad[p];
  }
  for (int64_t j = 0; j < sizes.taps; ++j) {
    const A* grad = grad_kernels + j * layout.plane;
    S* out = grad_weights + j * layout.pixels;
    for (int64_t p = 0; p < layout.pixels; ++p) out[p] = static_cast<S>((grad[p] - common[p]) * factors[p]);
  }
}

template <typename S, typename A>
void convert(const S* from, int64_t count, A* to) {
  for (int64_t p = 0; p < count; ++p) to[p] = static_cast<A>(from[p]);
}

template <typename S, typename A>
void forward_maps(const Sizes& sizes, const S* x, const S* weights, S* out) {
  const Layout<A> layout(sizes);
  const int64_t pixels = layout.pixels, channels_per_kernel = sizes.channels_per_kernel();
  at::parallel_for(0, sizes.instances * sizes.channels, 1, [&](int64_t begin, int64_t end) {
    Planes<A> kernels(layout, sizes.taps), states(layout, 2), factors(layout, 1);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t kernel = i / channels_per_kernel;
      if (i == begin || i % channels_per_kernel == 0) {
        load_kernels(sizes, layout, weights + kernel * sizes.taps * pixels, kernels[0], factors[0]);
      }
      convert(x + i * pixels, pixels, states[0]);
      for (int64_t t = 0; t < sizes.steps; ++t) step<A, false>(layout, kernels[0], states[t % 2], states[(t + 1) % 2]);
      convert(states[sizes.steps % 2], pixels, out + i * pixels);
    }
  });
}

// What one thread needs to go back through one map after another. The states of a segment of steps are kept, and
// the state at the start of each segment: from these the others are computed again.
template <typename S, typename A>
class Backward {
 public:
  explicit Backward(const Sizes& sizes)
      : sizes_(sizes),
        layout_(sizes),
        segment_(segment_steps(sizes.steps, layout_.plane)),
        segments_((sizes.steps + segment_ - 1) / segment_),
        kernels_(layout_, sizes.taps),
        grad_kernels_(layout_, sizes.taps),
        states_(layout_, segment_),
        grads_(layout_, segment_ + 1),
        starts_(layout_, std::max<int64_t>(segments_, 1)),
        factors_(layout_, 2) {}

  void start(const S* weights) {
    load_kernels(sizes_, layout_, weights, kernels_[0], factors_[0]);
    for (int64_t j = 0; j < sizes_.taps; ++j) std::fill_n(grad_kernels_[j], layout_.pixels, A(0));
  }

  void add_map(const S* grad, const S* x, S* grad_x) {
    convert(x, layout_.pixels, starts_[0]);
    for (int64_t s = 0; s + 1 < segments_; ++s) {
      run_segment(s, segment_);
      step<A, false>(layout_, kernels_[0], states_[segment_ - 1], starts_[s + 1]);
    }
    convert(grad, layout_.pixels, grads_[0]);
    for (int64_t s = segments_ - 1; s >= 0; --s) {
      const int64_t steps = std::min(segment_, sizes_.steps - s * segment_);
      run_segment(s, steps);
      std::copy_n(grads_[0], layout_.length, grads_[steps]);
      for (int64_t t = steps - 1; t >= 0; --t) step<A, true>(layout_, kernels_[0], grads_[t + 1], grads_[t]);
      int64_t j = 0;
      for (; j + GROUP <= sizes_.taps; j += GROUP) {
        correlate<A, GROUP>(layout_, j, steps, states_[0], grads_[0], grad_kernels_[0]);
      }
      for (; j < sizes_.taps; ++j) correlate<A, 1>(layout_, j, steps, states_[0], grads_[0], grad_kernels_[0]);
    }
    convert(grads_[0], layout_.pixels, grad_x);
  }

  void finish(S* grad_weights) {
    store_grad_weights(sizes_, layout_, kernels_[0], factors_[0], grad_kernels_[0], factors_[1], grad_weights);
  }

 private:
  // As many as fit into the cache, but not fewer than need the least memory.
  static int64_t segment_steps(int64_t steps, int64_t plane) {
    const int64_t fitting = STATE_BYTES / (2 * plane * static_cast<int64_t>(sizeof(A)));
    const int64_t least = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(steps))));
    return std::max<int64_t>(1, std::min(steps, std::max(least, fitting)));
  }

  void run_segment(int64_t s, int64_t steps) {
    std::copy_n(starts_[s], layout_.length, states_[0]);
    for (int64_t t = 1; t < steps; ++t) step<A, false>(layout_, kernels_[0], states_[t - 1], states_[t]);
  }

  const Sizes& sizes_;
  Layout<A> layout_;
  int64_t segment_, segments_;
  Planes<A> kernels_, grad_kernels_, states_, grads_, starts_, factors_;
};

template <typename S, typename A>
void backward_maps(const Sizes& sizes, const S* grad, const S* x, const S* weights, S* grad_x, S* grad_weights) {
  const int64_t pixels = sizes.pixels(), channels_per_kernel = sizes.channels_per_kernel();
  at::parallel_for(0, sizes.instances * sizes.kernel_channels, 1, [&](int64_t begin, int64_t end) {
    Backward<S, A> backward(sizes);
    for (int64_t kernel = begin; kernel < end; ++kernel) {
      backward.start(weights + kernel * sizes.taps * pixels);
      for (int64_t i = kernel * channels_per_kernel; i < (kernel + 1) * channels_per_kernel; ++i) {
        backward.add_map(grad + i * pixels, x + i * pixels, grad_x + i * pixels);
      }
      backward.finish(grad_weights + kernel * sizes.taps * pixels);
    }
  });
}

Tensor forward(const Tensor& x, const Tensor& weights, int64_t steps, bool normalize, double eps) {
  const Sizes sizes = check(x, weights, steps, normalize, eps);
  const Tensor x_ = x.contiguous(), weights_ = weights.contiguous();
  Tensor out = at::empty_like(x_);
  if (x.numel() == 0) return out;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "message_passing", [&] {
    forward_maps<scalar_t, at::opmath_type<scalar_t>>(sizes, x_.const_data_ptr<scalar_t>(),
                                                      weights_.const_data_ptr<scalar_t>(),
                                                      out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& weights, int64_t steps,
                                    bool normalize, double eps) {
  const Sizes sizes = check(x, weights, steps, normalize, eps);
  check_grad(grad, x);
  const Tensor grad_ = grad.contiguous(), x_ = x.contiguous(), weights_ = weights.contiguous();
  Tensor grad_x = at::empty_like(x_);
  if (x.numel() == 0) return {grad_x, at::zeros_like(weights_)};
  Tensor grad_weights = at::empty_like(weights_);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "message_passing_backward", [&] {
    backward_maps<scalar_t, at::opmath_type<scalar_t>>(
        sizes, grad_.const_data_ptr<scalar_t>(), x_.const_data_ptr<scalar_t>(), weights_.const_data_ptr<scalar_t>(),
        grad_x.mutable_data_ptr<scalar_t>(), grad_weights.mutable_data_ptr<scalar_t>());
  });
  return {grad_x, grad_weights};
}

}  // namespace
}  // namespace message_passing

TORCH_LIBRARY_FRAGMENT(dyn_d2, library) {
  library.def("message_passing(Tensor x, Tensor weights, int steps, bool normalize, float eps) -> Tensor");
  library.def(
      "message_passing_backward(Tensor grad, Tensor x, Tensor weights, int steps, bool normalize, float eps) -> "
      "(Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(dyn_d2, CPU, library) {
  library.impl("message_passing", &message_passing::forward);
  library.impl("message_passing_backward", &message_passing::backward);
}
