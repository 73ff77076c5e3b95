// pensive's CUDA kernels. What they compute is tried without a GPU: tests/cuda runs their text as C++.
#include "program.cuh"
