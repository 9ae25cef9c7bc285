/* cuBLAS (libcublas.so.13): a matrix product reads A, B and, unless beta is 0, C; it writes C. */
#include <stdlib.h>
#include <string.h>

#include "device.h"

struct handle {
    void *stream;
};

EXPORT int cublasCreate_v2(struct handle **handle) {
    return *handle = calloc(1, sizeof **handle), SUCCESS;
}
EXPORT int cublasDestroy_v2(struct handle *handle) { return free(handle), SUCCESS; }
EXPORT int cublasSetStream_v2(struct handle *handle, void *stream) {
    return handle->stream = stream, SUCCESS;
}
EXPORT int cublasGetMathMode(struct handle *handle, int *mode) {
    return (void)handle, *mode = 0, SUCCESS;
}
EXPORT int cublasSetMathMode(struct handle *handle, int mode) {
    return (void)handle, (void)mode, SUCCESS;
}
EXPORT const char *cublasGetStatusName(int status) { return (void)status, "stand-in"; }
EXPORT const char *cublasGetStatusString(int status) { return (void)status, "stand-in"; }

enum { COMPUTE_16F = 64, COMPUTE_16F_PEDANTIC = 65, SINGLE = 0, DOUBLE = 1 };

/* bytes of an element, by cudaDataType */
static int size_of(int type) { return type == DOUBLE ? 8 : type == SINGLE ? 4 : 2; }

static bool is_zero(const void *beta, int size) {
    static const char zero[8];
    return memcmp(beta, zero, size) == 0;
}

static int product(const char *name, struct handle *handle, const void *A, int A_size,
                   const void *B, int B_size, const void *beta, int beta_size, void *C,
                   int C_size) {
    struct work work = stand_in_work(name);
    stand_in_reads(&work, A, A_size, FLOATING);
    stand_in_reads(&work, B, B_size, FLOATING);
    if (!is_zero(beta, beta_size))
        stand_in_reads(&work, C, C_size, FLOATING);
    stand_in_writes(&work, C, C_size, FLOATING);
    return stand_in_submit(work, handle->stream);
}

#define SHAPE struct handle *handle, int ta, int tb, int m, int n, int k
#define UNUSED (void)ta, (void)tb, (void)m, (void)n, (void)k

#define GEMM(name, type)                                                                        \
    EXPORT int name(SHAPE, const type *alpha, const type *A, int lda, const type *B, int ldb,   \
                    const type *beta, type *C, int ldc) {                                       \
        UNUSED, (void)alpha, (void)lda, (void)ldb, (void)ldc;                                   \
        return product(#name, handle, A, sizeof *A, B, sizeof *B, beta, sizeof *beta, C,        \
                       sizeof *C);                                                              \
    }
GEMM(cublasSgemm_v2, float)
GEMM(cublasDgemm_v2, double)

#define GEMM_STRIDED(name, type)                                                                \
    EXPORT int name(SHAPE, const type *alpha, const type *A, int lda, long long A_stride,       \
                    const type *B, int ldb, long long B_stride, const type *beta, type *C,      \
                    int ldc, long long C_stride, int batch) {                                   \
        UNUSED, (void)alpha, (void)lda, (void)ldb, (void)ldc, (void)batch;                      \
        (void)A_stride, (void)B_stride, (void)C_stride;                                         \
        return product(#name, handle, A, sizeof *A, B, sizeof *B, beta, sizeof *beta, C,        \
                       sizeof *C);                                                              \
    }
GEMM_STRIDED(cublasSgemmStridedBatched, float)
GEMM_STRIDED(cublasDgemmStridedBatched, double)

/* The pointers of a batch lie in device memory; the first matrix of each stands for all. */
#define GEMM_BATCHED(name, type)                                                                \
    EXPORT int name(SHAPE, const type *alpha, const type *const *A, int lda,                    \
                    const type *const *B, int ldb, const type *beta, type *const *C, int ldc,   \
                    int batch) {                                                                \
        UNUSED, (void)alpha, (void)lda, (void)ldb, (void)ldc, (void)batch;                      \
        return product(#name, handle, A[0], sizeof **A, B[0], sizeof **B, beta, sizeof *beta,   \
                       C[0], sizeof **C);                                                       \
    }
GEMM_BATCHED(cublasSgemmBatched, float)
GEMM_BATCHED(cublasDgemmBatched, double)

