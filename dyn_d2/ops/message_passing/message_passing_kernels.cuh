// T steps of x[p] <- sum over taps j of K_j[p] x[p + shift_j] with everything on chip, forward and backward.
//
// A block of threads holds a map and its kernels: the states in shared memory, in planes with a border of zeros, and
// the kernels in registers (3 x 3) or in shared memory. Global memory is read once, before the first step, and written
// after the last one. A thread owns the pixels threadIdx.x, threadIdx.x + blockDim.x, ...; it alone writes them in
// every plane, and __syncthreads stands between these writes and the neighbours' reads. There are no atomics: results
// are the same on every run.
//
// Nothing of torch in here: tests run these functions on the CPU, one std::thread for each thread of a block.
#pragma once

#include <cstdint>
#include <type_traits>

namespace message_passing {

constexpr int MAX_THREADS = 512;

struct TileShape {
  int height, width, window, channels_per_kernel;
  int steps, segment, segments;  // backward: states are computed again, ``segment`` steps at a time
  bool normalize;
  double eps;

  __host__ __device__ int taps() const { return window * window; }
  __host__ __device__ int pixels() const { return height * width; }
  __host__ __device__ int row() const { return width + window - 1; }
  __host__ __device__ int plane() const { return row() * (height + window - 1); }
  // Of the backward kernel: states inside of a segment, starts of segments, two gradients, factors.
  __host__ __device__ int planes() const { return segment - 1 + (segments > 1 ? segments : 1) + 3; }
};

// A number for each tap of each pixel that a thread owns.
template <typename A, int TAPS, int PIXELS>
struct InRegisters {
  A values[PIXELS * TAPS];
  __device__ InRegisters(A*, int) {}
  __device__ A& at(int i, int, int j) { return values[i * TAPS + j]; }
};

template <typename A>
struct InShared {
  A* values;
  int pixels;
  __device__ InShared(A* memory, int count) : values(memory), pixels(count) {}
  __device__ A& at(int, int q, int j) { return values[j * pixels + q]; }
};

// What the threads of a block do together. TAPS 9: kernels are in registers, and a thread owns at most PIXELS pixels.
// TAPS 0: they are in shared memory, for any number of taps and pixels.
template <typename S, typename A, int TAPS, int PIXELS>
struct Tile {
  static constexpr bool registers = TAPS > 0;
  using Kernels = std::conditional_t<registers, InRegisters<A, TAPS, PIXELS>, InShared<A>>;

  const TileShape& shape;
  int width, half, row, pixels;

  __device__ explicit Tile(const TileShape& s)
      : shape(s), width(s.width), half(s.window / 2), row(s.row()), pixels(s.pixels()) {}

  // f(i, q): the i-th own pixel is pixel q of the map.
  template <typename F>
  __device__ void each_pixel(F f) const {
    if constexpr (registers) {
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) {
        const int q = threadIdx.x + i * blockDim.x;
        if (q < pixels) f(i, q);
      }
    } else {
      for (int q = threadIdx.x; q < pixels; q += blockDim.x) f(0, q);
    }
  }

  // f(j, dy, dx): tap j reads dy rows down and dx columns to the right.
  template <typename F>
  __device__ void each_tap(F f) const {
    if constexpr (registers) {
      static_assert(TAPS == 9, "registers are for 3 x 3 windows");
#pragma unroll
      for (int j = 0; j < TAPS; ++j) f(j, j / 3 - 1, j % 3 - 1);
    } else {
      int j = 0;
      for (int dy = -half; dy <= half; ++dy) {
        for (int dx = -half; dx <= half; ++dx) f(j++, dy, dx);
      }
    }
  }

  // Of pixel q in a plane.
  __device__ int place(int q) const { return (q / width + half) * row + q % width + half; }

  __device__ void clear(A* memory, int count) const {
    for (int i = threadIdx.x; i < count; i += blockDim.x) memory[i] = A(0);
  }

