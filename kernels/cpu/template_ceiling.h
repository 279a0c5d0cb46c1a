// SPDX-License-Identifier: Apache-2.0
// What the machine can do at best, for shares: a pure read, and products that never leave
// registers. Included once by each isa_*.c.

// Reads bytes (a multiple of 256) as the products do, and gives their sum so that none is left out.
static float read_stream(const void *data, size_t bytes) {
    vf sum[4] = {vf_set(0), vf_set(0), vf_set(0), vf_set(0)};
    const char *p = data;
    for (const char *end = p + bytes; p < end; p += 256) {
        UNROLL for (int i = 0; i < 4; i++) {
            PREFETCH(p + 64 * i);
            sum[i] = vf_add(sum[i], vf_load((const float *)(p + 64 * i)));
        }
    }
    return vf_sum(vf_add(vf_add(sum[0], sum[1]), vf_add(sum[2], sum[3])));
}

// Independent chains that cover the latency of any of these instructions on any of these machines.
// All in registers: 16 of 16 lanes in AVX-512, 12 halves in AVX2, 12 quarters elsewhere.
enum { CHAINS = SIMD_TILE_TOKENS == 8 ? 16 : SIMD_TILE_TOKENS == 6 ? 6 : 3 };

// `rounds` rounds of CHAINS vector products in a format; returns the multiply-adds done, counting
// what the format's weights take (an int8 weight takes two instructions, one for each byte of its
// activation). *sink keeps the result alive.
static double product_rounds(cpu_format format, int64_t rounds, float *sink) {
    // Lanes differ: of equal ones the compiler would compute a single register's worth.
    static const float lanes[CPU_LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    static const int32_t int_lanes[CPU_LANES] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                 8, 9, 10, 11, 12, 13, 14, 15};
    vf acc[CHAINS];
    const vf x = vf_set(*sink), y = vf_set(1e-6f);
    UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = vf_add(vf_load(lanes), vf_set((float)i));
    double done = (double)rounds * CHAINS * CPU_LANES;
    if (format >= CPU_W_INT8) {
        vi sum[CHAINS];
        vi a[4], b[4]; // every chain multiplies a pair of its own, new in every round
        for (int i = 0; i < 4; i++) {
            a[i] = vi_sub(vi_load(int_lanes), vi_set((int32_t)*sink + i));
            b[i] = vi_sub(vi_load(int_lanes), vi_set(3 + i));
        }
        UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = vi_sub(vi_load(int_lanes), vi_set(i));
        for (int64_t r = 0; r < rounds; r++) {
            __asm__("" : "+m"(a));
            UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = vi_dot(sum[i], a[i % 4], b[i / 4]);
        }
        UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = vf_from_int(sum[i]);
        done *= 2; // four products a lane, two instructions a weight
#ifdef SIMD_HAS_WORD_DOT
    } else if (format == CPU_W_WORD) {
        vi sum[CHAINS];
        const vi a = vi_set((int32_t)*sink), b = vi_set(3);
        UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = vi_sub(vi_load(int_lanes), vi_set(i));
        for (int64_t r = 0; r < rounds; r++) {
            UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = vpair_dot(sum[i], a, b);
        }
        UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = vf_from_int(sum[i]);
        done *= 2;
#endif
#ifdef SIMD_HAS_BF16_DOT
    } else if (format == CPU_W_BF16_DOT) {
        const vi a = vi_set((int32_t)*sink), b = vi_set(3);
        for (int64_t r = 0; r < rounds; r++) {
            UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = vpair_dot(acc[i], a, b);
        }
        done *= 2;
#endif
    } else {
        for (int64_t r = 0; r < rounds; r++) {
            UNROLL for (int i = 0; i < CHAINS; i++) acc[i] = vf_fma(acc[i], x, y);
        }
    }
    vf total = vf_set(0);
    UNROLL for (int i = 0; i < CHAINS; i++) total = vf_add(total, acc[i]);
    *sink = vf_sum(total);
    return done;
}
