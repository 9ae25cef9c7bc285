/* Device memory and pinned host memory: both are host memory, in a table of what is allocated. */
#include "memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct block {
    char *start;
    size_t size;
    bool pinned;
};

static struct block *blocks;
static size_t used, capacity;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct block *holding(const void *address, bool pinned) {
    for (size_t i = 0; i < used; i++) {
        const char *start = blocks[i].start;
        if (blocks[i].pinned == pinned && (const char *)address >= start &&
            (const char *)address < start + blocks[i].size)
            return &blocks[i];
    }
    return NULL;
}

static bool holds(const void *address, bool pinned) {
    pthread_mutex_lock(&lock);
    bool found = holding(address, pinned) != NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

bool is_device(const void *address) { return holds(address, false); }
bool is_pinned(const void *address) { return holds(address, true); }

int allocate(void **address, size_t size, bool pinned) {
    size_t rounded = (size + 511) / 512 * 512 + 512;
    char *start = aligned_alloc(512, rounded);
    if (start == NULL)
        return OUT_OF_MEMORY;
    memset(start, 0, rounded); /* so that two runs that read what nobody wrote read the same */
    pthread_mutex_lock(&lock);
    if (used == capacity) {
        capacity = capacity ? 2 * capacity : 256;
        blocks = realloc(blocks, capacity * sizeof *blocks);
    }
    blocks[used++] = (struct block){start, rounded, pinned};
    pthread_mutex_unlock(&lock);
    if (!pinned) {
        add(ALLOCATIONS, 1);
        add(LIVE_ALLOCATIONS, 1);
        add(LIVE_BYTES, (long)rounded);
    }
    *address = start;
    return SUCCESS;
}

int release(void *address, bool pinned) {
    if (address == NULL)
        return SUCCESS;
    pthread_mutex_lock(&lock);
    struct block *block = holding(address, pinned);
    if (block == NULL || block->start != address) {
        pthread_mutex_unlock(&lock);
        stand_in_complain("freed what is not allocated", pinned ? "pinned memory" : "device memory");
        return INVALID_VALUE;
    }
    size_t size = block->size;
    *block = blocks[--used];
    pthread_mutex_unlock(&lock);
    free(address);
    if (!pinned) {
        add(FREES, 1);
        add(LIVE_ALLOCATIONS, -1);
        add(LIVE_BYTES, -(long)size);
    }
    return SUCCESS;
}
