#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Every device test and bench in one go, on a host with a GPU: from an installed folder (bin/, lib/)
# or a build folder. Exits 1 if a test fails; a missing device is a failure.
#
#   gpu_check.sh [--quick] [OUTPUT-FOLDER]      logs and tables go there (default: the current one)
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
quick=
[[ ${1:-} == --quick ]] && quick=1 && shift
out=${1:-.}
mkdir -p "$out"
export SSM_EXPECT_CUDA=1 CK_FORK=no
failed=0

program() { # its path, installed or built
    local folder
    for folder in "$here" "$here/tests" "$here/../../build/tests" "$here/../../build"; do
        [[ -x $folder/$1 ]] && printf '%s\n' "$folder/$1" && return
    done
    printf 'gpu_check: %s is not beside this script or in build/\n' "$1" >&2
    exit 2
}

check() { # check NAME COMMAND...: a log, its last line, a verdict
    local name=$1
    shift
    if "$@" >"$out/$name.txt" 2>&1; then
        printf 'passed  %-12s %s\n' "$name" "$(grep -v '^$' "$out/$name.txt" | tail -1)"
    else
        printf 'FAILED  %-12s see %s\n' "$name" "$out/$name.txt"
        tail -5 "$out/$name.txt"
        failed=1
    fi
}

test_cuda=$(program test_cuda)
cuda_step=$(program cuda_step)
{
    date -u +%F
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
} | tee "$out/device.txt"
check test_cuda timeout 600 "$test_cuda"
# Where they are built: these read the source tree.
test_cuda_lti=$(program test_cuda_lti 2>/dev/null) &&
    check test_cuda_lti timeout 600 "$test_cuda_lti"
for name in test_golden test_golden_chunks; do
    golden=$(program "$name" 2>/dev/null) &&
        SSM_GOLDEN_BACKEND=cuda check "$name" timeout 600 "$golden"
done
traffic=$(program test_device_traffic 2>/dev/null) && # through the engine: 12,500 requests
    SSM_TEST_DEVICE=cuda SSM_TEST_TRAFFIC=2500 check test_device_traffic timeout 600 "$traffic"
if command -v compute-sanitizer >/dev/null; then
    check memcheck timeout 600 compute-sanitizer --tool memcheck --error-exitcode 1 \
        "$test_cuda" quick
    [[ -n $test_cuda_lti ]] && check memcheck_lti timeout 600 compute-sanitizer --tool memcheck --error-exitcode 1 \
        "$test_cuda_lti" quick
    check racecheck timeout 600 compute-sanitizer --tool racecheck --error-exitcode 1 \
        "$test_cuda" race # two tests: it slows kernels hundreds of times
else
    echo 'not run: compute-sanitizer is not installed'
fi
[[ -n $quick ]] && exit "$failed"

bench() { # bench NAME ARGUMENTS...
    local name=$1
    shift
    timeout 300 "$cuda_step" "$@" | tee "$out/$name.txt" || failed=1
}
bench mamba-f32 mamba-130m:decode=1,8,16,64,256:prefill=1x2048,8x2048 \
    mamba-2.8b:decode=1,64,512
bench mamba-f16 --state f16 mamba-130m:decode=64,1024 \
    mamba-2.8b:decode=1,8,16,32,64,128,256,512:prefill=1x2048,2x2048,4x2048,8x2048
lti_prompt=$(program lti_prompt 2>/dev/null) && # where it is built, beside the models
    for model in shakespeare-s4d copying-lssl induction-h3; do
        timeout 300 "$lti_prompt" --backend cuda "$here/../data/models/$model" 65536 |
            tee "$out/lti-$model.txt" || failed=1
    done
bench mamba2-f16 --state f16 mamba2-130m:decode=1,64,512:prefill=8x2048 \
    mamba2-2.7b:decode=1,64,512:prefill=1x2048,8x2048
"$here/gpu_http.sh" "$(program ssmd)" "$(program ssmd-load)" "$out" || failed=1
exit "$failed"
