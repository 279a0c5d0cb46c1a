// SPDX-License-Identifier: Apache-2.0
// Joules of work on a GPU, by NVML's counter of total energy (millijoules, new every 100 ms).
//
// Work is a graph of about 10 ms that is launched again and again, some launches ahead; energy and
// time are read where the counter changes, a window of some tenths of a second apart.
// - back to back: what a step of such work does. A card that is at its power cap needs some tenths
//   of a second to find its clock, and then energy is cap times time.
// - with idle time between bursts of 0.4 ms, so that the mean stays below the cap: every kernel at
//   the same clock. What the idle time takes, measured alone, is taken off.
// Two readings of the same kernel differ by 3% (back to back, settled) to 5% (with idle time).
#ifndef SSM_TESTS_BENCH_ENERGY_CUH
#define SSM_TESTS_BENCH_ENERGY_CUH

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MUST_CUDA(call)                                                                            \
    do {                                                                                           \
        const cudaError_t rc_ = (call);                                                            \
        if (rc_ != cudaSuccess) {                                                                  \
            fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(rc_));                           \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

struct energy_reading {
    double us, watts, millijoules; // us and mJ of one call, watts of the whole window
    double gigahertz;              // of the SMs, between graphs
};

// One thread, for so many microseconds; adds up its clock in GHz and how often.
static __global__ void energy_idle(int us, double *clock) {
    unsigned long long from, to;
    const long long cycles = clock64();
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(from));
    do
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(to));
    while (to - from < us * 1000ull);
    if (clock)
        clock[0] += (double)(clock64() - cycles) / (double)(to - from), clock[1] += 1;
}

class energy_meter {
    enum { AHEAD = 4 };
    void *device_ = NULL;
    int (*total_)(void *, unsigned long long *) = NULL;
    cudaStream_t stream_ = NULL;
    double *clock_ = NULL;
    double idle_watts_ = 0, idle_more_ = 0; // of idle time: W, us beyond what is asked for

    static double now() {
        timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    }
    unsigned long long total() const {
        unsigned long long value = 0;
        total_(device_, &value);
        return value;
    }

  public:
    // Device 0, work on `stream`. False: there is no NVML, or it has no such counter.
    bool open(cudaStream_t stream) {
        char bus[64];
        void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
        if (!library || cudaDeviceGetPCIBusId(bus, sizeof bus, 0) != cudaSuccess)
            return false;
        auto start = (int (*)())dlsym(library, "nvmlInit_v2");
        auto find =
            (int (*)(const char *, void **))dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2");
        total_ = (decltype(total_))dlsym(library, "nvmlDeviceGetTotalEnergyConsumption");
        unsigned long long value;
        if (!start || !find || !total_ || start() != 0 || find(bus, &device_) != 0 ||
            total_(device_, &value) != 0)
            return false;
        stream_ = stream;
        MUST_CUDA(cudaMalloc((void **)&clock_, 2 * sizeof *clock_));
        const int us = 200;
        const energy_reading r =
            measure([&] { energy_idle<<<1, 1, 0, stream_>>>(us, NULL); }, 0.8, 0.2, 1);
        idle_watts_ = r.watts, idle_more_ = r.us - us;
        return true;
    }
    double idle_watts() const {
        return idle_watts_;
    }

    // call(): launches on the stream, which can be captured. busy: share of the time, at most 1.
    template <class F>
    energy_reading measure(const F &call, double seconds, double warm, double busy) {
        cudaEvent_t from, to, ring[AHEAD];
        MUST_CUDA(cudaEventCreate(&from));
        MUST_CUDA(cudaEventCreate(&to));
        for (cudaEvent_t &e : ring)
            MUST_CUDA(cudaEventCreateWithFlags(&e, cudaEventBlockingSync));
        call();
        MUST_CUDA(cudaEventRecord(from, stream_));
        call();
        MUST_CUDA(cudaEventRecord(to, stream_));
        MUST_CUDA(cudaStreamSynchronize(stream_));
        float ms;
        MUST_CUDA(cudaEventElapsedTime(&ms, from, to));
        const double one = ms * 1e-3 + 1e-6;
        const int calls = (int)((busy < 1 ? 0.4e-3 : 10e-3) / one) + 1; // of a burst
        const int idle = busy < 1 ? (int)(calls * one * 1e6 * (1 - busy) / busy) + 1 : 0;
        const int bursts = (int)(10e-3 / (calls * one + idle * 1e-6)) + 1;
        cudaGraph_t graph;
        cudaGraphExec_t exec;
        MUST_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
        for (int k = 0; k < bursts; k++) {
            for (int i = 0; i < calls; i++)
                call();
            if (idle > 0)
                energy_idle<<<1, 1, 0, stream_>>>(idle, NULL);
        }
        energy_idle<<<1, 1, 0, stream_>>>(30, clock_);
        MUST_CUDA(cudaStreamEndCapture(stream_, &graph));
        MUST_CUDA(cudaGraphInstantiate(&exec, graph, 0));
        MUST_CUDA(cudaGraphDestroy(graph));

        enum { WARM, FIRST_EDGE, WINDOW, OVER } state = WARM;
        double begin = now(), edge[2] = {}, joules[2] = {};
        unsigned long long last = 0;
        int n = 0, first = 0;
        while (state != OVER) {
            if (n < AHEAD || cudaEventQuery(ring[n % AHEAD]) == cudaSuccess) {
                if (state == WARM && now() - begin > warm) {
                    MUST_CUDA(cudaMemsetAsync(clock_, 0, 2 * sizeof *clock_, stream_));
                    MUST_CUDA(cudaEventRecord(from, stream_));
                    first = n, state = FIRST_EDGE, last = total();
                }
                MUST_CUDA(cudaGraphLaunch(exec, stream_));
                MUST_CUDA(cudaEventRecord(ring[n++ % AHEAD], stream_));
            }
            usleep(100);
            const unsigned long long value = state == WARM ? last : total();
            if (value == last)
                continue;
            last = value;
            if (state == WINDOW && now() - edge[0] < seconds)
                continue;
            const int which = state == WINDOW;
            edge[which] = now(), joules[which] = (double)value * 1e-3;
            state = which ? OVER : WINDOW;
        }
        MUST_CUDA(cudaEventRecord(to, stream_));
        MUST_CUDA(cudaStreamSynchronize(stream_));
        MUST_CUDA(cudaEventElapsedTime(&ms, from, to));
        double clock[2];
        MUST_CUDA(cudaMemcpy(clock, clock_, sizeof clock, cudaMemcpyDeviceToHost));
        MUST_CUDA(cudaGraphExecDestroy(exec));
        for (cudaEvent_t e : ring)
            cudaEventDestroy(e);
        cudaEventDestroy(from);
        cudaEventDestroy(to);

        const double whole = ms * 1e3 / (n - first);
        const double resting = idle > 0 ? bursts * (idle + idle_more_) : 0;
        energy_reading r;
        r.watts = (joules[1] - joules[0]) / (edge[1] - edge[0]);
        r.us = (whole - resting) / (bursts * calls);
        r.millijoules = (r.watts * whole - idle_watts_ * resting) * 1e-3 / (bursts * calls);
        r.gigahertz = clock[0] / clock[1];
        return r;
    }
};

#endif
