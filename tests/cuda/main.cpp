// The kernels as a library: `emulate` runs one by name on a grid, with memory of the process for that of a GPU.
#include "kernels.cu"

// `run_program` one operation after the other, each on its own grid.
static void run_program(const Program &p, unsigned shared) {
  for (unsigned i = 0; i < p.count; i++) {
    const Instruction &it = p.instructions[i];
    auto grid = [&](int k) { return (unsigned)it.grid[k]; };
    emulation::launch({grid(0), grid(1), grid(2)}, PROGRAM_THREADS, shared, [&] {
      Launched turn;
      operate(it, PLACE_OF_BLOCK, turn);
    });
  }
}

// `grid` has three numbers, `params` is the kernel's structure. 0, or 1: there is no such kernel, 2: its parameters have another size.
extern "C" int emulate(const char *name, const unsigned *grid, unsigned threads, unsigned shared, const void *params, size_t bytes) {
  if (std::string(name) == "run_program") {
    if (bytes != sizeof(Program)) return 2;
    run_program(*(const Program *)params, shared);
    return 0;
  }
  auto found = emulation::kernels().find(name);
  if (found == emulation::kernels().end()) return 1;
  if (found->second.params_bytes != bytes) return 2;
  emulation::launch({grid[0], grid[1], grid[2]}, threads, shared, [&] { found->second.run(params); });
  return 0;
}
