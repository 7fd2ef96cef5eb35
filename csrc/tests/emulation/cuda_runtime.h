// cuda_runtime.h - CUDA on the CPU, slow and exact: the kernels are tested without a GPU.
//
// Stands in for the header of the CUDA toolkit where a C++ compiler compiles the CUDA sources. The
// threads of a block are fibers of one thread, which run in an order that differs from pass to pass
// and give way where they wait for each other. It finds wrong indices, missing barriers that
// show in some order, barriers that not all threads reach, and reads past the shared memory.
#pragma once
#include <torch/csrc/stable/macros.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaStream_t = void*;
using cudaError_t = int;
enum { cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 99 << 10;  // the least of those that have 64-bit atomics and more than 48 KB
  return 0;
}
#undef STD_CUDA_CHECK  // it asks a CUDA build of torch what an error means
#define STD_CUDA_CHECK(call) static_cast<void>(call)
using std::max;
using std::min;

struct EmulatedIndex {
  unsigned x = 0, y = 0, z = 0;
};
inline EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false, waits_for_block = false, waits_for_warp = false;
  uint64_t slot = 0;  // what it shows to its warp
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  int current = 0;
  std::function<void()> body;
  std::vector<unsigned char> shared;
};
inline Block block;

inline void give_way() {
  const EmulatedIndex thread = threadIdx;
  swapcontext(&block.fibers[static_cast<size_t>(block.current)].context, &block.scheduler);
  threadIdx = thread;
}

inline void enter() {
  block.body();
  block.fibers[static_cast<size_t>(block.current)].done = true;
  swapcontext(&block.fibers[static_cast<size_t>(block.current)].context, &block.scheduler);
}

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s in block %u\n", what, blockIdx.x);
  std::abort();
}

// Lets those go on who wait and of whom nobody is missing.
template <class Waits>
bool release(size_t begin, size_t end, bool all_must_be_there, Waits waits) {
  size_t waiting = 0, done = 0;
  for (size_t i = begin; i < end; ++i) {
    done += block.fibers[i].done;
    waiting += !block.fibers[i].done && block.fibers[i].*waits;
  }
  if (waiting == 0 || waiting + done < end - begin) return false;
  if (all_must_be_there && done != 0) fail("a warp operation after a thread has left its warp");
  for (size_t i = begin; i < end; ++i) block.fibers[i].*waits = false;
  return true;
}

inline void run_block(size_t threads) {
  if (block.fibers.size() < threads) block.fibers.resize(threads);
  for (size_t i = 0; i < threads; ++i) {
    Fiber& f = block.fibers[i];
    f.done = f.waits_for_block = f.waits_for_warp = false;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
  }
  for (size_t pass = 0, left = threads; left > 0; ++pass) {
    bool moved = false;
    for (size_t k = 0; k < threads; ++k) {  // an odd factor visits each of 2^n threads once
      const size_t i = (pass % 2 == 0 ? k : threads - 1 - k) * 37 % threads;
      Fiber& f = block.fibers[i];
      if (f.done || f.waits_for_block || f.waits_for_warp) continue;
      block.current = static_cast<int>(i);
      threadIdx.x = static_cast<unsigned>(i);
      swapcontext(&block.scheduler, &f.context);
      moved = true;
      left -= f.done;
    }
    for (size_t w = 0; w < threads; w += kWarp)
      moved |= release(w, std::min(w + kWarp, threads), true, &Fiber::waits_for_warp);
    moved |= release(0, threads, false, &Fiber::waits_for_block);
    if (!moved && left > 0) fail("threads wait for each other forever");
  }
}

inline void wait_for_warp() {
  block.fibers[static_cast<size_t>(block.current)].waits_for_warp = true;
  give_way();
}

// The value that lane `from` of the warp shows.
template <class T>
T exchange(T value, int from) {
  const int own = block.current, first = own / kWarp * kWarp;
  std::memcpy(&block.fibers[static_cast<size_t>(own)].slot, &value, sizeof value);
  wait_for_warp();
  T result;
  std::memcpy(&result, &block.fibers[static_cast<size_t>(first + from)].slot, sizeof result);
  wait_for_warp();
  return result;
}
}  // namespace emulation

inline void* emulated_shared_memory() { return emulation::block.shared.data(); }

template <class... Parameters, class... Arguments>
void emulated_launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared,
                     const Arguments&... arguments) {
  if (blocks < 1 || blocks > INT32_MAX) emulation::fail("the grid is empty or too large");
  gridDim.x = static_cast<unsigned>(blocks);
  blockDim.x = static_cast<unsigned>(threads);
  emulation::block.body = [&] { kernel(arguments...); };
  for (int64_t b = 0; b < blocks; ++b) {
    blockIdx.x = static_cast<unsigned>(b);
    emulation::block.shared.assign(shared, 0xA5);  // not zeros: nobody clears it
    emulation::run_block(static_cast<size_t>(threads));
  }
}

inline void __syncthreads() {
  emulation::block.fibers[static_cast<size_t>(emulation::block.current)].waits_for_block = true;
  emulation::give_way();
}

inline int emulated_lane() { return emulation::block.current % emulation::kWarp; }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulation::exchange(value, from);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulation::exchange(value, emulated_lane() ^ mask);
}

template <class T>
T __shfl_down_sync(unsigned, T value, int distance) {
  const int from = emulated_lane() + distance;
  return emulation::exchange(value, from < emulation::kWarp ? from : emulated_lane());
}

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

template <class T>
T __ldg(const T* from) {
  return *from;
}

template <class T>
void __stwb(T* to, T value) {
  *to = value;
}

template <class T, class U>
T atomicAdd(T* at, U value) {
  const T old = *at;
  *at = old + static_cast<T>(value);
  return old;
}

template <class T>
T atomicMax(T* at, T value) {
  const T old = *at;
  *at = old < value ? value : old;
  return old;
}
