# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154 # of run.sh, which this is a part of: check, pod, name, state, memory, python, url
#
# The image with its sessions outside: a Redis (or Valkey: SSM_TEST_REDIS) on the host's loopback,
# one server of the image that begins a session, a second one that goes on with it after the first
# was killed. Both turns are those of the server at $url, which keeps its sessions to itself.

redis_pid=
redis_port=

redis_answers() {
    local line
    exec 3<>"/dev/tcp/127.0.0.1/$redis_port" && printf 'PING\r\n' >&3 && read -r -t 5 line <&3 && [[ $line == +PONG* ]]
}

start_redis() {
    local program folder=$state/redis
    program=${SSM_TEST_REDIS:-$(command -v redis-server || command -v valkey-server)}
    redis_port=$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
    rm -rf "$folder"
    mkdir "$folder"
    "$program" --port "$redis_port" --bind 127.0.0.1 --dir "$folder" --save '' >"$folder/log" 2>&1 &
    redis_pid=$!
    for _ in $(seq 100); do
        (redis_answers) 2>/dev/null && return 0
        sleep 0.1
    done
    cat "$folder/log"
    return 1
}

stop_redis() {
    [[ -n $redis_pid ]] || return 0
    kill -KILL "$redis_pid" 2>/dev/null || true
    wait "$redis_pid" 2>/dev/null || true # or bash says that it was killed
    redis_pid=
}

# start_beside NAME: on the host's network, where the Redis is. Its URL is left in $beside.
start_beside() {
    pod run -d --name "$name-$1" --pull=never --network=host --read-only --cap-drop=ALL \
        --security-opt no-new-privileges --user 65532:65532 --memory "$memory" --pids-limit 128 \
        -e SSMD_HOST=127.0.0.1 -e SSMD_PORT=0 -e SSMD_DURABILITY=sync \
        -e "SSMD_STATE_URL=redis://127.0.0.1:$redis_port" "$name"
    for _ in $(seq 200); do
        beside=$(podman logs "$name-$1" 2>/dev/null | grep -oE -m 1 'http://127\.0\.0\.1:[0-9]+' || true)
        [[ -z $beside ]] || curl -fsS -o /dev/null "$beside/readyz" 2>/dev/null || beside=
        [[ -z $beside ]] || return 0
        sleep 0.1
    done
    podman logs "$name-$1"
    return 1
}

keeps_sessions_there() { # what it says of itself, and of its Redis
    curl -fsS "$beside/health" | grep -F '"session_store":"ok"' &&
        podman run --rm --pull=never --network=none "$name" --version | grep -w redis
}

# turn URL PROMPT: the answer's tokens, and how many were there before it.
turn() {
    curl -fsS -m 60 -H 'Content-Type: application/json' "$1/v1/completions" -d "{\"session\": \"play\",
        \"prompt\": \"$2\", \"max_tokens\": 16, \"ignore_eos\": true, \"seed\": 1, \"return_token_ids\": true}" |
        grep -oE '"token_ids":\[[0-9,]{16,}\]|"prompt_tokens":[0-9]+'
}

same_turn() { # same_turn PROMPT: there and at the one server
    local here there
    here=$(turn "$url" "$1") && there=$(turn "$beside" "$1") && printf '%s\n' "$here" "$there" && test "$here" = "$there"
}

shared_sessions() {
    local beside
    check "a Redis outside the image" start_redis
    check "a server with its sessions in Redis" start_beside first
    check "it says so" keeps_sessions_there
    check "a turn of a session" same_turn 'ROMEO:'
    pod rm -f -t 0 "$name-first" >/dev/null
    check "a second server" start_beside second
    check "goes on with the session" same_turn '\n\nJULIET:'
    check "stops" pod stop -t 10 "$name-second"
    check "exit code 0" test "$(podman inspect "$name-second" --format '{{.State.ExitCode}}')" = 0
    stop_redis
}
