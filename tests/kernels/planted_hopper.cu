// Kernels for sm_90a with one planted bug each, and the same kernels without it, as in planted.cu.
#include "hopper.cuh"
