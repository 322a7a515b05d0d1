// The GPU's kernels as they are, on the CPU: blocks one after another, a std::thread for each thread of a block.

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#define __global__
#define __host__
#define __device__
#define __shared__
#define __launch_bounds__(threads)

struct Index {
  int x;
};
thread_local Index threadIdx;
Index blockIdx, blockDim;
std::barrier<>* all_threads;
void __syncthreads() { all_threads->arrive_and_wait(); }

namespace message_passing {
double memory[1 << 15];  // a block's shared memory
}

#include "../../dyn_d2/ops/message_passing/message_passing_kernels.cuh"

namespace {

using message_passing::TileShape;

template <int TAPS, int PIXELS>
void run_thread(bool back, const TileShape& shape, const float* grad, const float* x, const float* weights, float* out,
                float* grad_weights) {
  if (back) {
    message_passing::backward_kernel<float, float, TAPS, PIXELS>(shape, grad, x, weights, out, grad_weights);
  } else {
    message_passing::forward_kernel<float, float, TAPS, PIXELS>(shape, x, weights, out);
  }
}

}  // namespace

// pixels: that a thread has in registers, or 0 for kernels in shared memory. Returns whether shared memory beyond what
// was asked for was left alone.
extern "C" bool run_kernel(bool back, int pixels, int threads, int blocks, int height, int width, int window,
                           int channels_per_kernel, int steps, int segment, bool normalize, double eps,
                           const float* grad, const float* x, const float* weights, float* out, float* grad_weights) {
  const TileShape shape = {height, width, window, channels_per_kernel, steps, segment, (steps + segment - 1) / segment,
                           normalize, eps};
  const int kernels = pixels ? 0 : (back ? 2 : 1) * shape.taps() * shape.pixels();
  const int used = (back ? shape.planes() : 2) * shape.plane() + kernels;
  float* const memory = reinterpret_cast<float*>(message_passing::memory);
  const int size = sizeof(message_passing::memory) / sizeof(float);
  if (used > size) return false;
  std::barrier<> barrier(threads);
  all_threads = &barrier;
  blockDim.x = threads;
  for (int block = 0; block < blocks; ++block) {
    std::fill_n(memory, size, std::numeric_limits<float>::quiet_NaN());  // what a GPU finds there is not 0
    blockIdx.x = block;
    std::vector<std::thread> running;
    for (int i = 0; i < threads; ++i) {
      running.emplace_back([&, i] {
        threadIdx.x = i;
        const auto run = pixels == 0 ? run_thread<0, 0> : pixels == 1 ? run_thread<9, 1> : run_thread<9, 2>;
        run(back, shape, grad, x, weights, out, grad_weights);
      });
    }
    for (auto& thread : running) thread.join();
    for (int i = used; i < size; ++i) {
      if (!std::isnan(memory[i])) return false;
    }
  }
  return true;
}
