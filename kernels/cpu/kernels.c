// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

extern const cpu_kernels cpu_kernels_portable, cpu_kernels_avx2, cpu_kernels_avx512,
    cpu_kernels_avx512vnni, cpu_kernels_avx512bf16;

#ifdef __x86_64__
// By hand: __builtin_cpu_supports("f16c") is refused by clang 14, which builds the fuzz targets.
static bool has_f16c(void) {
    unsigned eax, ebx, ecx = 0, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C) != 0;
}
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_avx512vnni(void) {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}
static bool has_avx512bf16(void) {
    return has_avx512vnni() && __builtin_cpu_supports("avx512bf16");
}
#endif
static bool has_any(void) {
    return true;
}

// Best first.
static const struct {
    const cpu_kernels *table;
    bool (*is_here)(void);
} tables[] = {
#ifdef __x86_64__
    {&cpu_kernels_avx512bf16, has_avx512bf16}, {&cpu_kernels_avx512vnni, has_avx512vnni},
    {&cpu_kernels_avx512, has_avx512},         {&cpu_kernels_avx2, has_avx2},
#endif
    {&cpu_kernels_portable, has_any},
};

const cpu_kernels *cpu_kernels_choose(const char *limit) {
    const size_t n = sizeof tables / sizeof tables[0];
    size_t i = 0;
    while (limit && i < n && strcmp(tables[i].table->name, limit) != 0)
        i++;
    for (; i < n; i++) {
        if (tables[i].is_here())
            return tables[i].table;
    }
    return NULL;
}
