/* cuDNN (libcudnn.so.9): the descriptors of its graph API, and the few old calls still in use.
 *
 * A descriptor keeps the attributes that it is given. Executing a plan walks from the plan to its
 * operations, and from each operation to the tensors that it writes: those are the variant pack's
 * written addresses, and all others are read.
 */
#include <stdlib.h>
#include <string.h>

#include "device.h"

/* cudnnBackendAttributeName_t */
enum {
    HEURISTIC_GRAPH = 201,
    HEURISTIC_RESULTS = 202,
    CONFIGURATION_ENGINE = 300,
    PLAN_CONFIGURATION = 401,
    CONVOLUTION_W = 703,
    CONVOLUTION_X = 704,
    CONVOLUTION_Y = 705,
    POINTWISE_X = 751,
    POINTWISE_B = 752,
    POINTWISE_Y = 753,
    GRAPH_OPERATIONS = 801,
    TENSOR_TYPE = 901,
    TENSOR_ID = 906,
    PACK_IDS = 1000,
    PACK_ADDRESSES = 1001,
    ENGINE_GRAPH = 1300,
};

/* cudnnDataType_t */
enum { SINGLE = 0, DOUBLE = 1 };

static int size_of(int type) { return type == DOUBLE ? 8 : type == SINGLE ? 4 : 2; }

/* cudnnBackendAttributeType_t */
enum { OF_INT64 = 3, OF_DESCRIPTOR = 15, OF_NUMERICAL_NOTE = 11, OF_KNOB = 19, OF_BEHAVIOR = 23 };

enum { MOST_ATTRIBUTES = 32 };

struct attribute {
    int name;
    long count;
    void *values; /* 8 bytes each: ids, addresses and descriptors; 4 for a type */
};

struct descriptor {
    int attributes;
    struct attribute attribute[MOST_ATTRIBUTES];
};

EXPORT int cudnnBackendCreateDescriptor(int type, struct descriptor **descriptor) {
    return (void)type, *descriptor = calloc(1, sizeof **descriptor), SUCCESS;
}

EXPORT int cudnnBackendDestroyDescriptor(struct descriptor *descriptor) {
    for (int i = 0; i < descriptor->attributes; i++)
        free(descriptor->attribute[i].values);
    return free(descriptor), SUCCESS;
}

EXPORT int cudnnBackendFinalize(struct descriptor *descriptor) { return (void)descriptor, SUCCESS; }

static struct attribute *found(struct descriptor *descriptor, int name) {
    for (int i = 0; descriptor && i < descriptor->attributes; i++)
        if (descriptor->attribute[i].name == name)
            return &descriptor->attribute[i];
    return NULL;
}

static void keep(struct descriptor *descriptor, int name, long count, const void *values) {
    struct attribute *attribute = found(descriptor, name);
    if (attribute == NULL) {
        if (descriptor->attributes == MOST_ATTRIBUTES) {
            stand_in_complain("more attributes than the stand-in has room for", "cudnnBackendSetAttribute");
            return;
        }
        attribute = &descriptor->attribute[descriptor->attributes++];
    }
    free(attribute->values);
    int size = name == TENSOR_TYPE ? 4 : 8;
    *attribute = (struct attribute){name, count, malloc(size * count + 1)};
    memcpy(attribute->values, values, size * count);
}

static const int inputs[] = {CONVOLUTION_W, CONVOLUTION_X, POINTWISE_X, POINTWISE_B};
static const int outputs[] = {CONVOLUTION_Y, POINTWISE_Y};
static const int others[] = {HEURISTIC_GRAPH, CONFIGURATION_ENGINE, PLAN_CONFIGURATION,
                             GRAPH_OPERATIONS, TENSOR_ID,  TENSOR_TYPE,
                             PACK_IDS,         PACK_ADDRESSES, ENGINE_GRAPH};

#define COUNT(array) (int)(sizeof array / sizeof *array)

static bool among(int name, const int *names, int count) {
    for (int i = 0; i < count; i++)
        if (names[i] == name)
            return true;
    return false;
}

static bool is_kept(int name) {
    return among(name, inputs, COUNT(inputs)) || among(name, outputs, COUNT(outputs)) ||
           among(name, others, COUNT(others));
}

