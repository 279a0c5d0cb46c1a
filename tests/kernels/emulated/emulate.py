#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the device code's headers for a host's compiler: what is PTX in them by what emulator.h has.

    emulate.py KERNELS-FOLDER OUTPUT-FOLDER

Only bodies of small device functions are replaced, by name; what calls them is as it is. A name
that no header has any more is an error, so that nobody believes in a replacement that is not there.
"""
import os
import re
import sys

# Function: body. A name may be one of several overloads; ARGUMENTS says which.
BODIES = {
    # bulk.cuh, hopper.cuh: barriers in shared memory, copies, clusters
    "barrier_init": "emu_barrier_init(at, arrivals);",
    "barrier_arrive": "emu_barrier_arrive(at);",
    "barrier_arrive_after": "emu_barrier_arrive(at);",
    "barrier_arrive_as": "emu_barrier_arrive(at, N);",
    "ring_arrive_after": "emu_barrier_arrive((uint32_t)(uintptr_t)bar);",
    "named_sync": "emu_named(id, threads);",
    "named_arrive": "emu_named_arrive(id, threads);",
    "barrier_test": "const bool is = emu_barrier_is(at, parity); if (!is) emu_yield(); return is;",
    "barrier_wait": "while (!emu_barrier_is(at, parity)) emu_wait_barrier(at, parity);",
    "barrier_expect": "emu_barrier_expect(at, bytes);",
    "barriers_ready": "",
    "fence_async": "emu_fence_async();",
    "policy_once": "return 0;",
    "copy_run": "emu_copy(to, from, bytes, barrier);",
    "copy_box": "emu_copy_box(to, map, column, row, barrier);",
    "copy_box_to": "emu_copy_box_to(blocks, to, map, column, row, barrier);",
    "prefetch_run": "emu_l2_asks++;",
    "prefetch_box": "emu_l2_asks++;",
    "prefetch_line": "",
    "map_prefetch": "",
    "store_run": "emu_store_run(to, from, bytes);",
    "store_states": "emu_store_run(to, from, bytes);",
    "store_box": "emu_store_box(map, column, row, from);",
    "stores_commit": "emu_stores_commit();",
    "stores_read": "emu_stores_read(LEFT);",
    "stores_done": "emu_stores_read(0);",
    "meet": "emu_named(ID, THREADS);",
    "arrive_at_peer": "emu_arrive_at_peer(barrier);",
    "one_lane": "__syncwarp(); return threadIdx.x % 32 == 0;",
    "more_registers": "",
    "fewer_registers": "",
    "cluster_arrive": "emu_cluster_arrive();",
    "cluster_wait": "emu_cluster_wait();",
    "peer_address": "return emu_peer(address, rank);",
    "copy_to_peer": "emu_copy_to_peer(to, from, bytes, barrier);",
    "store_to_peer": "emu_store_to_peer(to, &v, 8, barrier);",
    # wgmma.cuh, util.cuh: the matrix units
    "wgmma_fence": "",
    "wgmma_commit": "emu_wgmma_commit();",
    "wgmma_wait": "emu_wgmma_wait(LEFT);",
    "wgmma_touch": "",
    "wgmma": "emu_wgmma(d, a, b);",
    "wgmma_registers": "emu_wgmma_registers<false>(d, a, b);",
    "wgmma_64": "if (add) emu_wgmma(d, a, b); else emu_wgmma_anew(d, a, b);",
    "wgmma_down_64": "emu_wgmma_registers<true>(d, a, b);",
    "wgmma_down_128": "emu_wgmma_registers<true>(d, a, b);",
    "times": "return emu_bf16_pair(two, emu_bf16((uint16_t)by));",
    "mma": "emu_mma(c, a0, a1, a2, a3, b0, b1);",
    "mma_f16": "emu_mma(c, a0, a1, a2, a3, b0, b1, EMU_MMA_F16);",
    "mma_8": "emu_mma(c, a0, a1, 0, 0, b0, 0);",
    "mma_tf32": "emu_mma(d, __float_as_uint(a0), __float_as_uint(a1), __float_as_uint(a2),"
    " __float_as_uint(a3), b0, b1, EMU_MMA_TF32);",
    "ldmatrix": "emu_ldmatrix(r, row);",
    "ldmatrix_transposed": "emu_ldmatrix_transposed(r, row);",
    "transpose8x8": "return emu_transpose(v);",
    # util.cuh: the rest
    "shared_address": "return (uint32_t)(uintptr_t)p;",
    "copy_async": "emu_copy_async(to, from, live);",
    "copies_commit": "",
    "copies_arrive": "emu_barrier_arrive(barrier);",
    "copies_wait": "",
    "exp2_fast": "return exp2f(x);",
    "reciprocal": "return 1.f / x;",
    "dependents_start": "",
    "load_once": "return emu_load<uint4>(p);",
    # solo*.cuh. Packets that lie beside each other are read one after the other.
    "solo_wait": "while (!emu_barrier_is(barrier, parity)) emu_wait_barrier(barrier, parity);",
    "solo_sync": "emu_named(ID, threads);",
    "solo_signal": "emu_named_arrive(ID, threads);",
    "send": "emu_store_to_peer(to, &word, 4, barrier);",
    "send_two": "const uint32_t two[] = {v, w}; emu_store_to_peer(to, two, 8, barrier);",
    "store_packet": "emu_tell((uint64_t)to), *to = make_uint2(v, w), emu_event();",
    "packet": "emu_yield(), emu_hear((uint64_t)from); return emu_load<uint2>(from);",
    "two_packets": "const uint2 v = packet(from), w = packet(from + 1);"
    " return make_uint4(v.x, v.y, w.x, w.y);",
    "load_once1": "return emu_load<float>(p);",
    "load_once2": "return emu_load<uint2>(p);",
    "load_own": "return emu_load<decltype(load_own(p))>(p);",
    "load_own16": "return emu_load<uint4>(p);",
    "load_shared": "emu_check(from, 16); return emu_load<uint4>(emu_memory(from));",
    "load_shared2": "emu_check(from, 8); return emu_load<uint2>(emu_memory(from));",
    "store_shared2": "emu_check(to, 8); *(uint2 *)emu_memory(to) = make_uint2(v, w);",
    "load_if": "decltype(load_if(there, p)) v = {}; if (there) v = emu_load<decltype(v)>(p);"
    " return v;",
    "load_first_rows": "if (lane < LANES) v = load_shared(from);",
    "rsqrt_fast": "return 1.f / sqrtf(x);",
    # advance.cuh, resident*.cuh
    "load_state": "return emu_load<uint4>(p);",
    "store_state": "if (on) *(uint4 *)p = v;",
    "workers_sync": "emu_named(1, 256);",
    "count_up": "emu_tell((uint64_t)c), c->n++, emu_event();",
    "count_wait": "while ((int)c->n < target) emu_yield(); emu_hear((uint64_t)c);",
    "exchange": "uint64_t before, now = (uint64_t)hi << 32 | lo;"
    " memcpy(&before, p, 8); memcpy(p, &now, 8); return before;",
    "exchange_one": "*p = v; return 0;",
    "add_word": "emu_tell((uint64_t)to), *to += v, emu_event();",
    "load_total": "emu_yield(), emu_hear((uint64_t)total); return *total;",
    "exchanged": "__any_sync(~0u, before != 0); return true;",
    "count_exchanged": "emu_tell((uint64_t)c), c->n++, emu_event();",
    "load_pair": "return *(const float2 *)p;",
    "load_word": "return *(const uint32_t *)p;",
    "load_shared_sum": "return emu_load<float4>(p);",
    "load_shared_pair": "return emu_load<float2>(p);",
    "load_shared_words": "struct alignas(4 * N) all { words<N> v; };"
    " return emu_load<all>(p).v;",
    "store_four": "if (on) *(float4 *)p = v;",
    "ask_up_to": "emu_set_word(limit, n);",
    "asked_up_to": "return emu_word(limit);",
}
ARGUMENTS = {
    "wgmma": "uint64_t a, uint64_t b",
    "times": "uint32_t two",
    "exchange": "uint32_t lo",
    "load_shared": "uint32_t from",
}

TEXTS = [  # what is not a function of its own, or one of several of its name
    (
        'asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");',
        "emu_check(at, 8), v = *(const float2 *)emu_memory(at);",
    ),
    (
        'asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(at), "f"(v.x), "f"(v.y) : "memory");',
        "emu_check(at, 8), *(float2 *)emu_memory(at) = v;",
    ),
    (
        'asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(v) : "memory");',
        "emu_check(at, 4), *(uint32_t *)emu_memory(at) = v;",
    ),
    ('asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));', "sm = 0;"),
    (
        'asm volatile("ld.shared.s32 %0, [%1];" : "=r"(place) : "r"(at) : "memory");',
        "place = *(const int *)emu_memory(at);",
    ),
    (
        'asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log2) : "f"(1.f + e));',
        "log2 = log2f(1.f + e);",
    ),
    ("extern __shared__ __align__(1024) char shared[];", "char *const shared = emu_shared();"),
    ("extern __shared__ __align__(128) char shared[];", "char *const shared = emu_shared();"),
    ("extern __shared__ __align__(128) char memory[];", "char *const memory = emu_shared();"),
    ("extern __shared__ __align__(16) char memory[];", "char *const memory = emu_shared();"),
    ("extern __shared__ char memory[];", "char *const memory = emu_shared();"),
    (
        "extern __shared__ __align__(1024) char wgmma_memory[];",
        "char *const wgmma_memory = emu_shared();",
    ),
    ("const __grid_constant__ resident_args a", "const resident_args &a"),
    ("const __grid_constant__ heads_args a", "const heads_args &a"),
    ("const __grid_constant__ packed_head_args a", "const packed_head_args &a"),
    ("const __grid_constant__ solo_args a", "const solo_args &a"),
    ("const __grid_constant__ cx_maps maps", "const cx_maps &maps"),
    ("const __grid_constant__ scan_maps maps", "const scan_maps &maps"),
    # few_kernel.cuh, few_end.cuh
    (
        "__shared__ uint64_t full[SLOTS], empty[SLOTS];",
        "uint64_t *const full = (uint64_t *)emu_static(), *const empty = full + SLOTS;",
    ),
    ("__shared__ float scale[FEW_ROWS];", "float *const scale = (float *)(empty + SLOTS);"),
    ('asm volatile("cp.async.wait_all;" ::: "memory");', ""),
    # scan_quarters.cuh
    (
        'asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(c * (1.f + 0x1p-11f * 0.7213475f)));',
        "bits = (__float_as_uint(c * (1.f + 0x1p-11f * 0.7213475f)) + 0x1000) & ~0x1fffu;",
    ),
    # scan_wgmma.cuh: where the compiler may not move what it is about
    ('asm volatile("" : "+f"(v[m][i]));', ""),
    ('asm volatile("" : "+f"(v[m][i])::"memory");', ""),
]
PATTERNS = {  # the same, over lines
    r'asm volatile\("stmatrix\.sync\.aligned\.m8n8\.x4[^;]*;" ::"r"\(at\)[^;]*;':
        "const uint32_t v[] = {a, b, c, d}; emu_store_matrices(at, v);",
    r'asm volatile\("stmatrix\.sync\.aligned\.m8n8\.x2[^;]*;" ::"r"\(at\)[^;]*;':
        "const uint32_t v[] = {a, b}; emu_store_matrices(at, v);",
    # few_kernel.cuh, few_end.cuh
    r'asm volatile\("cp\.async\.c[ag]\.shared\.global \[%0\], \[%1\], (8|16);" ::"r"\(\s*'
    r'shared_address\(([^;]*)\)\),\s*"l"\(([^;]*)\)\s*: "memory"\);':
        r"emu_copy_async(\2, \3, true, \1);",
    # scan_wgmma.cuh
    r'asm volatile\("st\.shared\.u16 \[%0\], %1;" ::"r"\(([^()]*)\),\s*"h"\(([^;]*)\)\);':
        r"emu_check(\1, 2), *(uint16_t *)emu_memory(\1) = \2;",
    # conv_xproj_kernel.cuh
    r'asm volatile\("st\.shared\.v2\.u32 \[%0\], \{%1,%2\};" ::"r"\(to \+ i \* CX_ROW \+([^;]*)\),'
    r'\s*"r"\((pack_bf16\(sum\[0\], sum\[1\]\))\), "r"\((pack_bf16\(sum\[2\], sum\[3\]\))\)\);':
        r"const uint32_t at = to + i * CX_ROW + \1; emu_check(at, 8);"
        r" *(uint2 *)emu_memory(at) = make_uint2(\2, \3);",
    # wide_sums.cuh
    r'asm volatile\("st\.shared\.v4\.f32 \[%0\], \{%1,%2,%3,%4\};" ::"r"\(at \+ i \* 128\)[^;]*;':
        "emu_writes(at + i * 128, 16), memcpy(emu_memory(at + i * 128), &acc[to * SHAPE::KEPT + i], 16);",
    r'asm volatile\("ld\.shared\.v4\.f32 \{%0,%1,%2,%3\}, \[%4\];"[^;]*;':
        "emu_reads(at, 16), memcpy(v, emu_memory(at), 16);",
    r'asm volatile\("st\.shared\.v4\.u32 \[%0\], \{%1,%2,%3,%2\};" ::"r"\(to\), "r"\(v\), "r"\(0\), '
    r'"r"\(w\)\s*: "memory"\);': "emu_check(to, 16); *(uint4 *)emu_memory(to) = make_uint4(v, 0, w, 0);",
    # two floats to a pair of fp16: the high half comes first
    r'asm\("cvt\.rn(\.satfinite)?\.f16x2\.f32 [^"]*"[^:]*: "=r"\(([^()]*)\)\s*'
    r': "f"\(([^";]*)\), "f"\(([^";]*)\)\);': r"\2 = emu_halves(\4, \3);",
}


def closing(text, at, opening, shut):
    """The place behind what closes the bracket at `at`."""
    depth = 0
    while True:
        depth += (text[at] == opening) - (text[at] == shut)
        at += 1
        if depth == 0:
            return at


def replace_bodies(text, name, body):
    """Of all definitions of device functions of this name; returns how many there were."""
    out, done, count = "", 0, 0
    for found in re.finditer(r"\b" + name + r"\(", text):
        line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
        if found.start() < done or "__device__" not in line:
            continue
        end = closing(text, found.end() - 1, "(", ")")
        begin = re.match(r"\s*(const)?\s*\{", text[end:])
        arguments = text[found.end() : end]
        if not begin or ARGUMENTS.get(name, "") not in arguments:
            continue
        at = end + begin.end() - 1
        out += text[done:at] + "{ " + body + " }"
        done = closing(text, at, "{", "}")
        count += 1
    return out + text[done:], count


def main():
    source, target = sys.argv[1:]
    os.makedirs(target, exist_ok=True)
    counts = dict.fromkeys(BODIES, 0)
    texts = dict.fromkeys([*(old for old, _ in TEXTS), *PATTERNS], 0)
    for name in sorted(os.listdir(source)):
        if not name.endswith((".cuh", ".h")):
            continue
        with open(os.path.join(source, name), encoding="utf-8") as file:
            text = file.read()
        for function, body in BODIES.items():
            text, n = replace_bodies(text, function, body)
            counts[function] += n
        for old, new in TEXTS:
            texts[old] += text.count(old)
            text = text.replace(old, new)
        for pattern, new in PATTERNS.items():
            text, n = re.subn(pattern, new, text)
            texts[pattern] += n
        for found in reversed(list(re.finditer(r"__launch_bounds__", text))):
            text = text[: found.start()] + text[closing(text, found.end(), "(", ")") :]
        with open(os.path.join(target, name), "w", encoding="utf-8") as file:
            file.write(text)
    missing = [name for name, n in {**counts, **texts}.items() if n == 0]
    if missing:
        sys.exit("emulate.py: no header has " + ", ".join(missing))


main()
