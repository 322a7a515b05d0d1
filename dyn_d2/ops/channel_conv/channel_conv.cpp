// Convolution that reads chosen input channels and computes chosen output channels, with norm, residual, ReLU and gate.
//
// An image is cut into strips: rows of the output, or pixels for a 1x1 convolution. The chosen channels of a strip are
// copied into a panel with zero borders, in which every tap of the kernel is a constant shift of one long row. Then
// ROWS output channels x COLS vectors of pixels are accumulated in registers; weights are read by index, one number at
// a time, where they are, so that nothing is packed and nothing has to be remembered between calls.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace {

// As many accumulators as registers allow, beside COLS vectors of input and one weight.
#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 6, COLS = 4;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 6, COLS = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 6, COLS = 4;
#else
constexpr int LANES = 4, ROWS = 4, COLS = 2;
#endif
constexpr int64_t PANEL_FLOATS = 128 * 1024;  // of one strip: half of a usual L2 cache

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef float LooseVec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Piece i of n pieces of [0, total) whose lengths differ by at most one.
std::pair<int64_t, int64_t> piece(int64_t total, int64_t n, int64_t i) {
  return {total * i / n, total * (i + 1) / n};
}

struct Layer {
  const float* x;
  const float* weight;
  const float* residual;  // may be null
  const float* gate;      // may be null
  float* out;
  int64_t channels_in, channels_out, height, width, out_height, out_width;
  int64_t weight_strides[2];  // from input channel to input channel and from tap to tap: either memory layout
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  bool relu, pointwise;
  std::vector<float> scale, shift;                   // of the norm and the bias, per output channel
  std::vector<std::vector<int32_t>> reads, writes;   // open channels, per image
  bool x_packed, out_packed;
  std::vector<std::array<int64_t, 2>> phases;        // of the stride, as far as taps use them
  std::vector<std::array<int64_t, 3>> taps;          // phase, row and column in the plane of that phase
  int64_t extra_rows = 0, extra_columns = 0;         // by which a plane exceeds the output

  int64_t row_length() const { return out_width + extra_columns; }

  void find_taps() {
    for (int64_t ky = 0; ky < kernel[0]; ++ky) {
      for (int64_t kx = 0; kx < kernel[1]; ++kx) {
        const int64_t y = ky * dilation[0], x = kx * dilation[1];
        const std::array<int64_t, 2> phase = {y % stride[0], x % stride[1]};
        auto found = std::find(phases.begin(), phases.end(), phase);
        if (found == phases.end()) found = phases.insert(phases.end(), phase);
        taps.push_back({found - phases.begin(), y / stride[0], x / stride[1]});
        extra_rows = std::max(extra_rows, y / stride[0]);
        extra_columns = std::max(extra_columns, x / stride[1]);
      }
    }
  }
};

// A part of one image's output: rows, or pixels of the map written as one row.
struct Strip {
  int64_t image, begin, end;
};

// The chosen input channels of a strip, one plane for each channel and phase.
struct Panel {
  std::vector<float> storage;
  float* data = nullptr;
  int64_t plane = 0, length = 0;     // floats in a plane; positions that are computed, garbage between rows included
  int64_t row = 0, valid = 0;        // floats in a row of a plane, and how many of them are output
  std::vector<int64_t> offsets;      // of the taps

  void reserve(int64_t floats) {
    if (static_cast<int64_t>(storage.size()) < floats + LANES) storage.resize(floats + LANES);
    const auto address = reinterpret_cast<uintptr_t>(storage.data());
    data = storage.data() + (ceil_div(address, LANES * 4) * LANES * 4 - address) / 4;
  }