EXPORT int cudnnBackendSetAttribute(struct descriptor *descriptor, int name, int type, long count,
                                    const void *values) {
    (void)type;
    if (is_kept(name))
        keep(descriptor, name, count, values);
    return SUCCESS;
}

static struct descriptor *linked(struct descriptor *descriptor, int name) {
    struct attribute *attribute = found(descriptor, name);
    return attribute ? *(struct descriptor **)attribute->values : NULL;
}

EXPORT int cudnnBackendGetAttribute(struct descriptor *descriptor, int name, int type,
                                    long requested, long *count, void *values) {
    long given = requested;
    if (type == OF_NUMERICAL_NOTE || type == OF_KNOB)
        given = 0;
    else if (type == OF_DESCRIPTOR)
        given = requested > 0 ? 1 : 0;
    else if (values && requested > 0 && (type == OF_INT64 || type == OF_BEHAVIOR))
        memset(values, 0, (type == OF_INT64 ? 8 : 4) * requested);
    if (name == HEURISTIC_RESULTS && given && values) {
        /* the caller made the configuration; it runs the graph that was asked about */
        struct descriptor *graph = linked(descriptor, HEURISTIC_GRAPH);
        keep(*(struct descriptor **)values, ENGINE_GRAPH, 1, &graph);
    }
    if (count)
        *count = name == HEURISTIC_RESULTS && requested == 0 ? 1 : given;
    return SUCCESS;
}

/* The operation graph of a plan, through its configuration and, if there is one, its engine. */
static struct descriptor *graph_of(struct descriptor *plan) {
    struct descriptor *configuration = linked(plan, PLAN_CONFIGURATION);
    struct descriptor *graph = linked(configuration, ENGINE_GRAPH);
    return graph ? graph : linked(linked(configuration, CONFIGURATION_ENGINE), ENGINE_GRAPH);
}

/* The tensor `id` among these attributes of the operations, or NULL. */
static struct descriptor *tensor(struct attribute *operations, int64_t id, const int *names,
                                 int count) {
    for (long i = 0; i < operations->count; i++) {
        for (int j = 0; j < count; j++) {
            struct descriptor *operation = ((struct descriptor **)operations->values)[i];
            struct descriptor *tensor = linked(operation, names[j]);
            struct attribute *found_id = found(tensor, TENSOR_ID);
            if (found_id && *(int64_t *)found_id->values == id)
                return tensor;
        }
    }
    return NULL;
}

static int element_size(struct descriptor *tensor) {
    struct attribute *type = found(tensor, TENSOR_TYPE);
    return type ? size_of(*(int *)type->values) : 2;
}

struct handle {
    void *stream;
};

EXPORT int cudnnBackendExecute(struct handle *handle, struct descriptor *plan,
                               struct descriptor *pack) {
    struct attribute *ids = found(pack, PACK_IDS), *addresses = found(pack, PACK_ADDRESSES);
    struct attribute *operations = found(graph_of(plan), GRAPH_OPERATIONS);
    struct work work = stand_in_work("cudnnBackendExecute");
    for (long i = 0; ids && addresses && operations && i < ids->count; i++) {
        int64_t id = ((int64_t *)ids->values)[i];
        void *address = ((void **)addresses->values)[i];
        struct descriptor *input = tensor(operations, id, inputs, COUNT(inputs));
        struct descriptor *output = tensor(operations, id, outputs, COUNT(outputs));
        if (input)
            stand_in_reads(&work, address, element_size(input), FLOATING);
        if (output)
            stand_in_writes(&work, address, element_size(output), FLOATING);
    }
    if (work.writes == 0)
        stand_in_complain("runs a plan whose output the stand-in cannot find", "cudnnBackendExecute");
    return stand_in_submit(work, handle->stream);
}

/* the handle */

EXPORT int cudnnCreate(struct handle **handle) {
    return *handle = calloc(1, sizeof **handle), SUCCESS;
}
EXPORT int cudnnDestroy(struct handle *handle) { return free(handle), SUCCESS; }
EXPORT int cudnnSetStream(struct handle *handle, void *stream) {
    return handle->stream = stream, SUCCESS;
}
EXPORT int cudnnGetStream(struct handle *handle, void **stream) {
    return *stream = handle->stream, SUCCESS;
}
EXPORT size_t cudnnGetVersion(void) { return 91900; }
EXPORT size_t cudnnGetCudartVersion(void) { return 13000; }
EXPORT const char *cudnnGetErrorString(int error) { return (void)error, "stand-in"; }
EXPORT void cudnnGetLastErrorString(char *text, size_t size) {
    if (size)
        *text = 0;
}

