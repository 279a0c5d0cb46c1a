// SPDX-License-Identifier: Apache-2.0
// Launches of clusters of blocks on Hopper, and how many of them a device holds at once.
#ifndef SSM_KERNELS_CUDA_CLUSTERS_CUH
#define SSM_KERNELS_CUDA_CLUSTERS_CUH

#include "cuda.h"

namespace ssm {

enum cluster_start {
    WITH_ALL_BLOCKS,    // of the launch, which wait for each other: cooperative
    BESIDE_PREDECESSOR, // once it says so (util.cuh, dependents_start)
};

struct cluster_launch {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];

    // blocks: of a cluster, along x; shared: bytes
    cluster_launch(const device *d, dim3 grid, int threads, int shared, int blocks,
                   cluster_start start)
        : config(), attributes() {
        attributes[0].id = cudaLaunchAttributeClusterDimension;
        attributes[0].val.clusterDim = {(unsigned)blocks, 1, 1};
        if (start == WITH_ALL_BLOCKS) {
            attributes[1].id = cudaLaunchAttributeCooperative;
            attributes[1].val.cooperative = 1;
        } else {
            attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
            attributes[1].val.programmaticStreamSerializationAllowed = 1;
        }
        config.gridDim = grid;
        config.blockDim = dim3((unsigned)threads);
        config.dynamicSmemBytes = (size_t)shared;
        config.stream = d->stream;
        config.attrs = attributes;
        config.numAttrs = 2;
    }
    cluster_launch(const cluster_launch &) = delete; // config points into it

    template <class... P, class... A> cudaError_t run(void (*kernel)(P...), const A &...args) {
        const cudaError_t rc = allow_shared(kernel);
        return rc ? rc : cudaLaunchKernelEx(&config, kernel, args...);
    }

    // Clusters that are there at once on an empty device; 0 where it does not tell.
    template <class K> int most(K kernel) {
        int clusters = 0;
        cudaLaunchConfig_t c = config;
        c.numAttrs = 1; // how they start is no matter
        if (allow_shared(kernel) != cudaSuccess ||
            cudaOccupancyMaxActiveClusters(&clusters, kernel, &c) != cudaSuccess) {
            cudaGetLastError(); // other kernels do without
            return 0;
        }
        return clusters;
    }

  private:
    template <class K> cudaError_t allow_shared(K kernel) const {
        return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    (int)config.dynamicSmemBytes);
    }
};

} // namespace ssm

#endif