  void fill(const Layer& layer, const Strip& strip) {
    const int64_t extent = strip.end - strip.begin;
    const auto& reads = layer.reads[strip.image];
    row = layer.pointwise ? extent : layer.row_length();
    valid = layer.pointwise ? extent : layer.out_width;
    length = layer.pointwise ? extent : (extent - 1) * row + valid;
    const int64_t reach = layer.extra_rows * row + layer.extra_columns;
    plane = ceil_div(ceil_div(length, LANES) * LANES + reach, LANES) * LANES;
    offsets.clear();
    for (const auto& tap : layer.taps) offsets.push_back(tap[0] * plane + tap[1] * row + tap[2]);
    const int64_t phases = layer.phases.size();
    reserve(plane * phases * reads.size());
    for (size_t j = 0; j < reads.size(); ++j) {
      const int64_t channel = layer.x_packed ? j : reads[j];
      const float* source = layer.x + (strip.image * layer.channels_in + channel) * layer.height * layer.width;
      for (int64_t p = 0; p < phases; ++p) {
        float* target = data + (j * phases + p) * plane;
        if (layer.pointwise) {
          copy_pixels(layer, strip, source, target);
        } else {
          copy_rows(layer, strip, layer.phases[p], source, target);
        }
      }
    }
  }

 private:
  void copy_pixels(const Layer& layer, const Strip& strip, const float* source, float* target) const {
    if (layer.stride[0] == 1 && layer.stride[1] == 1) {
      std::memcpy(target, source + strip.begin, length * 4);
    } else {
      int64_t y = strip.begin / layer.out_width, x = strip.begin % layer.out_width;
      for (int64_t i = 0; i < length; ++i) {
        target[i] = source[y * layer.stride[0] * layer.width + x * layer.stride[1]];
        if (++x == layer.out_width) x = 0, ++y;
      }
    }
    std::fill(target + length, target + plane, 0.0f);
  }

  void copy_rows(const Layer& layer, const Strip& strip, const std::array<int64_t, 2>& phase, const float* source,
                 float* target) const {
    std::fill(target, target + plane, 0.0f);
    const int64_t rows = strip.end - strip.begin + layer.extra_rows, step = layer.stride[1];
    const int64_t shift = phase[1] - layer.padding[1];  // column c of the plane is column c * step + shift of the input
    const int64_t first = shift < 0 ? ceil_div(-shift, step) : 0;
    const int64_t last = std::min(row, layer.width > shift ? ceil_div(layer.width - shift, step) : 0);
    for (int64_t r = 0; r < rows && first < last; ++r) {
      const int64_t y = (strip.begin + r) * layer.stride[0] + phase[0] - layer.padding[0];
      if (y < 0 || y >= layer.height) continue;
      const float* from = source + y * layer.width + shift;
      float* to = target + r * row;
      if (step == 1) {
        std::memcpy(to + first, from + first, (last - first) * 4);
      } else {
        for (int64_t c = first; c < last; ++c) to[c] = from[c * step];
      }
    }
  }
};

struct Inputs {
  const float* x;           // panel at the first position
  int64_t stride, count;    // from channel to channel
  const int32_t* chosen;    // channels
  const int64_t* offsets;   // of the taps
  int64_t taps;
  int64_t weight_strides[2];
};

// tile[r][p] = sum over channels and taps, for R output channels and V vectors of positions. TAPS 0: as many as given.
template <int TAPS, int R, int V>
void accumulate(const Inputs& in, const float* const* weights, float* tile) {
  Vec sums[R][V] = {};
  const int64_t taps = TAPS ? TAPS : in.taps;
  const float* x = in.x;
  for (int64_t j = 0; j < in.count; ++j, x += in.stride) {
    int64_t at = in.chosen[j] * in.weight_strides[0];
    for (int64_t t = 0; t < taps; ++t, at += in.weight_strides[1]) {
      const LooseVec* source = reinterpret_cast<const LooseVec*>(x + (TAPS == 1 ? 0 : in.offsets[t]));
      Vec values[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) values[v] = source[v];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const float weight = weights[r][at];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums[r][v] += values[v] * weight;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) *reinterpret_cast<LooseVec*>(tile + (r * COLS + v) * LANES) = sums[r][v];
  }
}

using Accumulate = void (*)(const Inputs&, const float* const*, float*);

template <int TAPS, size_t... I>
constexpr std::array<Accumulate, sizeof...(I)> variants(std::index_sequence<I...>) {
  return {accumulate<TAPS, I / COLS + 1, I % COLS + 1>...};
}

