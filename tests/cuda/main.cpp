// The kernels as a library: `emulate` runs one by name on a grid, with memory of the process for that of a GPU.
#include "kernels.cu"

// `grid` has three numbers, `params` is the kernel's structure. 0, or 1: there is no such kernel, 2: its parameters have another size.
extern "C" int emulate(const char *name, const unsigned *grid, unsigned threads, unsigned shared, const void *params, size_t bytes) {
  auto found = emulation::kernels().find(name);
  if (found == emulation::kernels().end()) return 1;
  if (found->second.params_bytes != bytes) return 2;
  emulation::launch({grid[0], grid[1], grid[2]}, threads, shared, [&] { found->second.run(params); });
  return 0;
}
