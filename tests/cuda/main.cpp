// Reads requests on stdin, runs a kernel on each, writes the memory that it may have changed. Little-endian: u32 length of the
// name, the name; u32 grid x, y, z, threads; u32 number of memories, of each u32 bytes and the bytes; u32 number of scalars, of
// each 4 bytes; u32 index of the memory that is written.
#include <cstdio>
#include <string>

#include "kernels.cu"

struct Request {
  std::string name;
  dim3 grid;
  unsigned threads;
  std::vector<std::vector<char>> memories;
  std::vector<unsigned> scalars;
  unsigned result;

  template <class T> T *memory(size_t i) { return (T *)memories.at(i).data(); }
  float *f(size_t i) { return memory<float>(i); }
  unsigned *u(size_t i) { return memory<unsigned>(i); }
  __half *h(size_t i) { return memory<__half>(i); }
  int n(size_t i) const { return (int)scalars.at(i); }
  float x(size_t i) const {
    float value;
    std::memcpy(&value, &scalars.at(i), 4);
    return value;
  }
};

static void read(void *to, size_t bytes) {
  if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(1);
}

static unsigned read_u32() {
  unsigned value;
  read(&value, 4);
  return value;
}

static bool read_request(Request &r) {
  unsigned len;
  if (std::fread(&len, 4, 1, stdin) != 1) return false;
  r.name.resize(len);
  read(&r.name[0], len);
  r.grid.x = read_u32(), r.grid.y = read_u32(), r.grid.z = read_u32(), r.threads = read_u32();
  r.memories.resize(read_u32());
  for (auto &memory : r.memories) {
    memory.resize(read_u32());
    read(memory.data(), memory.size());
  }
  r.scalars.resize(read_u32());
  for (auto &scalar : r.scalars) scalar = read_u32();
  r.result = read_u32();
  return true;
}

#define ATTEND_CASE(NAME)                                                                                              \
  if (r.name == #NAME) return NAME(r.f(0), r.h(1), r.h(2), r.u(3), r.u(4), r.f(5), r.n(0), r.n(1), r.n(2), r.n(3), r.n(4), r.n(5), r.n(6), r.x(7));

static void kernel(Request &r) {
  if (r.name == "add_rms_norm") return add_rms_norm(r.f(0), r.f(1), r.f(2), r.f(3), r.n(0), r.n(1), r.x(2));
  if (r.name == "swiglu") return swiglu(r.f(0), r.f(1), r.f(2), r.n(0));
  if (r.name == "rotate_heads")
    return rotate_heads(r.f(0), r.f(1), r.f(2), r.f(3), r.f(4), r.f(5), r.n(0), r.n(1), r.x(2), r.n(3), r.n(4), r.n(5), r.n(6));
  if (r.name == "append") return append(r.h(0), r.f(1), r.u(2), r.n(0), r.n(1));
  if (r.name == "merge_splits")
    return merge_splits(r.f(0), r.u(1), r.f(2), r.f(3), r.n(0), r.n(1), r.n(2), r.n(3), r.n(4));
  ATTEND_CASE(attend_1_64)
  ATTEND_CASE(attend_4_64)
  ATTEND_CASE(attend_8_64)
  ATTEND_CASE(attend_1_128)
  ATTEND_CASE(attend_4_128)
  ATTEND_CASE(attend_8_128)
  ATTEND_CASE(attend_2_576)
  std::fprintf(stderr, "there is no kernel %s\n", r.name.c_str());
  std::exit(1);
}

int main() {
  Request request;
  while (read_request(request)) {
    emulation::launch(request.grid, request.threads, [&] { kernel(request); });
    const auto &result = request.memories.at(request.result);
    std::fwrite(result.data(), 1, result.size(), stdout);
    std::fflush(stdout);
  }
}