Accumulate choose(int64_t taps, int64_t rows, int64_t columns) {
  using All = std::make_index_sequence<ROWS * COLS>;
  static constexpr auto one = variants<1>(All{}), nine = variants<9>(All{}), any = variants<0>(All{});
  const auto& table = taps == 1 ? one : taps == 9 ? nine : any;
  return table[(rows - 1) * COLS + columns - 1];
}

// One run of pixels of one output channel: from sums to what the next layer reads.
void finish(const Layer& layer, const float* sums, int64_t count, int64_t channel, float gate, const float* residual,
            float* out) {
  const float scale = layer.scale[channel], shift = layer.shift[channel];
  const bool relu = layer.relu;
  for (int64_t i = 0; i < count; ++i) {
    float value = sums[i] * scale + shift;
    if (residual) value += residual[i];
    if (relu) value = value < 0.0f ? 0.0f : value;
    out[i] = value * gate;
  }
}

// Output channels [first, last) among the chosen ones of a strip.
void run_strip(const Layer& layer, const Strip& strip, const Panel& panel, int64_t first, int64_t last) {
  const auto& reads = layer.reads[strip.image];
  const auto& writes = layer.writes[strip.image];
  const int64_t taps = layer.taps.size(), map = layer.out_height * layer.out_width;
  const int64_t vectors = ceil_div(panel.length, LANES), blocks = ceil_div(vectors, COLS);
  const int64_t groups = ceil_div(last - first, ROWS);
  const int64_t origin = strip.begin * (layer.pointwise ? 1 : layer.out_width);
  alignas(64) float tile[ROWS * COLS * LANES];
  for (int64_t g = 0; g < groups; ++g) {
    const auto [from, to] = piece(last - first, groups, g);
    const float* weights[ROWS];
    for (int64_t r = 0; r < to - from; ++r) {
      weights[r] = layer.weight + writes[first + from + r] * layer.channels_in * taps;
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const auto [left, right] = piece(vectors, blocks, b);
      const Inputs in = {panel.data + left * LANES, panel.plane * static_cast<int64_t>(layer.phases.size()),
                         static_cast<int64_t>(reads.size()), reads.data(), panel.offsets.data(), taps,
                         {layer.weight_strides[0], layer.weight_strides[1]}};
      choose(taps, to - from, right - left)(in, weights, tile);
      const int64_t end = std::min(right * LANES, panel.length);
      for (int64_t r = 0; r < to - from; ++r) {
        const int64_t channel = writes[first + from + r];
        const int64_t place = strip.image * layer.channels_out + (layer.out_packed ? first + from + r : channel);
        const float gate = layer.gate ? layer.gate[strip.image * layer.channels_out + channel] : 1.0f;
        for (int64_t q = left * LANES; q < end;) {
          const int64_t y = q / panel.row, column = q % panel.row, next = std::min(end, (y + 1) * panel.row);
          const int64_t count = std::min(next, y * panel.row + panel.valid) - q;
          const int64_t target = place * map + origin + y * panel.valid + column;
          if (count > 0) {
            finish(layer, tile + r * COLS * LANES + q - left * LANES, count, channel, gate,
                   layer.residual ? layer.residual + target : nullptr, layer.out + target);
          }
          q = next;
        }
      }
    }
  }
}

