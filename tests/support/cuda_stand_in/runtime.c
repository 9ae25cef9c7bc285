/* The CUDA runtime's functions (libcudart.so.13), as far as ONNX Runtime calls them.
 *
 * Structures are written by the byte offsets of their fields in CUDA 13, so no header is needed.
 */
#include <stdlib.h>
#include <string.h>

#include "graphs.h"
#include "kernels.h"
#include "memory.h"

#define GIB (1ull << 30)

struct dim3 {
    unsigned x, y, z;
};

static void put(void *structure, size_t offset, uint64_t value, size_t size) {
    memcpy((char *)structure + offset, &value, size);
}

/* the device: an H100 by its numbers */

enum { SHARED_PER_BLOCK = 49152, SHARED_OPT_IN = 232448, SHARED_PER_PROCESSOR = 233472 };

EXPORT int cudaGetDeviceProperties(void *properties, int device) {
    (void)device;
    memset(properties, 0, 1008);
    strcpy(properties, "stand-in for sm 9.0");
    put(properties, 288, 80 * GIB, 8); /* totalGlobalMem */
    put(properties, 296, SHARED_PER_BLOCK, 8);
    put(properties, 304, 65536, 4); /* regsPerBlock */
    put(properties, 308, 32, 4);    /* warpSize */
    put(properties, 320, 1024, 4);  /* maxThreadsPerBlock */
    put(properties, 324, 1024, 4);  /* maxThreadsDim */
    put(properties, 328, 1024, 4);
    put(properties, 332, 64, 4);
    put(properties, 336, 2147483647, 4); /* maxGridSize */
    put(properties, 340, 65535, 4);
    put(properties, 344, 65535, 4);
    put(properties, 360, 9, 4);         /* major */
    put(properties, 364, 0, 4);         /* minor */
    put(properties, 384, 132, 4);       /* multiProcessorCount */
    put(properties, 596, 50 << 20, 4);  /* l2CacheSize */
    put(properties, 604, 2048, 4);      /* maxThreadsPerMultiProcessor */
    put(properties, 624, SHARED_PER_PROCESSOR, 8);
    put(properties, 668, 1, 4); /* cooperativeLaunch */
    put(properties, 672, SHARED_OPT_IN, 8);
    put(properties, 720, 1, 4); /* memoryPoolsSupported */
    return SUCCESS;
}

EXPORT int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 1: *value = 1024; break;                  /* threads of a block */
    case 8: *value = SHARED_PER_BLOCK; break;
    case 10: *value = 32; break;                   /* threads of a warp */
    case 16: *value = 132; break;                  /* multiprocessors */
    case 39: *value = 2048; break;                 /* threads of a multiprocessor */
    case 75: *value = 9; break;                    /* compute capability */
    case 76: *value = 0; break;
    case 81: *value = SHARED_PER_PROCESSOR; break;
    case 97: *value = SHARED_OPT_IN; break;
    default: *value = 1;
    }
    return SUCCESS;
}

EXPORT int cudaGetDeviceCount(int *count) { return *count = 1, SUCCESS; }
EXPORT int cudaGetDevice(int *device) { return *device = 0, SUCCESS; }
EXPORT int cudaSetDevice(int device) { return (void)device, SUCCESS; }
EXPORT int cudaDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
EXPORT int cudaRuntimeGetVersion(int *version) { return *version = 13000, SUCCESS; }
EXPORT const char *cudaGetErrorName(int error) { return (void)error, "cudaErrorOfTheStandIn"; }
EXPORT const char *cudaGetErrorString(int error) { return (void)error, "error of the stand-in"; }
EXPORT int cudaGetLastError(void) { return SUCCESS; }
EXPORT int cudaPeekAtLastError(void) { return SUCCESS; }

EXPORT int cudaDeviceSynchronize(void) {
    not_in_capture("cudaDeviceSynchronize");
    return SUCCESS;
}

/* memory */

EXPORT int cudaMalloc(void **address, size_t size) {
    not_in_capture("cudaMalloc");
    return allocate(address, size, false);
}

EXPORT int cudaMallocFromPoolAsync(void **address, size_t size, void *pool, void *stream) {
    (void)pool, (void)stream;
    return allocate(address, size, false);
}

EXPORT int cudaFree(void *address) {
    not_in_capture("cudaFree");
    return release(address, false);
}

EXPORT int cudaFreeAsync(void *address, void *stream) {
    return (void)stream, release(address, false);
}
EXPORT int cudaMallocHost(void **address, size_t size) { return allocate(address, size, true); }
EXPORT int cudaHostAlloc(void **address, size_t size, unsigned flags) {
    return (void)flags, allocate(address, size, true);
}
EXPORT int cudaFreeHost(void *address) { return release(address, true); }

