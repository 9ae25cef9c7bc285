/* Device memory for one tensor at a time, zero when the tensor begins.
 *
 * Kernels write only the first element of a tensor, so a copy of its later part reads what an
 * earlier tensor left in the same memory. ONNX Runtime's arena makes that depend on all that ran
 * before. A session whose memory comes from here (`gpu_external_alloc`) reads zeros there instead:
 * captured and uncaptured runs can be compared to the bit. A freed tensor's memory is handed out
 * again, as an arena's is; that of graphs to graphs only, as their replays write it.
 */
#include <pthread.h>
#include <stdlib.h>

#include "graphs.h"
#include "memory.h"

struct tensor {
    void *address;
    size_t size;
    bool in_graph;
    struct tensor *next;
};

static struct tensor *live, *freed, *freed_by_graphs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Takes a tensor from a list: the first of that address, or of that size if there is no address. */
static struct tensor *taken(struct tensor **list, const void *address, size_t size) {
    for (; *list; list = &(*list)->next) {
        struct tensor *found = *list;
        if (address ? found->address != address : found->size != size)
            continue;
        *list = found->next;
        return found;
    }
    return NULL;
}

static void put(struct tensor **list, struct tensor *tensor) {
    tensor->next = *list;
    *list = tensor;
}

static struct tensor *made(size_t size) {
    struct tensor *tensor = calloc(1, sizeof *tensor);
    tensor->size = size;
    if (allocate(&tensor->address, size, false) == SUCCESS)
        return tensor;
    free(tensor);
    return NULL;
}

bool memory_by_tensor(void) {
    pthread_mutex_lock(&lock);
    bool any = live || freed || freed_by_graphs;
    pthread_mutex_unlock(&lock);
    return any;
}

EXPORT void *stand_in_begin_tensor(size_t size) {
    bool in_graph = any_capture();
    pthread_mutex_lock(&lock);
    struct tensor *tensor = taken(in_graph ? &freed_by_graphs : &freed, NULL, size);
    if (tensor == NULL)
        tensor = made(size);
    if (tensor) {
        tensor->in_graph = in_graph;
        put(&live, tensor);
    }
    pthread_mutex_unlock(&lock);
    if (tensor == NULL)
        return NULL;
    struct work zero = {.kind = FILL, .name = "new tensor"};
    zero.to = tensor->address, zero.width = size;
    submit_anywhere(zero);
    return tensor->address;
}

EXPORT void stand_in_end_tensor(void *address) {
    pthread_mutex_lock(&lock);
    struct tensor *tensor = address ? taken(&live, address, 0) : NULL;
    if (tensor)
        put(tensor->in_graph ? &freed_by_graphs : &freed, tensor);
    pthread_mutex_unlock(&lock);
    if (address && tensor == NULL)
        stand_in_complain("freed what is not allocated", "a tensor's memory");
}
