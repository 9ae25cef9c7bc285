/* Kernels: their names and parameters, and how a launch becomes work.
 *
 * CUDA's compiler registers every kernel under its mangled C++ name, which contains the types of
 * its parameters. `T const *` is read and `T *` is written; an array of pointers, by value
 * (ONNX Runtime's TArray) or in device memory (`T **`), is followed. A parameter block (`...Params`) of an attention kernel holds
 * query, key, value and mask in its first four words, and what is written later.
 */
#define _GNU_SOURCE
#include "kernels.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PARAMETERS = 64, BLOCK_WORDS = 32, BLOCK_READ_WORDS = 4 };

enum parameter_kind {
    BY_VALUE,
    READ,
    WRITTEN,
    READ_ARRAY, /* of addresses, by value */
    WRITTEN_ARRAY,
    READ_LIST, /* of addresses, in device memory */
    WRITTEN_LIST,
    BLOCK
};

struct parameter {
    enum parameter_kind kind;
    int size;
    enum element element;
};

struct function {
    const void *key;
    const char *mangled;
    char *name; /* demangled; NULL until the first launch */
    int parameters;
    struct parameter parameter[MOST_PARAMETERS];
};

/* functions by key, with open addressing */
static struct function **table;
static size_t used, capacity;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct function unknown = {.mangled = "unknown kernel"};

static size_t slot_of(const void *key) {
    size_t slot = ((uintptr_t)key >> 4) * 0x9E3779B97F4A7C15ull % capacity;
    while (table[slot] && table[slot]->key != key)
        slot = (slot + 1) % capacity;
    return slot;
}

static void grow(void) {
    struct function **old = table;
    size_t count = capacity;
    capacity = capacity ? 2 * capacity : 1 << 14;
    table = calloc(capacity, sizeof *table);
    for (size_t i = 0; i < count; i++)
        if (old[i])
            table[slot_of(old[i]->key)] = old[i];
    free(old);
}

void register_kernel(const void *key, const char *mangled) {
    pthread_mutex_lock(&lock);
    if (2 * used >= capacity)
        grow();
    size_t slot = slot_of(key);
    if (table[slot] == NULL) {
        table[slot] = calloc(1, sizeof **table);
        table[slot]->key = key;
        used++;
    }
    table[slot]->mangled = mangled;
    pthread_mutex_unlock(&lock);
}

struct function *kernel_of(const void *key) {
    pthread_mutex_lock(&lock);
    struct function *found = capacity ? table[slot_of(key)] : NULL;
    pthread_mutex_unlock(&lock);
    return found ? found : &unknown;
}

static char *demangled(const char *mangled) {
    static char *(*demangle)(const char *, char *, size_t *, int *);
    if (demangle == NULL) {
        void *library = dlopen("libstdc++.so.6", RTLD_NOW);
        *(void **)&demangle = library ? dlsym(library, "__cxa_demangle") : NULL;
    }
    int status = -1;
    char *name = demangle ? demangle(mangled, NULL, NULL, &status) : NULL;
    return status == 0 ? name : strdup(mangled);
}

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static void set_element(struct parameter *parameter, const char *type) {
    static const struct {
        const char *name;
        int size;
        enum element element;
    } known[] = {
        {"double", 8, FLOATING},       {"float", 4, FLOATING},
        {"half", 2, FLOATING},         {"half_t", 2, FLOATING},
        {"bfloat16", 2, FLOATING},     {"bfloat16_t", 2, FLOATING},
        {"BFloat16", 2, FLOATING},     {"MLFloat16", 2, FLOATING},
        {"long", 8, WHOLE_NUMBER},     {"long long", 8, WHOLE_NUMBER},
        {"int", 4, WHOLE_NUMBER},      {"short", 2, WHOLE_NUMBER},
        {"bool", 1, WHOLE_NUMBER},     {"char", 1, WHOLE_NUMBER},
    };
    parameter->size = 4;
    parameter->element = UNTYPED;
    size_t longest = 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (!ends_with(type, known[i].name) || strlen(known[i].name) < longest)
            continue;
        longest = strlen(known[i].name);
        parameter->size = known[i].size;
        parameter->element = known[i].element;
    }
}

static struct parameter parsed(char *type) {
    struct parameter parameter = {.kind = BY_VALUE};
    size_t length = strlen(type);
    if (strstr(type, "TArray<") && strstr(type, "*,")) {
        parameter.kind = strstr(type, "const*,") ? READ_ARRAY : WRITTEN_ARRAY;
        *strstr(type, "*,") = 0;
        type = strstr(type, "TArray<") + strlen("TArray<");
    } else if (length && type[length - 1] == '*') {
        type[--length] = 0;
        bool list = length && type[length - 1] == '*';
        if (list)
            type[length - 1] = 0;
        bool read = ends_with(type, " const");
        parameter.kind = list ? (read ? READ_LIST : WRITTEN_LIST) : read ? READ : WRITTEN;
    } else if (ends_with(type, "Params") || ends_with(type, "_params"))
        parameter.kind = BLOCK;
    if (ends_with(type, "* const")) /* `T * const *` */
        type[strlen(type) - strlen("* const")] = 0, parameter.kind = READ_LIST;
    if (ends_with(type, " const"))
        type[strlen(type) - strlen(" const")] = 0;
    set_element(&parameter, type);
    return parameter;
}