EXPORT int cudaMemGetInfo(size_t *available, size_t *total) {
    *available = 70 * GIB;
    *total = 80 * GIB;
    return SUCCESS;
}

EXPORT int cudaPointerGetAttributes(void *attributes, const void *address) {
    int type = is_device(address) ? 2 : is_pinned(address) ? 1 : 0;
    memset(attributes, 0, 88);
    put(attributes, 0, type, 4);
    put(attributes, 8, type == 2 ? (uintptr_t)address : 0, 8);
    put(attributes, 16, type == 1 ? (uintptr_t)address : 0, 8);
    return SUCCESS;
}

EXPORT int cudaMemPoolCreate(void **pool, const void *properties) {
    return (void)properties, *pool = calloc(1, 64), SUCCESS;
}
EXPORT int cudaMemPoolDestroy(void *pool) { return free(pool), SUCCESS; }
EXPORT int cudaMemPoolGetAttribute(void *pool, int attribute, void *value) {
    return (void)pool, (void)attribute, memset(value, 0, 8), SUCCESS;
}
EXPORT int cudaMemPoolSetAttribute(void *pool, int attribute, void *value) {
    return (void)pool, (void)attribute, (void)value, SUCCESS;
}
EXPORT int cudaMemPoolTrimTo(void *pool, size_t size) { return (void)pool, (void)size, SUCCESS; }

/* copies */

static struct work copy_of(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                           size_t width, size_t rows, enum copy_kind direction) {
    struct work work = {.kind = COPY, .name = "copy"};
    work.to = to, work.from = from;
    work.width = width, work.rows = rows;
    work.to_pitch = to_pitch, work.from_pitch = from_pitch;
    work.direction = direction;
    return work;
}

EXPORT int cudaMemcpyAsync(void *to, const void *from, size_t size, enum copy_kind direction,
                           void *stream) {
    return size ? stand_in_submit(copy_of(to, size, from, size, size, 1, direction), stream) : SUCCESS;
}

EXPORT int cudaMemcpy(void *to, const void *from, size_t size, enum copy_kind direction) {
    not_in_capture("cudaMemcpy");
    return cudaMemcpyAsync(to, from, size, direction, NULL);
}

EXPORT int cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                             size_t width, size_t rows, enum copy_kind direction, void *stream) {
    return stand_in_submit(copy_of(to, to_pitch, from, from_pitch, width, rows, direction), stream);
}

EXPORT int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset,
                                enum copy_kind direction) {
    (void)symbol, (void)offset, (void)direction;
    return memset(to, 0, size), SUCCESS;
}

EXPORT int cudaMemsetAsync(void *to, int value, size_t size, void *stream) {
    struct work work = {.kind = FILL, .name = "fill"};
    work.to = to, work.value = value, work.width = size;
    return size ? stand_in_submit(work, stream) : SUCCESS;
}

EXPORT int cudaMemset(void *to, int value, size_t size) {
    not_in_capture("cudaMemset");
    return cudaMemsetAsync(to, value, size, NULL);
}

/* streams, events and graphs */

EXPORT int cudaStreamCreate(void **stream) { return *stream = new_stream(), SUCCESS; }
EXPORT int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    return (void)flags, *stream = new_stream(), SUCCESS;
}
EXPORT int cudaStreamDestroy(void *stream) { return end_stream(stream), SUCCESS; }

EXPORT int cudaStreamSynchronize(void *stream) {
    not_in_capture("cudaStreamSynchronize");
    return is_capturing(stream) ? BAD_CAPTURE : SUCCESS;
}

EXPORT int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return (void)stream, (void)event, (void)flags, SUCCESS;
}
EXPORT int cudaStreamBeginCapture(void *stream, int mode) {
    return (void)mode, begin_capture(stream);
}
EXPORT int cudaStreamEndCapture(void *stream, struct graph **graph) {
    return end_capture(stream, graph);
}
EXPORT int cudaStreamIsCapturing(void *stream, int *status) {
    return *status = is_capturing(stream), SUCCESS;
}
EXPORT int cudaGraphInstantiate(struct graph **executable, struct graph *graph,
                                unsigned long long flags) {
    return (void)flags, *executable = instantiated(graph), SUCCESS;
}
EXPORT int cudaGraphLaunch(struct graph *executable, void *stream) {
    return (void)stream, replay(executable);
}
EXPORT int cudaGraphDestroy(struct graph *graph) { return end_graph(graph), SUCCESS; }
EXPORT int cudaGraphExecDestroy(struct graph *graph) { return end_graph(graph), SUCCESS; }

