#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Completions over HTTP on a host with a GPU: ssmd serve --device cuda against ssmd-load on the same
# host, random weights of published geometries, without saved states but where "--cache-bytes -1",
# the default, says otherwise: prompts are random, so that is what saving costs. Streams of 128 tokens
# after prompts of 32 random ids, temperature 1, closed loop. Prints a line a run; whole reports go to
# a folder. Before them the engine's own speed under the same load without a server, in which HTTP's
# share can be read.
#
#   gpu_http.sh SSMD SSMD-LOAD ENGINE-LOAD OUTPUT-FOLDER
#
# Needs Python with numpy for the models (make_random_model.py beside this script) and 12 GB of disk.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
ssmd=$1 load=$2 engine=$3 out=$4
models=$(mktemp -d)
server=
trap '[[ -n $server ]] && kill "$server" 2>/dev/null; rm -rf "$models"' EXIT
failed=0

start() { # start MODEL OPTION...: sets server and url
    local model=$1 i
    shift
    "$ssmd" serve --model "$models/$model" --device cuda --max-sessions 512 --cache-bytes 0 \
        --port 0 --log-level warn "$@" >"$out/server.txt" 2>&1 &
    server=$!
    for ((i = 0; i < 600; i++)); do
        url=$(grep -o 'http://[0-9.:]*' "$out/server.txt" | head -1)
        [[ -n $url ]] && "$ssmd" health "$url" >/dev/null 2>&1 && return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    cat "$out/server.txt"
    failed=1
    return 1
}

stop() {
    kill "$server" 2>/dev/null
    wait "$server" || failed=1
    server=
}

measure() { # measure MODEL CLIENTS "OPTIONS of serve" "OPTIONS of ssmd-load"
    local name="$1 $2 clients $3 $4" report=$out/http.txt
    # shellcheck disable=SC2086 # lists of words
    "$load" --url "$url" --clients "$2" --duration 4 --warmup 2 --max-tokens 128 $4 >"$out/one.txt" 2>&1 ||
        failed=1
    { echo "== $name" && cat "$out/one.txt"; } >>"$report"
    awk -v name="$name" '/ tokens\/s generated/ { rate = $3 }
        /failed/ { lost = $4 }
        /^to the first token/ { first = $6; last = $8 }
        /^between tokens/ { between = $4; worst = $6 }
        END { printf "%-44s %9.0f tokens/s, %d failed; ms to the first token p50 %s p99 %s, between p50 %s p99 %s\n",
              name, rate, lost, first, last, between, worst }' "$out/one.txt"
}

own() { # own MODEL STATE-TYPE STREAMS...: the engine's own
    local model=$1 state=$2
    shift 2
    "$engine" --device cuda --state "$state" "$models/$model" "$@" >"$out/one.txt" 2>&1 || failed=1
    { echo "== $model $state, the engine's own" && cat "$out/one.txt"; } >>"$out/http.txt"
    sed -n "s/^ *\([0-9]* streams.*\)/the engine's own: $model $state \1/p" "$out/one.txt"
}

run() { # run MODEL "OPTIONS of serve" CLIENTS...
    local model=$1 options=$2 clients
    shift 2
    # shellcheck disable=SC2086 # a list of words
    start "$model" $options || return
    for clients; do
        measure "$model" "$clients" "$options" ""
    done
    stop
}

for geometry in mamba-130m mamba-2.8b mamba2-2.7b; do
    python3 "$here/make_random_model.py" "$geometry" "$models/$geometry" || exit 1
done
: >"$out/http.txt"
own mamba-130m f32 64 512
run mamba-130m "" 1 64 512
run mamba-130m "--cache-bytes -1" 64 512
run mamba-130m "--loops 4" 64 512
own mamba-2.8b f32 64 512
run mamba-2.8b "" 1 64 512
own mamba-2.8b f16 64 512
run mamba-2.8b "--state-dtype f16" 64 512
run mamba-2.8b "--loops 4" 512
own mamba2-2.7b f16 64
run mamba2-2.7b "--state-dtype f16" 8 64
exit "$failed"