static bool is_read(enum parameter_kind kind) {
    return kind == READ || kind == READ_ARRAY || kind == READ_LIST;
}

/* Sets the size of a `void` or vector element: that of the kernel's other pointers, or of its first
 * template argument, which is a type or a size. A vector of several elements is read by the two
 * bytes that its first one has at least, and written by four. */
static void size_untyped(struct function *function) {
    int size = 8;
    for (int i = 0; i < function->parameters; i++) {
        const struct parameter *each = &function->parameter[i];
        if (each->kind != BY_VALUE && each->element != UNTYPED && each->size < size)
            size = each->size;
    }
    const char *arguments = strchr(function->name, '<');
    if (size == 8 && arguments) {
        char first[64] = "";
        size_t length = strcspn(arguments + 1, ",>");
        memcpy(first, arguments + 1, length < 63 ? length : 63);
        struct parameter argument;
        set_element(&argument, first);
        size = atoi(first) ? atoi(first) : argument.element == UNTYPED ? 8 : argument.size;
    }
    for (int i = 0; i < function->parameters; i++) {
        struct parameter *each = &function->parameter[i];
        if (each->element == UNTYPED)
            each->size = size < 8 ? size : is_read(each->kind) ? 2 : 4;
    }
}

/* Where the parameter list of a demangled name begins, after its bracket. */
static char *parameter_list(char *name) {
    int depth = 0;
    for (char *at = name + strlen(name) - 1; at >= name; at--) {
        depth += (*at == ')') - (*at == '(');
        if (*at == '(' && depth == 0)
            return at + 1;
    }
    return NULL;
}

static void parse(struct function *function) {
    function->name = demangled(function->mangled);
    char *copy = strdup(function->name), *start = parameter_list(copy);
    if (start == NULL) {
        free(copy);
        return;
    }
    int depth = 0;
    for (char *at = start; *at; at++) {
        bool end = depth == 0 && (*at == ',' || *at == ')');
        depth += strchr("<({[", *at) != NULL;
        depth -= !end && strchr(">)}]", *at) != NULL;
        if (!end)
            continue;
        bool last = *at == ')';
        *at = 0;
        while (*start == ' ')
            start++;
        if (*start && function->parameters < MOST_PARAMETERS)
            function->parameter[function->parameters++] = parsed(start);
        start = at + 1;
        if (last)
            break;
    }
    free(copy);
    size_untyped(function);
}

static void add_place(struct work *work, bool read, const void *address, int size,
                      enum element element) {
    if (read)
        stand_in_reads(work, address, size, element);
    else
        stand_in_writes(work, address, size, element);
}

/* TArray: a 32-bit count, then the elements. */
static void add_array(struct work *work, bool read, const char *array,
                      const struct parameter *parameter) {
    int count = *(const int *)array;
    void *const *pointers = (void *const *)(array + sizeof(void *));
    for (int i = 0; i < count && i < 32; i++)
        add_place(work, read, pointers[i], parameter->size, parameter->element);
}

static void add_block(struct work *work, void *const *words) {
    int size = strstr(work->name, "<float,") ? 4 : 2;
    for (int i = 0; i < BLOCK_WORDS; i++)
        if (is_device(words[i]))
            add_place(work, i < BLOCK_READ_WORDS, words[i], size, FLOATING);
}

int launch(struct function *function, void **arguments, void *stream) {
    pthread_mutex_lock(&lock);
    if (function->name == NULL)
        parse(function);
    pthread_mutex_unlock(&lock);
    struct work work = stand_in_work(function->name);
    for (int i = 0; i < function->parameters; i++) {
        const struct parameter *parameter = &function->parameter[i];
        int size = parameter->size;
        enum element element = parameter->element;
        void *address = arguments[i];
        switch (parameter->kind) {
        case BY_VALUE: break;
        case READ: stand_in_reads(&work, *(void **)address, size, element); break;
        case WRITTEN: stand_in_writes(&work, *(void **)address, size, element); break;
        case READ_LIST: stand_in_reads_list(&work, *(void **)address, size, element); break;
        case WRITTEN_LIST: stand_in_writes_list(&work, *(void **)address, size, element); break;
        case READ_ARRAY: add_array(&work, true, address, parameter); break;
        case WRITTEN_ARRAY: add_array(&work, false, address, parameter); break;
        case BLOCK: add_block(&work, address);
        }
    }
    return stand_in_submit(work, stream);
}
