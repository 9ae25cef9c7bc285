/* What a test may ask: counts, the kernels that ran, and what went wrong. */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

static long counts[COUNTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* kernels by name, and complaints, each with the number of times */
struct line {
    char *text;
    long times;
};
struct tally {
    struct line *lines;
    size_t used, capacity;
};
static struct tally kernels, complaints;

void add(enum count which, long amount) { __atomic_fetch_add(&counts[which], amount, __ATOMIC_SEQ_CST); }
void set(enum count which, long value) { __atomic_store_n(&counts[which], value, __ATOMIC_SEQ_CST); }

static void note(struct tally *tally, const char *text) {
    pthread_mutex_lock(&lock);
    size_t i = 0;
    while (i < tally->used && strcmp(tally->lines[i].text, text))
        i++;
    if (i == tally->used) {
        if (tally->used == tally->capacity) {
            tally->capacity = tally->capacity ? 2 * tally->capacity : 64;
            tally->lines = realloc(tally->lines, tally->capacity * sizeof *tally->lines);
        }
        tally->lines[tally->used++] = (struct line){strdup(text), 0};
    }
    tally->lines[i].times++;
    pthread_mutex_unlock(&lock);
}

void note_kernel(const char *name) { note(&kernels, name); }

void stand_in_complain(const char *what, const char *where) {
    char text[4096];
    snprintf(text, sizeof text, "%s: %s", where, what);
    note(&complaints, text);
}

#define NAME(name) #name,
static const char *const names[] = {COUNTED(NAME)};

/* A count by its name; the smallest number if there is none of that name. */
EXPORT long stand_in_count(const char *name) {
    for (int i = 0; i < COUNTS; i++)
        if (strcmp(names[i], name) == 0)
            return __atomic_load_n(&counts[i], __ATOMIC_SEQ_CST);
    return LONG_MIN;
}

static long text_of(struct tally *tally, size_t index, char *text, size_t size) {
    pthread_mutex_lock(&lock);
    long times = -1;
    if (index < tally->used) {
        snprintf(text, size, "%s", tally->lines[index].text);
        times = tally->lines[index].times;
    }
    pthread_mutex_unlock(&lock);
    return times;
}

/* The name of a kernel that ran and how often it did, by index; -1 after the last. */
EXPORT long stand_in_kernel(size_t index, char *text, size_t size) {
    return text_of(&kernels, index, text, size);
}

/* The same for what went wrong. */
EXPORT long stand_in_complaint(size_t index, char *text, size_t size) {
    return text_of(&complaints, index, text, size);
}