std::vector<Strip> cut(const Layer& layer, int64_t images) {
  std::vector<Strip> strips;
  const int64_t threads = at::get_num_threads();
  for (int64_t n = 0; n < images; ++n) {
    int64_t total = layer.out_height, pieces;
    if (layer.pointwise) {
      total *= layer.out_width;
      const int64_t vectors = ceil_div(total, LANES);
      pieces = ceil_div(vectors, COLS);
      for (int64_t i = 0; i < pieces; ++i) {
        const auto [from, to] = piece(vectors, pieces, i);
        strips.push_back({n, from * LANES, std::min(to * LANES, total)});
      }
      continue;
    }
    const int64_t row = layer.reads[n].size() * layer.phases.size() * layer.row_length();
    const int64_t rows = std::max<int64_t>(1, PANEL_FLOATS / std::max<int64_t>(row, 1) - layer.extra_rows);
    pieces = ceil_div(total, rows);
    // Enough strips for all threads, unless they would not fill the registers.
    const int64_t most = std::max<int64_t>(1, total * layer.row_length() / (COLS * LANES));
    if (images < threads) pieces = std::max(pieces, std::min(ceil_div(threads, images), most));
    pieces = std::min(pieces, total);
    for (int64_t i = 0; i < pieces; ++i) {
      const auto [from, to] = piece(total, pieces, i);
      strips.push_back({n, from, to});
    }
  }
  return strips;
}

void run(const Layer& layer, int64_t images) {
  const auto strips = cut(layer, images);
  // Few strips: threads share one, each for some of its output channels.
  const int64_t parts = ceil_div(at::get_num_threads(), strips.size());
  at::parallel_for(0, strips.size() * parts, 1, [&](int64_t begin, int64_t end) {
    thread_local Panel panel;
    for (int64_t i = begin; i < end; ++i) {
      const Strip& strip = strips[i / parts];
      const auto [first, last] = piece(layer.writes[strip.image].size(), parts, i % parts);
      if (first == last) continue;
      panel.fill(layer, strip);
      run_strip(layer, strip, panel, first, last);
    }
  });
}

std::vector<std::vector<int32_t>> open_channels(const OptionalTensor& gate, int64_t images, int64_t channels) {
  std::vector<std::vector<int32_t>> chosen(images);
  const float* values = gate ? gate->const_data_ptr<float>() : nullptr;
  for (int64_t n = 0; n < images; ++n) {
    chosen[n].reserve(channels);
    for (int64_t c = 0; c < channels; ++c) {
      if (!values || values[n * channels + c] != 0.0f) chosen[n].push_back(c);
    }
  }
  return chosen;
}

const float* pointer(const OptionalTensor& tensor) { return tensor ? tensor->const_data_ptr<float>() : nullptr; }

void check(const OptionalTensor& tensor, const char* name) {
  TORCH_CHECK(!tensor || (tensor->scalar_type() == at::kFloat && tensor->is_contiguous()), "channel_conv: ", name,
              " has to be contiguous float32.");
}

void check_shape(const OptionalTensor& tensor, at::IntArrayRef shape, const char* name) {
  TORCH_CHECK(!tensor || tensor->sizes() == shape, "channel_conv: ", name, " has to have the shape ", shape, ".");
}

