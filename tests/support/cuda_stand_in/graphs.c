/* Streams and captured graphs. A stream does its work at once; while it captures, it only notes it. */
#include "graphs.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "work.h"

struct stream {
    struct graph *capturing;
};

struct graph {
    struct work *nodes;
    size_t count, capacity;
    long kernels;
};

static struct stream default_stream;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int captures_running;
static struct stream *last_captured;

static struct stream *stream_of(void *handle) {
    /* 0, 1 and 2 are the default, the legacy and the thread's own stream */
    return (uintptr_t)handle <= 2 ? &default_stream : handle;
}

void *new_stream(void) { return calloc(1, sizeof(struct stream)); }
void end_stream(void *stream) { free(stream); }

bool is_capturing(void *stream) { return stream_of(stream)->capturing != NULL; }

bool any_capture(void) { return captures_running > 0; }

void not_in_capture(const char *function) {
    if (any_capture()) {
        add(FORBIDDEN_IN_CAPTURE, 1);
        stand_in_complain("called while a stream is capturing", function);
    }
}

int begin_capture(void *handle) {
    struct stream *stream = stream_of(handle);
    if ((stream == &default_stream && !memory_by_tensor()) || stream->capturing)
        return BAD_CAPTURE;
    stream->capturing = calloc(1, sizeof(struct graph));
    captures_running++;
    last_captured = stream;
    return SUCCESS;
}

int end_capture(void *handle, struct graph **graph) {
    struct stream *stream = stream_of(handle);
    if (stream->capturing == NULL)
        return BAD_CAPTURE;
    *graph = stream->capturing;
    stream->capturing = NULL;
    captures_running--;
    add(CAPTURES, 1);
    set(LAST_GRAPH_KERNELS, (*graph)->kernels);
    return SUCCESS;
}

static void append(struct graph *graph, struct work work) {
    if (graph->count == graph->capacity) {
        graph->capacity = graph->capacity ? 2 * graph->capacity : 256;
        graph->nodes = realloc(graph->nodes, graph->capacity * sizeof *graph->nodes);
    }
    if (work.kind == COPY && !is_device(work.from)) {
        /* each replay would read it again, when the library may have written something else there */
        stand_in_complain("captures a copy of host memory", "cudaMemcpyAsync");
        add(FORBIDDEN_IN_CAPTURE, 1);
        return;
    }
    graph->nodes[graph->count++] = work;
    graph->kernels += work.kind == KERNEL;
}

int stand_in_submit(struct work work, void *handle) {
    pthread_mutex_lock(&lock);
    struct graph *graph = stream_of(handle)->capturing;
    if (graph)
        append(graph, work);
    else
        do_work(&work);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

/* Submits work that belongs to no stream: to the one that captures, if there is one. */
int submit_anywhere(struct work work) {
    return stand_in_submit(work, any_capture() ? last_captured : NULL);
}

/* cudaGraphInstantiate: the executable graph has its own nodes, as the graph is destroyed first. */
struct graph *instantiated(const struct graph *graph) {
    struct graph *copy = malloc(sizeof *copy);
    *copy = *graph;
    copy->nodes = malloc(graph->count * sizeof *copy->nodes);
    memcpy(copy->nodes, graph->nodes, graph->count * sizeof *copy->nodes);
    return copy;
}

void end_graph(struct graph *graph) {
    if (graph == NULL)
        return;
    free(graph->nodes);
    free(graph);
}

int replay(const struct graph *graph) {
    pthread_mutex_lock(&lock);
    add(REPLAYS, 1);
    add(GRAPH_KERNELS, graph->kernels);
    for (size_t i = 0; i < graph->count; i++)
        do_work(&graph->nodes[i]);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
