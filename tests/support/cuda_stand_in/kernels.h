/* Kernels by the address that the program knows them by; see `kernels.c`. */
#ifndef CUDA_STAND_IN_KERNELS_H
#define CUDA_STAND_IN_KERNELS_H

#include "device.h"

struct function;

void register_kernel(const void *key, const char *mangled);
struct function *kernel_of(const void *key);
int launch(struct function *function, void **arguments, void *stream);

#endif
