/* Doing a piece of work; see `work.c`. */
#ifndef CUDA_STAND_IN_WORK_H
#define CUDA_STAND_IN_WORK_H

#include "device.h"

void do_work(const struct work *work);

#endif
