/* cuBLASLt (libcublasLt.so.13): D = A B + beta C + bias, with the types in the layouts. */
#include <stdlib.h>
#include <string.h>

#include "device.h"

enum { BIAS_POINTER = 8, SINGLE = 0, DOUBLE = 1, COMPUTE_16F = 64, COMPUTE_16F_PEDANTIC = 65 };

struct layout {
    int type;
};
struct product {
    int compute;
    void *bias;
};

EXPORT int cublasLtCreate(void **handle) { return *handle = calloc(1, 64), SUCCESS; }
EXPORT int cublasLtDestroy(void *handle) { return free(handle), SUCCESS; }

EXPORT int cublasLtMatrixLayoutCreate(struct layout **layout, int type) {
    *layout = calloc(1, sizeof **layout);
    (*layout)->type = type;
    return SUCCESS;
}
EXPORT int cublasLtMatrixLayoutDestroy(struct layout *layout) { return free(layout), SUCCESS; }
EXPORT int cublasLtMatrixLayoutSetAttribute(void) { return SUCCESS; }

EXPORT int cublasLtMatmulDescCreate(struct product **product, int compute) {
    *product = calloc(1, sizeof **product);
    (*product)->compute = compute;
    return SUCCESS;
}
EXPORT int cublasLtMatmulDescDestroy(struct product *product) { return free(product), SUCCESS; }
EXPORT int cublasLtMatmulDescSetAttribute(struct product *product, int attribute,
                                          const void *value, size_t size) {
    if (attribute == BIAS_POINTER && size == sizeof product->bias)
        memcpy(&product->bias, value, size);
    return SUCCESS;
}

EXPORT int cublasLtMatmulPreferenceCreate(void **preference) {
    return *preference = calloc(1, 64), SUCCESS;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void *preference) { return free(preference), SUCCESS; }
EXPORT int cublasLtMatmulPreferenceSetAttribute(void) { return SUCCESS; }
EXPORT int cublasLtMatmulAlgoInit(void) { return SUCCESS; }
EXPORT int cublasLtMatmulAlgoConfigSetAttribute(void) { return SUCCESS; }

EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *A, void *B, void *C,
                                          void *D, void *preference, int requested, void *results,
                                          int *found) {
    (void)handle, (void)product, (void)A, (void)B, (void)C, (void)D, (void)preference;
    (void)requested, (void)results;
    return *found = 1, SUCCESS;
}

static int size_of(const struct layout *layout) {
    return layout->type == DOUBLE ? 8 : layout->type == SINGLE ? 4 : 2;
}

EXPORT int cublasLtMatmul(void *handle, struct product *product, const void *alpha, const void *A,
                          struct layout *A_layout, const void *B, struct layout *B_layout,
                          const void *beta, const void *C, struct layout *C_layout, void *D,
                          struct layout *D_layout, const void *algorithm, void *workspace,
                          size_t workspace_size, void *stream) {
    (void)handle, (void)alpha, (void)algorithm, (void)workspace, (void)workspace_size;
    static const char zero[8];
    int compute = product->compute;
    int scale = compute == COMPUTE_16F || compute == COMPUTE_16F_PEDANTIC ? 2 : 4;
    struct work work = stand_in_work("cublasLtMatmul");
    stand_in_reads(&work, A, size_of(A_layout), FLOATING);
    stand_in_reads(&work, B, size_of(B_layout), FLOATING);
    stand_in_reads(&work, product->bias, size_of(D_layout), FLOATING);
    if (memcmp(beta, zero, scale))
        stand_in_reads(&work, C, size_of(C_layout), FLOATING);
    stand_in_writes(&work, D, size_of(D_layout), FLOATING);
    return stand_in_submit(work, stream);
}

EXPORT int cublasLtMatrixTransformDescCreate(void **transform) {
    return *transform = calloc(1, 64), SUCCESS;
}
EXPORT int cublasLtMatrixTransformDescDestroy(void *transform) { return free(transform), SUCCESS; }
EXPORT int cublasLtMatrixTransform(void) {
    stand_in_complain("not in the stand-in", "cublasLtMatrixTransform");
    return INVALID_VALUE;
}
