#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# guidellm and aiperf, unmodified, against a server of the demonstration model: completions with the
# one, chats with the other, streamed, one table each and the command that made it.
#
#   GUIDELLM=.../bin/guidellm AIPERF=.../bin/aiperf tests/bench/other_clients.sh >TABLES
#
# Both are large and pin what the other refuses, so each wants a virtual environment of its own:
#   python3 -m venv g && g/bin/pip install guidellm==0.8.1      (with torch and CUDA: 5.6 GB)
#   python3 -m venv a && a/bin/pip install aiperf==0.13.0       (860 MB)
# The tokenizer's folder, which both want, is made by the first one's transformers.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
model=$root/config/models/shakespeare-mamba
guidellm=${GUIDELLM:-guidellm} aiperf=${AIPERF:-aiperf}
port=${PORT:-18080} clients=${CLIENTS:-16} requests=${REQUESTS:-160} tokens=${TOKENS:-64}
folder=$(mktemp -d)
server=

finish() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    [[ -z $server ]] || wait "$server" || true
    rm -rf "$folder"
}
trap finish EXIT

# measure COMMAND...: shows it, then what it prints; its whole output only if it fails.
measure() {
    printf '$ %s\n' "$(basename "$1") ${*:2}"
    if ! COLUMNS=150 timeout 300 "$@" >log 2>&1; then
        cat log >&2
        printf '%s failed\n' "$1" >&2
        return 1
    fi
}

cd "$folder" # their artifacts stay here
"$(dirname "$(readlink -f "$(command -v "$guidellm")")")/python3" - "$model/tokenizer.json" <<'PYTHON' >/dev/null 2>&1
import sys
from transformers import PreTrainedTokenizerFast
PreTrainedTokenizerFast(tokenizer_file=sys.argv[1], eos_token="<|endoftext|>").save_pretrained("tokenizer")
PYTHON
"$root/build/ssmd" serve --port "$port" --log-level error --model "$model" >serve.log 2>&1 &
server=$!
until "$root/build/ssmd" health --port "$port" 2>/dev/null; do
    kill -0 "$server" || { cat serve.log >&2; exit 1; }
    sleep 0.1
done

cpu=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
sed -n '1s/ on http.*//p' serve.log
echo "$cpu, $(nproc) cores, which the clients share; commit $(git -C "$root" rev-parse --short=12 HEAD), $(date -u +%F)"
echo
measure "$guidellm" run --backend "kind=openai_http,target=http://127.0.0.1:$port,request_format=/v1/completions" \
    --tokenizer kind=huggingface_auto,model=./tokenizer --profile "kind=concurrent,streams=$clients" \
    --constraint "kind=max_requests,count=$requests" --disable-console-interactive \
    --data "kind=synthetic_text,prompt_tokens=$tokens,output_tokens=$tokens" --output kind=json
"$guidellm" --version
grep -E '^[|]|Statistics' log
echo
measure "$aiperf" profile --model shakespeare-mamba --url "http://127.0.0.1:$port" --endpoint-type chat --streaming \
    --tokenizer ./tokenizer --use-server-token-count --concurrency "$clients" --request-count "$requests" \
    --synthetic-input-tokens-mean "$tokens" --synthetic-input-tokens-stddev 0 \
    --output-tokens-mean "$tokens" --output-tokens-stddev 0 --extra-inputs ignore_eos:true --ui none
echo "aiperf version: $("$aiperf" --version)"
sed -n '/LLM Metrics: Usage/,/^└/p; /LLM Metrics *$/,/^└/p; /^Benchmark Duration/p' log
