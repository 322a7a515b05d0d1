// Depthwise convolution of chosen pixels: each output row is a sum of neighbours' rows, channel by channel.
//
// Channels are taken LANES at a time, so that their sums stay in registers while the taps of the kernel pass by; a
// neighbour that is not there has the index -1.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t LANES = 64;

void sum_taps(const float* rows, const int64_t* index, const float* weight, const float* bias, float* out,
              int64_t taps, int64_t channels, float limit) {
  for (int64_t first = 0; first < channels; first += LANES) {
    const int64_t count = std::min(LANES, channels - first);
    float total[LANES];
    for (int64_t c = 0; c < count; ++c) total[c] = bias[first + c];
    for (int64_t k = 0; k < taps; ++k) {
      if (index[k] < 0) continue;
      const float* row = rows + index[k] * channels + first;
      const float* own = weight + k * channels + first;
      if (count == LANES) {
        for (int64_t c = 0; c < LANES; ++c) total[c] += row[c] * own[c];
      } else {
        for (int64_t c = 0; c < count; ++c) total[c] += row[c] * own[c];
      }
    }
    if (limit >= 0) {
      for (int64_t c = 0; c < count; ++c) total[c] = std::min(std::max(total[c], 0.0f), limit);
    }
    std::copy(total, total + count, out + first);
  }
}

// rows (m, C), index (n, K), weight (K, C), bias (C) -> (n, C); limit < 0: no activation, else values end in [0, limit].
at::Tensor region_depthwise(const at::Tensor& rows, const at::Tensor& index, const at::Tensor& weight,
                            const at::Tensor& bias, double limit) {
  TORCH_CHECK(rows.is_contiguous() && index.is_contiguous() && weight.is_contiguous() && bias.is_contiguous(),
              "region_depthwise: contiguous tensors are needed");
  TORCH_CHECK(rows.scalar_type() == at::kFloat && index.scalar_type() == at::kLong,
              "region_depthwise: float32 rows and int64 indices are needed");
  const int64_t channels = rows.size(1), taps = index.size(1), count = index.size(0);
  TORCH_CHECK(weight.size(0) == taps && weight.size(1) == channels && bias.size(0) == channels,
              "region_depthwise: the weight does not fit rows and taps");
  at::Tensor out = at::empty({count, channels}, rows.options());
  const float *from = rows.const_data_ptr<float>(), *w = weight.const_data_ptr<float>(),
              *b = bias.const_data_ptr<float>();
  const int64_t* where = index.const_data_ptr<int64_t>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, count, 32, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      sum_taps(from, where + i * taps, w, b, to + i * channels, taps, channels, static_cast<float>(limit));
    }
  });
  return out;
}

// grad (n, C), rows (m, C), index (n, K) -> (K, C): for each tap the sum over the pixels of their gradient times the row
// that they read. Threads share the channels, so that no two of them add to one place.
at::Tensor region_depthwise_weight_grad(const at::Tensor& grad, const at::Tensor& rows, const at::Tensor& index) {
  TORCH_CHECK(grad.is_contiguous() && rows.is_contiguous() && index.is_contiguous(),
              "region_depthwise_weight_grad: contiguous tensors are needed");
  TORCH_CHECK(grad.scalar_type() == at::kFloat && rows.scalar_type() == at::kFloat && index.scalar_type() == at::kLong,
              "region_depthwise_weight_grad: float32 values and int64 indices are needed");
  const int64_t channels = rows.size(1), taps = index.size(1), count = index.size(0);
  TORCH_CHECK(grad.size(0) == count && grad.size(1) == channels,
              "region_depthwise_weight_grad: the gradient does not fit rows and index");
  at::Tensor out = at::zeros({taps, channels}, rows.options());
  const float *from = rows.const_data_ptr<float>(), *g = grad.const_data_ptr<float>();
  const int64_t* where = index.const_data_ptr<int64_t>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, (channels + LANES - 1) / LANES, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * LANES, width = std::min(LANES, channels - first);
      for (int64_t i = 0; i < count; ++i) {
        float own[LANES] = {0.0f};
        std::copy(g + i * channels + first, g + i * channels + first + width, own);
        for (int64_t k = 0; k < taps; ++k) {
          const int64_t row = where[i * taps + k];
          if (row < 0) continue;
          const float* values = from + row * channels + first;
          float* total = to + k * channels + first;
          if (width == LANES) {
            for (int64_t c = 0; c < LANES; ++c) total[c] += own[c] * values[c];
          } else {
            for (int64_t c = 0; c < width; ++c) total[c] += own[c] * values[c];
          }
        }
      }
    }
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dyn_d2, m) {
  m.def("region_depthwise(Tensor rows, Tensor index, Tensor weight, Tensor bias, float limit) -> Tensor");
  m.def("region_depthwise_weight_grad(Tensor grad, Tensor rows, Tensor index) -> Tensor");
}

TORCH_LIBRARY_IMPL(dyn_d2, CPU, m) {
  m.impl("region_depthwise", &region_depthwise);
  m.impl("region_depthwise_weight_grad", &region_depthwise_weight_grad);
}
