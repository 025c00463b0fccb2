// The kernels of Linear and the elementwise ops for one instruction set; flags: CMakeLists.txt.
#define LS_ISA generic
#include "backend/cpu/linear_kernels-inl.h"