  __device__ void load(const S* from, A* plane) const {
    each_pixel([&](int, int q) { plane[place(q)] = static_cast<A>(from[q]); });
  }

  __device__ void store(const A* plane, S* to) const {
    each_pixel([&](int, int q) { to[q] = static_cast<S>(plane[place(q)]); });
  }

  // Own pixels' kernels, and what the weights were multiplied by to get them (a plane, or null).
  __device__ void load_kernels(const S* weights, Kernels& kernels, A* factors) const {
    each_pixel([&](int i, int q) {
      A sum = static_cast<A>(shape.eps);
      each_tap([&](int j, int, int) {
        const A weight = static_cast<A>(weights[static_cast<int64_t>(j) * pixels + q]);
        kernels.at(i, q, j) = weight;
        sum += weight;
      });
      const A factor = shape.normalize ? A(1) / sum : A(1);
      each_tap([&](int j, int, int) { kernels.at(i, q, j) *= factor; });
      if (factors) factors[place(q)] = factor;
    });
  }

  // Whether the pixel that reads pixel q through the tap (dy, dx) is on the map.
  __device__ bool has_reader(int q, int dy, int dx) const {
    const int y = q / width - dy, x = q % width - dx;
    return y >= 0 && y < shape.height && x >= 0 && x < width;
  }

  // For registers: the kernel values with which others read the own pixels.
  __device__ void load_transposed(const S* weights, const A* factors, Kernels& transposed) const {
    each_pixel([&](int i, int q) {
      each_tap([&](int j, int dy, int dx) {
        A value = A(0);
        if (has_reader(q, dy, dx)) {
          const int reader = q - dy * width - dx;
          value = static_cast<A>(weights[static_cast<int64_t>(j) * pixels + reader]) * factors[place(reader)];
        }
        transposed.at(i, q, j) = value;
      });
    });
  }

  __device__ void step(Kernels& kernels, const A* from, A* to) const {
    each_pixel([&](int i, int q) {
      const int at = place(q);
      A sum = A(0);
      each_tap([&](int j, int dy, int dx) { sum += kernels.at(i, q, j) * from[at + dy * row + dx]; });
      to[at] = sum;
    });
  }

  // One step back: the gradient of ``state`` from that of the next state, and what it adds to that of the kernels.
  __device__ void step_back(Kernels& kernels, Kernels& transposed, const A* state, const A* from, A* to,
                            Kernels& grad_kernels) const {
    each_pixel([&](int i, int q) {
      const int at = place(q);
      const A own = from[at];
      A sum = A(0);
      each_tap([&](int j, int dy, int dx) {
        const int shift = dy * row + dx;
        grad_kernels.at(i, q, j) += own * state[at + shift];
        if constexpr (registers) {
          sum += transposed.at(i, q, j) * from[at - shift];
        } else if (has_reader(q, dy, dx)) {
          sum += kernels.at(0, q - dy * width - dx, j) * from[at - shift];
        }
      });
      to[at] = sum;
    });
  }

  // From the gradient of the kernels to that of the weights: of w_j / (sum of w + eps).
  __device__ void store_grad_weights(Kernels& kernels, Kernels& grad_kernels, const A* factors, S* out) const {
    each_pixel([&](int i, int q) {
      A common = A(0);
      each_tap([&](int j, int, int) { common += kernels.at(i, q, j) * grad_kernels.at(i, q, j); });
      if (!shape.normalize) common = A(0);
      each_tap([&](int j, int, int) {
        const A value = (grad_kernels.at(i, q, j) - common) * factors[place(q)];
        out[static_cast<int64_t>(j) * pixels + q] = static_cast<S>(value);
      });
    });
  }
};

