/* Allocation; see `memory.c`. */
#ifndef CUDA_STAND_IN_MEMORY_H
#define CUDA_STAND_IN_MEMORY_H

#include "device.h"

int allocate(void **address, size_t size, bool pinned);
int release(void *address, bool pinned);

/* Whether `tensors.c` gave memory to a session. Such a session uses the default stream, which CUDA
 * would not capture. */
bool memory_by_tensor(void);

#endif
