/* Work: what a kernel or a copy does to memory, now or when a captured graph is replayed.
 *
 * A kernel computes nothing. It mixes its name with the first element of every tensor that it
 * reads, and writes the mixture to the first element of every tensor that it writes. So the first
 * element of a network's output depends on the first element of each of its inputs, equal inputs
 * give equal outputs, and a run that wrote to the wrong tensor gives itself away.
 */
#include "work.h"

#include <stdlib.h>
#include <string.h>

struct work stand_in_work(const char *name) {
    struct work work = {.kind = KERNEL, .name = name};
    return work;
}

static void append(struct place *places, int *count, struct place place, const char *name) {
    if (place.address == NULL)
        return;
    if (*count == MOST_PLACES) {
        stand_in_complain("more tensors than the stand-in has room for", name);
        return;
    }
    places[(*count)++] = place;
}

void stand_in_reads(struct work *work, const void *address, int size, enum element element) {
    struct place place = {(void *)address, size, element, false};
    append(work->read, &work->reads, place, work->name);
}

void stand_in_writes(struct work *work, const void *address, int size, enum element element) {
    struct place place = {(void *)address, size, element, false};
    append(work->written, &work->writes, place, work->name);
}

void stand_in_reads_list(struct work *work, const void *list, int size, enum element element) {
    struct place place = {(void *)list, size, element, true};
    append(work->read, &work->reads, place, work->name);
}

void stand_in_writes_list(struct work *work, const void *list, int size, enum element element) {
    struct place place = {(void *)list, size, element, true};
    append(work->written, &work->writes, place, work->name);
}

/* The last uploads, which say how long a list of addresses in device memory is. */
enum { UPLOADS = 256 };
static struct {
    const void *to;
    size_t width;
} uploads[UPLOADS];
static size_t last_upload;

static void note_upload(const void *to, size_t width) {
    last_upload = (last_upload + 1) % UPLOADS;
    uploads[last_upload].to = to;
    uploads[last_upload].width = width;
}

static int length_of(const struct place *list) {
    for (size_t i = 0; i < UPLOADS; i++) {
        size_t at = (last_upload + UPLOADS - i) % UPLOADS;
        if (uploads[at].to == list->address)
            return uploads[at].width / sizeof(void *);
    }
    stand_in_complain("has a list of tensors that was not uploaded", "kernel");
    return 0;
}

/* Copies places with the lists among them replaced by what they list; the number of places. */
static int listed(struct place *all, const struct place *places, int count) {
    int used = 0;
    for (int i = 0; i < count; i++) {
        if (!places[i].listed) {
            append(all, &used, places[i], "kernel");
            continue;
        }
        int length = is_device(places[i].address) ? length_of(&places[i]) : 0;
        for (int j = 0; j < length; j++) {
            void *address = ((void **)places[i].address)[j];
            append(all, &used, (struct place){address, places[i].size, places[i].element, false},
                   "kernel");
        }
    }
    return used;
}

/* FNV-1a */
static uint32_t mixed(uint32_t hash, const void *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 16777619u;
    return hash;
}

/* Spreads every bit of a hash over all bits (MurmurHash3's last step). */
static uint32_t spread(uint32_t hash) {
    hash = (hash ^ hash >> 16) * 0x85ebca6bu;
    hash = (hash ^ hash >> 13) * 0xc2b2ae35u;
    return hash ^ hash >> 16;
}

/* A number in [0.5, 1) as float32; where the type is not known, one that is finite as two float16
 * or two bfloat16 numbers as well. */
static uint32_t as_number(uint32_t hash, bool known) {
    if (known)
        return (spread(hash) & 0x007fffffu) | 0x3f000000u;
    return (spread(hash) & 0x007f03ffu) | 0x3f003c00u;
}

static uint64_t element_at(const struct place *place) {
    uint64_t value = 0;
    memcpy(&value, place->address, place->size < 8 ? place->size : 8);
    return value;
}

/* Kernels that only move elements see floats as whole numbers: such values are too large for one. */
static bool looks_floating(const struct place *place) {
    return place->element == FLOATING || (place->size < 8 && element_at(place) > 0xff);
}

static void store(const struct place *place, uint32_t hash, bool floating, uint64_t first) {
    uint32_t number = as_number(hash, place->size == 4 && place->element == FLOATING);
    uint64_t bits = place->size == 2 ? number & 0xffff : number;
    if (place->size == 1)
        bits = hash & 1;
    else if (place->element != FLOATING && (!floating || place->size >= 8))
        bits = first > 0xffff ? 0 : first; /* still good as an index */
    memcpy(place->address, &bits, place->size < 8 ? place->size : 8);
}

static void compute(const struct work *work) {
    uint32_t hash = mixed(2166136261u, work->name, strlen(work->name));
    struct place read[MOST_PLACES], written[MOST_PLACES];
    int reads = listed(read, work->read, work->reads);
    int writes = listed(written, work->written, work->writes);
    bool floating = false;
    uint64_t first = 0;
    int known = 0;
    for (int i = 0; i < reads; i++) {
        const struct place *place = &read[i];
        if (!is_device(place->address)) {
            add(LOST_POINTERS, 1);
            stand_in_complain("reads memory that is not the device's", work->name);
            continue;
        }
        uint64_t value = element_at(place);
        hash = mixed(hash, &value, place->size < 8 ? place->size : 8);
        floating = floating || looks_floating(place);
        if (known++ == 0)
            first = value;
    }
    for (int i = 0; i < writes; i++) {
        if (is_device(written[i].address)) {
            store(&written[i], hash, floating, first);
            continue;
        }
        add(LOST_POINTERS, 1);
        stand_in_complain("writes memory that is not the device's", work->name);
    }
    if (work->reads + work->writes == 0)
        add(UNKNOWN_KERNELS, 1);
    add(KERNELS, 1);
    note_kernel(work->name);
}

static enum copy_kind direction(const struct work *work) {
    bool from = is_device(work->from), to = is_device(work->to);
    return from ? (to ? DEVICE_TO_DEVICE : DEVICE_TO_HOST) : (to ? HOST_TO_DEVICE : HOST_TO_HOST);
}

static void copy(const struct work *work) {
    enum copy_kind found = direction(work);
    if (work->direction != BY_ADDRESS && work->direction != found) {
        /* an address that was the device's when the call was made, or captured, is not any more */
        add(LOST_POINTERS, 1);
        stand_in_complain("copies between other kinds of memory than it says", "cudaMemcpy");
        return;
    }
    for (size_t row = 0; row < work->rows; row++)
        memmove(work->to + row * work->to_pitch, work->from + row * work->from_pitch, work->width);
    static const enum count bytes[] = {[HOST_TO_DEVICE] = BYTES_TO_DEVICE,
                                       [DEVICE_TO_HOST] = BYTES_TO_HOST,
                                       [DEVICE_TO_DEVICE] = BYTES_ON_DEVICE};
    if (found == HOST_TO_DEVICE)
        note_upload(work->to, work->width);
    add(COPIES, 1);
    if (found != HOST_TO_HOST)
        add(bytes[found], (long)(work->width * work->rows));
}

void do_work(const struct work *work) {
    if (work->kind == KERNEL)
        compute(work);
    else if (work->kind == COPY)
        copy(work);
    else if (is_device(work->to))
        memset(work->to, work->value, work->width);
    else {
        add(LOST_POINTERS, 1);
        stand_in_complain("fills memory that is not the device's", "cudaMemset");
    }
}