// A block for each map. Shared memory: two planes, and the kernels if they are not in registers.
template <typename S, typename A, int TAPS, int PIXELS>
__global__ void __launch_bounds__(MAX_THREADS)
    forward_kernel(const TileShape shape, const S* x, const S* weights, S* out) {
  extern __shared__ double memory[];
  using Part = Tile<S, A, TAPS, PIXELS>;
  const Part tile(shape);
  const int64_t map = blockIdx.x, pixels = shape.pixels();
  A *now = reinterpret_cast<A*>(memory), *next = now + shape.plane();
  typename Part::Kernels kernels(next + shape.plane(), shape.pixels());
  tile.clear(now, 2 * shape.plane());
  __syncthreads();
  tile.load_kernels(weights + map / shape.channels_per_kernel * shape.taps() * pixels, kernels, nullptr);
  tile.load(x + map * pixels, now);
  __syncthreads();
  for (int t = 0; t < shape.steps; ++t) {
    tile.step(kernels, now, next);
    __syncthreads();
    A* const before = now;
    now = next, next = before;
  }
  tile.store(now, out + map * pixels);
}

// A block for each kernel, which goes through all maps of that kernel. Shared memory: shape.planes() planes, and the
// kernels and their gradients if they are not in registers.
template <typename S, typename A, int TAPS, int PIXELS>
__global__ void __launch_bounds__(MAX_THREADS)
    backward_kernel(const TileShape shape, const S* grad, const S* x, const S* weights, S* grad_x, S* grad_weights) {
  extern __shared__ double memory[];
  using Part = Tile<S, A, TAPS, PIXELS>;
  using Kernels = typename Part::Kernels;
  const Part tile(shape);
  const int plane = shape.plane(), pixels = shape.pixels(), taps = shape.taps();
  A* const factors = reinterpret_cast<A*>(memory);
  A *now = factors + plane, *next = now + plane;
  A* const starts = next + plane;
  A* const states = starts + (shape.segments > 1 ? shape.segments : 1) * plane;
  A* const rest = states + (shape.segment - 1) * plane;
  Kernels kernels(rest, pixels), grad_kernels(rest + taps * pixels, pixels), transposed(nullptr, 0);
  // The state after t steps of segment s.
  const auto state = [&](int s, int t) { return t == 0 ? starts + s * plane : states + (t - 1) * plane; };

  tile.clear(factors, shape.planes() * plane);
  __syncthreads();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * taps * pixels;
  tile.load_kernels(weights + first, kernels, factors);
  tile.each_pixel([&](int i, int q) { tile.each_tap([&](int j, int, int) { grad_kernels.at(i, q, j) = A(0); }); });
  __syncthreads();
  if constexpr (Part::registers) tile.load_transposed(weights + first, factors, transposed);

  for (int c = 0; c < shape.channels_per_kernel; ++c) {
    const int64_t map = (static_cast<int64_t>(blockIdx.x) * shape.channels_per_kernel + c) * pixels;
    tile.load(x + map, starts);
    tile.load(grad + map, now);
    __syncthreads();
    for (int s = 0; s + 1 < shape.segments; ++s) {
      for (int t = 0; t < shape.segment; ++t) {
        tile.step(kernels, state(s, t), t + 1 < shape.segment ? state(s, t + 1) : state(s + 1, 0));
        __syncthreads();
      }
    }
    for (int s = shape.segments - 1; s >= 0; --s) {
      const int left = shape.steps - s * shape.segment, steps = left < shape.segment ? left : shape.segment;
      for (int t = 0; t + 1 < steps; ++t) {
        tile.step(kernels, state(s, t), state(s, t + 1));
        __syncthreads();
      }
      for (int t = steps - 1; t >= 0; --t) {
        tile.step_back(kernels, transposed, state(s, t), now, next, grad_kernels);
        __syncthreads();
        A* const before = now;
        now = next, next = before;
      }
    }
    tile.store(now, grad_x + map);
  }
  tile.store_grad_weights(kernels, grad_kernels, factors, grad_weights + first);
}

}  // namespace message_passing