EXPORT int cudaEventCreate(void **event) { return *event = calloc(1, 64), SUCCESS; }
EXPORT int cudaEventCreateWithFlags(void **event, unsigned flags) {
    return (void)flags, cudaEventCreate(event);
}
EXPORT int cudaEventDestroy(void *event) { return free(event), SUCCESS; }
EXPORT int cudaEventRecord(void *event, void *stream) {
    return (void)event, (void)stream, SUCCESS;
}
EXPORT int cudaEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    return (void)flags, cudaEventRecord(event, stream);
}
EXPORT int cudaEventSynchronize(void *event) { return (void)event, SUCCESS; }
EXPORT int cudaEventElapsedTime(float *milliseconds, void *start, void *end) {
    return (void)start, (void)end, *milliseconds = 1, SUCCESS;
}

EXPORT int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    if (is_capturing(stream))
        stand_in_complain("captures a call of the host", "cudaLaunchHostFunc");
    else
        function(data);
    return SUCCESS;
}

/* kernels: what the compiler generates around `kernel<<<...>>>(...)` */

struct call {
    struct dim3 grid, block;
    size_t shared;
    void *stream;
};
static _Thread_local struct call calls[16];
static _Thread_local int depth;

EXPORT unsigned __cudaPushCallConfiguration(struct dim3 grid, struct dim3 block, size_t shared,
                                            void *stream) {
    if (depth == 16)
        return 1;
    calls[depth++] = (struct call){grid, block, shared, stream};
    return 0;
}

EXPORT int __cudaPopCallConfiguration(struct dim3 *grid, struct dim3 *block, size_t *shared,
                                      void **stream) {
    if (depth == 0)
        return INVALID_VALUE;
    struct call call = calls[--depth];
    *grid = call.grid, *block = call.block, *shared = call.shared, *stream = call.stream;
    return SUCCESS;
}

EXPORT void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[4];
    return (void)binary, handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
EXPORT void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
EXPORT void __cudaRegisterVar(void) {}

EXPORT void __cudaRegisterFunction(void **handle, const char *function, char *device_function,
                                   const char *mangled) {
    (void)handle, (void)device_function;
    register_kernel(function, mangled);
}

EXPORT int __cudaGetKernel(struct function **kernel, const void *function) {
    return *kernel = kernel_of(function), SUCCESS;
}

EXPORT int __cudaLaunchKernel(struct function *kernel, struct dim3 grid, struct dim3 block,
                              void **arguments, size_t shared, void *stream) {
    (void)grid, (void)block, (void)shared;
    return launch(kernel, arguments, stream);
}

EXPORT int cudaLaunchKernel(const void *function, struct dim3 grid, struct dim3 block,
                            void **arguments, size_t shared, void *stream) {
    return __cudaLaunchKernel(kernel_of(function), grid, block, arguments, shared, stream);
}

EXPORT int cudaLaunchCooperativeKernel(const void *function, struct dim3 grid, struct dim3 block,
                                       void **arguments, size_t shared, void *stream) {
    return cudaLaunchKernel(function, grid, block, arguments, shared, stream);
}

EXPORT int cudaLaunchKernelExC(const char *configuration, const void *function, void **arguments) {
    void *stream;
    memcpy(&stream, configuration + 32, sizeof stream);
    return launch(kernel_of(function), arguments, stream);
}

EXPORT int cudaFuncGetAttributes(void *attributes, const void *function) {
    (void)function;
    memset(attributes, 0, 144);
    put(attributes, 24, 1024, 4);          /* maxThreadsPerBlock */
    put(attributes, 28, 32, 4);            /* numRegs */
    put(attributes, 44, SHARED_OPT_IN, 4); /* maxDynamicSharedSizeBytes */
    return SUCCESS;
}
EXPORT int cudaFuncSetAttribute(void) { return SUCCESS; }
EXPORT int cudaKernelSetAttributeForDevice(void) { return SUCCESS; }
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) {
    return *blocks = 1, SUCCESS;
}

/* kernels that a library loads by itself have no names here */
EXPORT int cudaLibraryLoadData(void **library) { return *library = calloc(1, 64), SUCCESS; }
EXPORT int cudaLibraryUnload(void *library) { return free(library), SUCCESS; }
EXPORT int cudaLibraryGetKernel(struct function **kernel) {
    return *kernel = kernel_of(NULL), SUCCESS;
}

EXPORT int cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                            unsigned long long flags, int *result) {
    (void)symbol, (void)version, (void)flags;
    *function = NULL;
    if (result)
        *result = 1; /* not found */
    return SUCCESS;
}
