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

# Tests run side by side: they ask what comes out, not how fast.
limit=600 # seconds of one of them
declare -a names=() jobs=()
check() { # check NAME COMMAND...: its output goes into a log; verdicts come from finish
    names+=("$1")
    (
        start=$SECONDS
        timeout "$limit" "${@:2}" >"$out/$1.txt" 2>&1
        rc=$?
        printf '%d\n' $((SECONDS - start)) >"$out/$1.seconds"
        exit "$rc"
    ) &
    jobs+=($!)
}

ending() { # why a status is not 0; timeout ends all that it started, and sanitizers then say so too
    case $1 in
        124 | 137) printf 'stopped after %d s' "$limit" ;;
        12[89] | 1[3-9]? | 2??) printf 'ended by signal %d' $(($1 - 128)) ;;
        *) printf 'status %d' "$1" ;;
    esac
}

finish() { # waits for all, a line for each with its log's last
    local i name log rc
    for i in "${!jobs[@]}"; do
        name=${names[i]} log=$out/${names[i]}.txt rc=0
        wait "${jobs[i]}" || rc=$?
        if ((rc == 0)); then
            printf 'passed  %-16s %4d s  %s\n' "$name" "$(<"$out/$name.seconds")" "$(grep -v '^$' "$log" | tail -1)"
        else
            printf 'FAILED  %-16s %4d s  %s, see %s\n' "$name" "$(<"$out/$name.seconds")" "$(ending "$rc")" "$log"
            grep -E ':[FE]:|^========= (Error|ERROR|Race|Invalid|Program|Target)' "$log" | head -8
            tail -3 "$log"
            failed=1
        fi
    done
}

test_cuda=$(program test_cuda)
cuda_step=$(program cuda_step)
{
    date -u +%F
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
} | tee "$out/device.txt"
for case in device few largest medium packed states prompts large wide; do
    check "test_cuda-$case" env CK_RUN_CASE="$case" "$test_cuda"
done
# Where they are built: these read the source tree.
test_cuda_lti=$(program test_cuda_lti 2>/dev/null) && check test_cuda_lti "$test_cuda_lti"
for name in test_golden test_golden_chunks; do
    golden=$(program "$name" 2>/dev/null) && check "$name" env SSM_GOLDEN_BACKEND=cuda "$golden"
done
traffic=$(program test_device_traffic 2>/dev/null) && # through the engine: 12,500 requests
    check test_device_traffic env SSM_TEST_DEVICE=cuda SSM_TEST_TRAFFIC=2500 "$traffic"
if command -v compute-sanitizer >/dev/null; then
    sanitize=(compute-sanitizer --error-exitcode 1 --tool)
    check memcheck "${sanitize[@]}" memcheck "$test_cuda" quick
    [[ -n $test_cuda_lti ]] && check memcheck_lti "${sanitize[@]}" memcheck "$test_cuda_lti" quick
    # What racecheck follows it shows on kernels of a few lines (race_forms.cu): silent on right ones,
    # finding wrong ones, and what it says of others.
    forms=$(program race_forms)
    if "$forms" right >"$out/race_forms.txt" || [[ $? != 77 ]]; then
        check race_forms "${sanitize[@]}" racecheck "$forms" right
        check race_finds bash -c '"$@" | tee /dev/stderr | grep "SUMMARY: [1-9]"' _ \
            "${sanitize[@]}" racecheck "$forms" wrong
    else
        echo 'not run: race_forms, which is for Hopper'
    fi
    # Kernels of ours alone, and of them those that it can judge: in the others one lane arrives for its
    # warp, which it reports in right kernels, too. cuBLASLt's algorithms are chosen (and remembered)
    # before: timed under racecheck they took 53 GB of the host's memory in 40 s, and ended by signal 9.
    timeout 60 "$test_cuda" race >"$out/race.txt" 2>&1 || {
        printf 'FAILED  race, see %s\n' "$out/race.txt"
        failed=1
    }
    beyond=(few_kernel few_packed_kernel solo_kernel large_kernel medium_kernel xproj_kernel
        resident_kernel heads_kernel wide_kernel wide_turns_kernel scan_roles_kernel scan_wgmma_kernel head_kernel
        conv_xproj_kernel packed_head_kernel)
    ours=(--kernel-name kns=ssm)
    for kernel in "${beyond[@]}"; do
        ours+=(--kernel-name-exclude "kns=${#kernel}$kernel") # as it is mangled
    done
    for form in 0 1; do # few rows of Mamba-1, of Mamba-2
        check "racecheck-$form" "${sanitize[@]}" racecheck "${ours[@]}" "$test_cuda" race "$form"
    done
    echo "not judged by racecheck: ${beyond[*]} (race_forms beyond shows why)"
    # At 12 rows and at prompts (race 2, race 3) 2025.3.1 itself fails ("The Sanitizer failed to handle
    # a hardware exception"), whichever kernels it looks at; memcheck is clean there.
    echo 'not run: racecheck of more than 8 rows and of prompts, where it fails itself'
else
    echo 'not run: compute-sanitizer is not installed'
fi
finish
[[ -n $quick ]] && exit "$failed"

bench() { # bench NAME ARGUMENTS...
    local name=$1
    shift
    timeout 300 "$cuda_step" "$@" | tee "$out/$name.txt" || failed=1
}
bench mamba-f32 mamba-130m:decode=1,8,16,64,256:prefill=1x2048,8x2048 \
    mamba-2.8b:decode=1,64,512
bench mamba-f16 --state f16 mamba-130m:decode=64,1024 \
    mamba-2.8b:decode=1,8,16,32,64,96,128,256,512:prefill=1x2048,2x2048,4x2048,8x2048
lti_prompt=$(program lti_prompt 2>/dev/null) && # where it is built, beside the models
    for model in shakespeare-s4d copying-lssl induction-h3; do
        timeout 300 "$lti_prompt" --backend cuda "$here/../data/models/$model" 65536 |
            tee "$out/lti-$model.txt" || failed=1
    done
bench seven-b --state f16 falcon-mamba-7b:decode=1,2,8,16,32,64,128,512:prefill=1x512,1x2048,4x2048 \
    mamba-codestral-7b:decode=1,2,8,16,32,64,128:prefill=1x512,1x2048,4x2048
bench mamba2-f16 --state f16 mamba2-130m:decode=1,64,512:prefill=8x2048 \
    mamba2-2.7b:decode=1,64,512:prefill=1x2048,8x2048
"$here/gpu_http.sh" "$(program ssmd)" "$(program ssmd-load)" "$(program engine_load)" \
    "$out" || failed=1
exit "$failed"
