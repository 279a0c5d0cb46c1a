#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Stand-ins for nvidia/cuda:13.0.2-devel-ubuntu24.04 and -runtime-, for a machine that cannot fetch
# them: Debian trixie, which names its packages as Ubuntu 24.04 does, with this machine's toolkit in
# the place and the environment of the real ones. Good for trying a Dockerfile's stages, not for
# shipping: sizes, compilers and libraries are others.
#
#   cuda_standin.sh CACHE      with the settings of run.sh in the environment
set -euo pipefail

cache=$1
version=13.0.2
toolkit=$(realpath "${CUDA_HOME:-/usr/local/cuda}")
system=localhost/standin:24.04

make_system() {
    local archive=$cache/base-trixie.tar mirror
    podman image exists "$system" && return 0
    # shellcheck disable=SC2016 # apt's own format
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Identifier: Packages' | head -n 1)
    [[ -s $archive ]] || TMPDIR=/dev/shm mmdebstrap -q --variant=minbase \
        --aptopt='Acquire::Check-Valid-Until "false"' trixie "$archive" "$mirror"
    podman import -q --change 'CMD ["bash"]' "$archive" "$system" >/dev/null
}

# make KIND TAR-ARGUMENTS...: the system and a part of the toolkit
make() {
    local kind=$1 container folder
    shift
    container=$(buildah from --pull-never "$system")
    folder=$(buildah mount "$container")
    tar -C "$(dirname "$toolkit")" -c "$@" "$(basename "$toolkit")" | tar -C "$folder/usr/local" -x
    ln -s "$(basename "$toolkit")" "$folder/usr/local/cuda"
    echo /usr/local/cuda/lib64 >"$folder/etc/ld.so.conf.d/000_cuda.conf"
    chroot "$folder" ldconfig
    buildah umount "$container" >/dev/null
    buildah config --env CUDA_VERSION=$version --env NVIDIA_VISIBLE_DEVICES=all \
        --env NVIDIA_DRIVER_CAPABILITIES=compute,utility --env LIBRARY_PATH=/usr/local/cuda/lib64/stubs \
        --env PATH=/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --env LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 "$container"
    buildah commit -q --rm --format docker "$container" "localhost/nvidia/cuda:$version-$kind-ubuntu24.04" >/dev/null
}

# What the program's build does not use would be 2 GB more.
declare -a unused=()
for library in cudnn cusolver cusparse cufft curand nccl npp nvjpeg nvblas nvperf cupti; do
    unused+=(--exclude="lib$library*")
done
unused+=(--exclude='libcublas*_static.a' --exclude='lib*.alt*' --exclude='nsight*')
make_system
make devel "${unused[@]}"
make runtime "${unused[@]}" --exclude='*.a' --exclude=nvvm --exclude=bin --exclude=include --exclude=cmake \
    --exclude=stubs --exclude='libnvvm*' --exclude='libnvrtc*'