/* the old calls */

EXPORT int cudnnAddTensor(struct handle *handle, const void *alpha, int *A_type, const void *A,
                          const void *beta, int *C_type, void *C) {
    (void)alpha, (void)beta;
    struct work work = stand_in_work("cudnnAddTensor");
    stand_in_reads(&work, A, size_of(*A_type), FLOATING);
    stand_in_reads(&work, C, size_of(*C_type), FLOATING);
    stand_in_writes(&work, C, size_of(*C_type), FLOATING);
    return stand_in_submit(work, handle->stream);
}

EXPORT int cudnnReduceTensor(struct handle *handle, void *reduction, void *indices,
                             size_t indices_size, void *workspace, size_t workspace_size,
                             const void *alpha, int *A_type, const void *A, const void *beta,
                             int *C_type, void *C) {
    (void)reduction, (void)indices, (void)indices_size, (void)workspace, (void)workspace_size;
    (void)alpha, (void)beta;
    struct work work = stand_in_work("cudnnReduceTensor");
    stand_in_reads(&work, A, size_of(*A_type), FLOATING);
    stand_in_writes(&work, C, size_of(*C_type), FLOATING);
    return stand_in_submit(work, handle->stream);
}

EXPORT int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *A, void *C,
                                          size_t *size) {
    return (void)handle, (void)reduction, (void)A, (void)C, *size = 0, SUCCESS;
}
EXPORT int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *A, void *C,
                                        size_t *size) {
    return (void)handle, (void)reduction, (void)A, (void)C, *size = 0, SUCCESS;
}

/* descriptors of the old calls hold the type of a tensor, or nothing */
#define DESCRIPTOR(kind)                                                                        \
    EXPORT int cudnnCreate##kind##Descriptor(void **descriptor) {                               \
        return *descriptor = calloc(1, 64), SUCCESS;                                            \
    }                                                                                           \
    EXPORT int cudnnDestroy##kind##Descriptor(void *descriptor) {                               \
        return free(descriptor), SUCCESS;                                                       \
    }
DESCRIPTOR(Activation)
DESCRIPTOR(Convolution)
DESCRIPTOR(Dropout)
DESCRIPTOR(Filter)
DESCRIPTOR(LRN)
DESCRIPTOR(Pooling)
DESCRIPTOR(RNNData)
DESCRIPTOR(RNN)
DESCRIPTOR(ReduceTensor)
DESCRIPTOR(Tensor)

EXPORT int cudnnSetTensorNdDescriptor(int *descriptor, int type) {
    return *descriptor = type, SUCCESS;
}

#define ACCEPTED(name)                                                                          \
    EXPORT int name(void) { return SUCCESS; }
ACCEPTED(cudnnSetFilterNdDescriptor)
ACCEPTED(cudnnSetConvolutionNdDescriptor)
ACCEPTED(cudnnSetConvolutionGroupCount)
ACCEPTED(cudnnSetConvolutionMathType)
ACCEPTED(cudnnSetReduceTensorDescriptor)
ACCEPTED(cudnnSetActivationDescriptor)
ACCEPTED(cudnnSetPoolingNdDescriptor)

/* no network here calls these */
#define REFUSED(name)                                                                           \
    EXPORT int name(void) {                                                                     \
        stand_in_complain("not in the stand-in", #name);                                                 \
        return INVALID_VALUE;                                                                   \
    }
REFUSED(cudnnActivationForward)
REFUSED(cudnnBatchNormalizationForwardInference)
REFUSED(cudnnConvolutionBiasActivationForward)
REFUSED(cudnnConvolutionForward)
REFUSED(cudnnFindConvolutionForwardAlgorithmEx)
REFUSED(cudnnGetConvolutionForwardAlgorithm_v7)
REFUSED(cudnnGetConvolutionForwardWorkspaceSize)
REFUSED(cudnnLRNCrossChannelForward)
REFUSED(cudnnPoolingForward)
REFUSED(cudnnRNNForward)
REFUSED(cudnnSoftmaxForward)