// Everything except memory: into ``out``, or a new tensor. ``residual`` may be ``out``: each value is read before it is
// written.
Tensor compute(std::optional<Tensor> out, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
               at::TensorList norm, double eps, const OptionalTensor& x_gate, const OptionalTensor& gate,
               const OptionalTensor& residual, at::IntArrayRef stride, at::IntArrayRef padding,
               at::IntArrayRef dilation, bool relu) {
  check(x, "x"), check(bias, "bias"), check(residual, "residual");
  check(x_gate, "x_gate"), check(gate, "gate");
  TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, "channel_conv: x and weight have four dimensions.");
  const bool last = !weight.is_contiguous();
  TORCH_CHECK(weight.scalar_type() == at::kFloat && (!last || weight.is_contiguous(at::MemoryFormat::ChannelsLast)),
              "channel_conv: weight has to be float32, contiguous in either memory layout.");
  TORCH_CHECK(norm.size() == 0 || norm.size() == 4, "channel_conv: norm is [] or [weight, bias, mean, variance].");
  TORCH_CHECK(!gate || !residual, "channel_conv: a gated output has no residual.");
  const int64_t images = x.size(0);
  Layer layer;
  layer.channels_in = weight.size(1), layer.channels_out = weight.size(0);
  layer.height = x.size(2), layer.width = x.size(3);
  TORCH_CHECK(x.size(1) == layer.channels_in, "channel_conv: x has ", x.size(1), " channels, the weight ",
              layer.channels_in, ".");
  check_shape(bias, {layer.channels_out}, "bias"), check_shape(x_gate, {images, layer.channels_in}, "x_gate");
  check_shape(gate, {images, layer.channels_out}, "gate");
  for (const Tensor& vector : norm) check(vector, "norm"), check_shape(vector, {layer.channels_out}, "norm");
  layer.weight_strides[0] = last ? 1 : weight.size(2) * weight.size(3);
  layer.weight_strides[1] = last ? layer.channels_in : 1;
  int64_t size[2];
  for (int i = 0; i < 2; ++i) {
    layer.kernel[i] = weight.size(2 + i), layer.stride[i] = stride[i];
    layer.padding[i] = padding[i], layer.dilation[i] = dilation[i];
    const int64_t room = x.size(2 + i) + 2 * padding[i] - dilation[i] * (layer.kernel[i] - 1) - 1;
    TORCH_CHECK(room >= 0, "channel_conv: a map of ", x.size(2), " x ", x.size(3), " is smaller than the kernel.");
    size[i] = room / stride[i] + 1;
  }
  layer.out_height = size[0], layer.out_width = size[1];
  const int64_t shape[4] = {images, layer.channels_out, size[0], size[1]};
  check_shape(residual, shape, "residual");
  if (!out) out = at::empty(shape, x.options());
  if (images == 0) return *out;
  layer.pointwise = layer.kernel[0] == 1 && layer.kernel[1] == 1 && padding[0] == 0 && padding[1] == 0;
  layer.find_taps();
  layer.scale.assign(layer.channels_out, 1.0f), layer.shift.assign(layer.channels_out, 0.0f);
  if (bias) std::copy_n(pointer(bias), layer.channels_out, layer.shift.begin());
  if (norm.size() == 4) {
    const float *factor = norm[0].const_data_ptr<float>(), *add = norm[1].const_data_ptr<float>();
    const float *mean = norm[2].const_data_ptr<float>(), *variance = norm[3].const_data_ptr<float>();
    for (int64_t c = 0; c < layer.channels_out; ++c) {
      layer.scale[c] = factor[c] / std::sqrt(variance[c] + static_cast<float>(eps));
      layer.shift[c] = (layer.shift[c] - mean[c]) * layer.scale[c] + add[c];
    }
  }
  layer.x = x.const_data_ptr<float>(), layer.weight = weight.const_data_ptr<float>();
  layer.residual = pointer(residual), layer.gate = pointer(gate), layer.out = out->mutable_data_ptr<float>();
  layer.relu = relu, layer.x_packed = x_gate.has_value(), layer.out_packed = gate.has_value();
  layer.reads = open_channels(x_gate, images, layer.channels_in);
  layer.writes = open_channels(gate, images, layer.channels_out);
  run(layer, images);
  return *out;
}

Tensor channel_conv(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, at::TensorList norm, double eps,
                    const OptionalTensor& x_gate, const OptionalTensor& gate, const OptionalTensor& residual,
                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool relu) {
  return compute(std::nullopt, x, weight, bias, norm, eps, x_gate, gate, residual, stride, padding, dilation, relu);
}

void channel_conv_into(Tensor& residual, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                       at::TensorList norm, double eps, const OptionalTensor& x_gate, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation, bool relu) {
  compute(residual, x, weight, bias, norm, eps, x_gate, std::nullopt, residual, stride, padding, dilation, relu);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dyn_d2, library) {
  library.def(
      "channel_conv(Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, float eps, Tensor? x_gate, Tensor? gate, "
      "Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, bool relu) -> Tensor");
  library.def(
      "channel_conv_into(Tensor(a!) residual, Tensor x, Tensor weight, Tensor? bias, Tensor[] norm, float eps, "
      "Tensor? x_gate, int[2] stride, int[2] padding, int[2] dilation, bool relu) -> ()");
}

TORCH_LIBRARY_IMPL(dyn_d2, CPU, library) {
  library.impl("channel_conv", &channel_conv);
  library.impl("channel_conv_into", &channel_conv_into);
}
