/* The device that the stand-in libraries share: memory, streams, graphs, work and its count.
 *
 * libcudart defines these functions; cuBLAS and cuDNN hand their calls to it as work.
 */
#ifndef CUDA_STAND_IN_DEVICE_H
#define CUDA_STAND_IN_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

/* error codes of the CUDA runtime */
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, BAD_CAPTURE = 900 };

/* cudaMemcpyKind */
enum copy_kind { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, BY_ADDRESS };

/* how the bytes that a pointer refers to are read and written */
enum element { FLOATING, WHOLE_NUMBER, UNTYPED };

struct place {
    void *address;
    int size; /* bytes of one element */
    enum element element;
    bool listed; /* the address is that of a list of addresses in device memory */
};

#define MOST_PLACES 64

/* One piece of work: a kernel, or a copy of `rows` times `width` bytes, or a fill. */
struct work {
    enum { KERNEL, COPY, FILL } kind;
    const char *name;
    int reads, writes;
    struct place read[MOST_PLACES], written[MOST_PLACES];
    char *to;
    const char *from;
    size_t width, rows, to_pitch, from_pitch;
    enum copy_kind direction;
    int value; /* of a fill */
};

EXPORT struct work stand_in_work(const char *name);
EXPORT void stand_in_reads(struct work *work, const void *address, int size, enum element element);
EXPORT void stand_in_reads_list(struct work *work, const void *list, int size,
                                enum element element);
EXPORT void stand_in_writes_list(struct work *work, const void *list, int size,
                                 enum element element);
EXPORT void stand_in_writes(struct work *work, const void *address, int size, enum element element);

/* Does the work now, or adds it to the graph that the stream is capturing. */
EXPORT int stand_in_submit(struct work work, void *stream);

/* The device memory or pinned host memory that an address lies in. */
bool is_device(const void *address);
bool is_pinned(const void *address);

/* What is counted. `report.c` gives each count by its name. */
#define COUNTED(EACH)                                                                           \
    EACH(ALLOCATIONS)          /* of device memory */                                           \
    EACH(FREES)                                                                                 \
    EACH(LIVE_ALLOCATIONS)                                                                      \
    EACH(LIVE_BYTES)                                                                            \
    EACH(KERNELS)              /* that ran, in replayed graphs too */                           \
    EACH(GRAPH_KERNELS)        /* that ran in replayed graphs */                                \
    EACH(UNKNOWN_KERNELS)      /* without a tensor that is known to be read or written */       \
    EACH(LOST_POINTERS)        /* reads and writes of memory that is not, or no more, there */  \
    EACH(COPIES)                                                                                \
    EACH(BYTES_TO_DEVICE)                                                                       \
    EACH(BYTES_TO_HOST)                                                                         \
    EACH(BYTES_ON_DEVICE)                                                                       \
    EACH(CAPTURES)                                                                              \
    EACH(LAST_GRAPH_KERNELS)   /* in the graph that was captured last */                        \
    EACH(REPLAYS)                                                                               \
    EACH(FORBIDDEN_IN_CAPTURE) /* calls that CUDA refuses, and copies of host memory */

#define ENUMERATOR(name) name,
enum count { COUNTED(ENUMERATOR) COUNTS };
void add(enum count which, long amount);
void set(enum count which, long value);
void note_kernel(const char *name);
EXPORT void stand_in_complain(const char *what, const char *where);

#endif