static int scale_size(int compute, int type) {
    if (compute == COMPUTE_16F || compute == COMPUTE_16F_PEDANTIC)
        return 2;
    return type == DOUBLE ? 8 : 4;
}

EXPORT int cublasGemmEx(SHAPE, const void *alpha, const void *A, int A_type, int lda,
                        const void *B, int B_type, int ldb, const void *beta, void *C, int C_type,
                        int ldc, int compute, int algorithm) {
    UNUSED, (void)alpha, (void)lda, (void)ldb, (void)ldc, (void)algorithm;
    return product("cublasGemmEx", handle, A, size_of(A_type), B, size_of(B_type), beta,
                   scale_size(compute, C_type), C, size_of(C_type));
}

EXPORT int cublasGemmStridedBatchedEx(SHAPE, const void *alpha, const void *A, int A_type, int lda,
                                      long long A_stride, const void *B, int B_type, int ldb,
                                      long long B_stride, const void *beta, void *C, int C_type,
                                      int ldc, long long C_stride, int batch, int compute,
                                      int algorithm) {
    UNUSED, (void)alpha, (void)lda, (void)ldb, (void)ldc, (void)batch, (void)algorithm;
    (void)A_stride, (void)B_stride, (void)C_stride;
    return product("cublasGemmStridedBatchedEx", handle, A, size_of(A_type), B, size_of(B_type),
                   beta, scale_size(compute, C_type), C, size_of(C_type));
}

EXPORT int cublasGemmBatchedEx(SHAPE, const void *alpha, const void *const *A, int A_type, int lda,
                               const void *const *B, int B_type, int ldb, const void *beta,
                               void *const *C, int C_type, int ldc, int batch, int compute,
                               int algorithm) {
    UNUSED, (void)alpha, (void)lda, (void)ldb, (void)ldc, (void)batch, (void)algorithm;
    return product("cublasGemmBatchedEx", handle, A[0], size_of(A_type), B[0], size_of(B_type),
                   beta, scale_size(compute, C_type), C[0], size_of(C_type));
}

/* C = alpha A + beta B, either transposed */
#define GEAM(name, type)                                                                        \
    EXPORT int name(struct handle *handle, int ta, int tb, int m, int n, const type *alpha,     \
                    const type *A, int lda, const type *beta, const type *B, int ldb, type *C,  \
                    int ldc) {                                                                  \
        (void)ta, (void)tb, (void)m, (void)n, (void)alpha, (void)lda, (void)ldb, (void)ldc;     \
        struct work work = stand_in_work(#name);                                                       \
        stand_in_reads(&work, A, sizeof *A, FLOATING);                                                   \
        if (!is_zero(beta, sizeof *beta))                                                       \
            stand_in_reads(&work, B, sizeof *B, FLOATING);                                               \
        stand_in_writes(&work, C, sizeof *C, FLOATING);                                                  \
        return stand_in_submit(work, handle->stream);                                                    \
    }
GEAM(cublasSgeam, float)
GEAM(cublasDgeam, double)

EXPORT int cublasScopy_v2(struct handle *handle, int n, const float *x, int x_step, float *y,
                          int y_step) {
    (void)n, (void)x_step, (void)y_step;
    struct work work = stand_in_work("cublasScopy_v2");
    stand_in_reads(&work, x, sizeof *x, FLOATING);
    stand_in_writes(&work, y, sizeof *y, FLOATING);
    return stand_in_submit(work, handle->stream);
}

EXPORT int cublasSscal_v2(struct handle *handle, int n, const float *alpha, float *x, int step) {
    (void)n, (void)alpha, (void)step;
    struct work work = stand_in_work("cublasSscal_v2");
    stand_in_reads(&work, x, sizeof *x, FLOATING);
    stand_in_writes(&work, x, sizeof *x, FLOATING);
    return stand_in_submit(work, handle->stream);
}

/* no network here inverts a matrix */
#define REFUSED(name)                                                                           \
    EXPORT int name(void) {                                                                     \
        stand_in_complain("not in the stand-in", #name);                                                 \
        return INVALID_VALUE;                                                                   \
    }
REFUSED(cublasSgetrfBatched)
REFUSED(cublasDgetrfBatched)
REFUSED(cublasSgetriBatched)
REFUSED(cublasDgetriBatched)
