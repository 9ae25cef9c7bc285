/* cuRAND (libcurand.so.10): a generator that is never asked for a number. */
#include <stdlib.h>

#include "device.h"

EXPORT int curandCreateGenerator(void **generator, int type) {
    return (void)type, *generator = calloc(1, 64), SUCCESS;
}
EXPORT int curandDestroyGenerator(void *generator) { return free(generator), SUCCESS; }
EXPORT int curandSetStream(void *generator, void *stream) {
    return (void)generator, (void)stream, SUCCESS;
}
EXPORT int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    return (void)generator, (void)seed, SUCCESS;
}
