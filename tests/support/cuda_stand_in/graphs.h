/* Streams and captured graphs; see `graphs.c`. */
#ifndef CUDA_STAND_IN_GRAPHS_H
#define CUDA_STAND_IN_GRAPHS_H

#include "device.h"

struct graph;

void *new_stream(void);
void end_stream(void *stream);
bool is_capturing(void *stream);
bool any_capture(void);
int begin_capture(void *stream);
int end_capture(void *stream, struct graph **graph);
struct graph *instantiated(const struct graph *graph);
void end_graph(struct graph *graph);
int submit_anywhere(struct work work);
int replay(const struct graph *graph);

/* Counts a call that CUDA refuses while a stream captures. */
void not_in_capture(const char *function);

#endif
