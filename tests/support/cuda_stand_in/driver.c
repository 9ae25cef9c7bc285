/* The driver's functions (libcuda.so.1): one device of compute capability 9.0. */
#include "device.h"

EXPORT int cuInit(unsigned flags) { return (void)flags, SUCCESS; }
EXPORT int cuDeviceGet(int *device, int ordinal) { return (void)ordinal, *device = 0, SUCCESS; }
EXPORT int cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
EXPORT int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
EXPORT int cuTensorMapEncodeTiled(void) { return SUCCESS; }

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1; /* major, minor */
    return SUCCESS;
}

EXPORT int cuGetErrorName(int error, const char **text) {
    return (void)error, *text = "CUDA_ERROR_OF_THE_STAND_IN", SUCCESS;
}
EXPORT int cuGetErrorString(int error, const char **text) {
    return (void)error, *text = "error of the stand-in", SUCCESS;
}
