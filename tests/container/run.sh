#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds docker/Dockerfile and runs its image locked down, on a machine without a Docker engine and
# without a registry (Debian 12, root): the base image is made by mmdebstrap from the machine's own
# apt sources, buildah builds, podman and runc run. Checks the image, then the running container,
# then sends it the HTTP tests, has two of it share a session through a Redis (shared_sessions.sh),
# then stops it under load. Everything is made from nothing and removed again.
#
#   tests/container/run.sh [PYTEST ARGUMENTS]
#
# CT_CUDA=1 builds docker/Dockerfile.cuda instead, on stand-ins for nvidia/cuda's images that are made
# from the machine's toolkit (cuda_standin.sh): its stages, its files and its life without a GPU.
# Where it cannot run at all (not root, another distribution, no namespaces) it says so and exits 77.
# CT_STATE=FOLDER keeps images and layers between runs, CT_CACHE=FOLDER only the base's archive.
# CT_ONLY_BASE=1 installs the tools, makes that archive and ends.
# CT_PYTHON is the tests' Python (.venv/bin/python); without one the HTTP tests are a failure.
# It takes a minute and a half from nothing and 15 s with CT_STATE, on two cores.
# shellcheck disable=SC2016,SC2317 # formats for podman and awk; functions are called through check
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
if [[ $(id -u) != 0 ]] || ! grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release || ! unshare -mpf true 2>/dev/null; then
    echo "container: left out: it wants root and namespaces on Debian 12"
    exit 77
fi
base=localhost/debian:bookworm-slim
if [[ -n ${CT_CUDA:-} ]]; then
    base=localhost/nvidia/cuda:13.0.2-runtime-ubuntu24.04
fi
memory=256m
state=${CT_STATE:-$(mktemp -d /var/tmp/ssmd-container.XXXXXX)}
mkdir -p "$state"
cache=${CT_CACHE:-$state}
archive=$cache/base-bookworm.tar
python=${CT_PYTHON:-$root/.venv/bin/python}
name=ssmd-test-$$
passed=0
failed=0
export CONTAINERS_STORAGE_CONF=$state/storage.conf CONTAINERS_CONF=$state/containers.conf

say() {
    printf '[%4ds] %s\n' "$SECONDS" "$*"
}

# check WHAT COMMAND...: counts it, and shows the command's output if it fails.
check() {
    local what=$1
    shift
    if "$@" >"$state/last" 2>&1; then
        passed=$((passed + 1))
        say "ok   $what"
    else
        failed=$((failed + 1))
        say "FAIL $what"
        tail -n 25 "$state/last" | sed 's/^/       /'
    fi
}

finish() {
    echo "container: $passed passed, $failed failed"
    ((failed == 0))
    exit
}

pod() { # podman without its complaints about a missing systemd
    podman "$@" 2> >(grep -vE 'systemd connection|aardvark-dns' >&2)
}

# Images go through podman: a plain rm meets busy overlay mounts.
cleanup() {
    stop_redis
    podman rm -fa -t 0 >/dev/null 2>&1 || true # of this store alone
    [[ -z ${CT_STATE:-} ]] || return 0
    buildah rm -a >/dev/null 2>&1 || true
    podman rmi -fa >/dev/null 2>&1 || true
    awk -v d="$state/" 'index($2, d) == 1 {print $2}' /proc/mounts | sort -r | xargs -r umount 2>/dev/null || true
    rm -rf "$state"
}
# shellcheck source=tests/container/shared_sessions.sh
source "$root/tests/container/shared_sessions.sh"
trap cleanup EXIT

# runc, not crun, which refuses a hybrid cgroup mount; the ulimits, because podman's own defaults
# are refused without CAP_SYS_RESOURCE; netavark, or a stale CNI folder can win.
write_config() {
    printf '[storage]\ndriver="overlay"\ngraphroot="%s/store"\nrunroot="%s/run"\n' "$state" "$state" \
        >"$CONTAINERS_STORAGE_CONF"
    cat >"$CONTAINERS_CONF" <<CONF
[containers]
default_ulimits = ["nofile=$(ulimit -Sn):$(ulimit -Hn)", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
CONF
}

# answers_at URL: a completion within 20 s.
answers_at() {
    local url=$1
    for _ in $(seq 200); do
        complete 2 -f -o "$state/answer" 2>/dev/null && grep -q '"completion_tokens":2' "$state/answer" && return 0
        sleep 0.1
    done
    return 1
}

# The README's first docker run, as written; only a port that is taken here is another one.
as_the_readme_says() {
    local line client port=8080
    line=$(sed -n 's/^    docker run /docker run /p' "$root/README.md" | head -n 1)
    if curl -s -o /dev/null http://127.0.0.1:8080/; then
        port=18080
        line=${line/8080:8080/$port:8080}
    fi
    bash -c "exec $line" >"$state/readme.log" 2>&1 &
    client=$!
    check "$line" answers_at "http://127.0.0.1:$port"
    kill -TERM "$client"
    check "it ends when it is told to" wait "$client"
}

# docker/compose.yaml by a real reader of such files, up and down again.
compose() {
    local -a by=("$python" -m podman_compose --no-ansi -f "$root/docker/compose.yaml")
    if curl -s -o /dev/null http://127.0.0.1:8080/; then
        say "compose: port 8080 is taken here, only read"
        check "compose: read" "${by[@]}" config
        return
    fi
    check "compose: up" "${by[@]}" up -d --no-build
    check "compose: answers" answers_at http://127.0.0.1:8080
    check "compose: down" "${by[@]}" down -v
}

need_tools() {
    local tool missing=
    for tool in buildah podman runc mmdebstrap iptables catatonit curl; do
        command -v "$tool" >/dev/null || missing=1
    done
    [[ -x /usr/lib/podman/netavark ]] || missing=1
    [[ -n ${SSM_TEST_REDIS:-} ]] || command -v redis-server >/dev/null || command -v valkey-server >/dev/null || missing=1
    [[ -n $missing ]] || return 0
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends \
        buildah podman runc mmdebstrap netavark iptables catatonit curl redis-server >"$state/apt.log" 2>&1 || {
        tail -n 20 "$state/apt.log"
        exit 1
    }
}

make_archive() {
    local sources=/etc/apt/sources.list.d/debian.sources
    [[ ! -s $archive ]] || return 0
    [[ -f $sources ]] || sources=/etc/apt/sources.list
    TMPDIR=/dev/shm mmdebstrap -q --variant=minbase \
        --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$cache/new.tar" "$sources"
    mv "$cache/new.tar" "$archive"
}

make_base() {
    podman image exists "$base" && return 0
    if [[ -n ${CT_CUDA:-} ]]; then
        "$root/tests/container/cuda_standin.sh" "$cache"
        return
    fi
    make_archive
    podman import -q --change 'CMD ["bash"]' "$archive" "$base" >/dev/null
}

# What the README calls docker: podman, with an engine that does not answer, so that ./run image goes
# on to podman itself.
make_docker() {
    mkdir -p "$state/bin"
    printf '#!/bin/sh\n[ "$1" != info ] || exit 1\nexec podman "$@"\n' >"$state/bin/docker"
    chmod +x "$state/bin/docker"
    PATH=$state/bin:$PATH
}

# ./run image, but for what only this place needs. Without --layers nothing is kept.
build() {
    local -a how=(--isolation chroot --network=host --pull=never --layers -t "$name")
    if [[ -n ${CT_CUDA:-} ]]; then
        "$root/run" image cuda "${how[@]}" --build-arg "ARCH=${CT_CUDA_ARCH:-90a}"
    else
        "$root/run" image "${how[@]}"
    fi
}

image_is() { # image_is FORMAT TEST...
    test "$(podman image inspect "$name" --format "$1")" "${@:2}"
}

# What fills the image: the base, then what the second stage adds.
show_sizes() {
    local folder
    folder=$(podman image mount "$name")
    say "image $(podman image inspect "$name" --format '{{.Size}}') bytes, of which the base $(podman image inspect "$base" --format '{{.Size}}')"
    (cd "$folder" && du -sk usr/local/bin/ssmd usr/local/lib usr/local/share/ssmd usr/lib usr/share usr/bin usr/sbin var etc |
        sort -rn | sed 's/^/       /')
    podman history --human=false --format '{{.Size}} {{.CreatedBy}}' "$name" | awk '$1 > 0' | cut -c1-90 | sed 's/^/       /'
    check "image: no compiler left" test ! -e "$folder/usr/bin/cc" -a ! -e "$folder/usr/bin/gcc"
    podman image umount "$name" >/dev/null
}

status_has() { # status_has PATTERN: a line of the process's status
    grep -qE "$1" "/proc/$pid/status"
}

log_is_on_stdout() { # podman keeps the two apart; a line is written after the answer
    for _ in $(seq 50); do
        podman logs "$name" 2>/dev/null >"$state/log"
        ! grep -q 'msg=request .*path=/v1/completions status=200' "$state/log" || return 0
        sleep 0.1
    done
    cat "$state/log"
    return 1
}

memory_is_limited() {
    local v1 v2
    v1=$(sed -n 's/^[0-9]*:memory://p' "/proc/$pid/cgroup")
    v2=$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
    grep -qsx 268435456 "/sys/fs/cgroup/memory$v1/memory.limit_in_bytes" "/sys/fs/cgroup$v2/memory.max"
}

start() {
    pod run -d --name "$name" --pull=never ${SSM_CPU_SPINS:+-e SSM_CPU_SPINS} -p 127.0.0.1::8080 --read-only --cap-drop=ALL \
        --security-opt no-new-privileges --user 65532:65532 --memory "$memory" --pids-limit 128 "$name"
}

complete() { # complete MAX_TOKENS [CURL ARGUMENTS]
    curl -sS -m 60 -H 'Content-Type: application/json' "${@:2}" "$url/v1/completions" \
        -d "{\"prompt\":\"To be\",\"max_tokens\":$1,\"ignore_eos\":true,\"seed\":1}"
}

now_ms() {
    echo $(($(date +%s%N) / 1000000))
}

# From `run` to the first token's answer, in milliseconds.
first_token() {
    local started
    started=$(now_ms)
    start >/dev/null
    url=http://$(podman port "$name" 8080/tcp | head -n 1)
    until complete 1 -f -o "$state/first" 2>/dev/null; do
        (($(now_ms) - started < 60000)) || return 1
        sleep 0.02
    done
    say "first token $(($(now_ms) - started)) ms after run"
}

# One container after the other; the last one stays.
first_tokens() {
    for _ in 1 2 3 4; do
        first_token || return 1
        podman rm -f -t 0 "$name" >/dev/null 2>&1
    done
    first_token
}

# Without a driver: what is refused is the device, not the library's own dependencies.
cuda_opens() {
    local said
    said=$(pod run --rm --pull=never --network=none "$name" serve --device cuda 2>&1) && return 1
    printf '%s\n' "$said"
    grep -qiE 'driver|no CUDA-capable device' <<<"$said" && ! grep -qE 'cannot open shared object|undefined symbol' <<<"$said"
}

# The most that the container ever had, of what its limit counts.
show_memory() {
    local v1 v2 peak
    v1=$(sed -n 's/^[0-9]*:memory://p' "/proc/$pid/cgroup")
    v2=$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
    peak=$(cat "/sys/fs/cgroup/memory$v1/memory.max_usage_in_bytes" "/sys/fs/cgroup$v2/memory.peak" 2>/dev/null |
        sort -n | tail -n 1 || true)
    say "resident $(awk '/^VmRSS/ {print $2}' "/proc/$pid/status") kB, most $(awk '/^VmHWM/ {print $2}' "/proc/$pid/status") kB; with its files' pages most $((peak / 1024)) kB"
}

http_tests() {
    # tests that start servers of their own are left out here, so a skip is no failure
    (cd "$root" && env -u SSM_EXPECT_PYTHON SSMD_TEST_URL="$url" PYTHONPYCACHEPREFIX="$root/build/pycache" "$python" -m pytest -q -p no:cacheprovider tests/http "$@")
}

eight_run() {
    for _ in $(seq 200); do
        curl -sS -m 10 "$url/metrics" | grep -q '^ssmd_requests_running{.*} 8$' && return 0
        sleep 0.05
    done
    return 1
}

# SIGTERM with eight requests in flight: all are answered in full, and the exit code is 0.
stop_under_load() {
    local client started
    local -a clients=()
    rm -f "$state"/slow.*
    for client in 1 2 3 4 5 6 7 8; do
        complete 1500 -o "$state/slow.$client" -w '%{http_code}\n' >"$state/code.$client" 2>&1 &
        clients+=($!)
    done
    check "eight requests are in flight" eight_run
    started=$(now_ms)
    check "stop" pod stop -t 40 "$name"
    started=$(($(now_ms) - started))
    wait "${clients[@]}" || true
    check "all of them got 200" test "$(cat "$state"/code.* | grep -cx 200)" = 8
    check "and all of their tokens" test "$(cat "$state"/slow.* | grep -o '"completion_tokens":1500' | wc -l)" = 8
    check "exit code 0 after SIGTERM ($started ms)" test "$(podman inspect "$name" --format '{{.State.ExitCode}}')" = 0
}

cd "$state" # podman leaves a file where it stands when a container runs out of memory
write_config
need_tools
if [[ -n ${CT_ONLY_BASE:-} ]]; then
    make_archive
    exit
fi
make_docker
say "tools ready"
make_base
say "base image"
check "build" build
((failed == 0)) || finish
show_sizes
[[ -z ${CT_CUDA:-} ]] || check "image: its CUDA library opens" cuda_opens
check "image: not root" image_is '{{.Config.User}}' = 65532:65532
check "image: HEALTHCHECK by the program" image_is '{{.HealthCheck.Test}}' = '[CMD /usr/local/bin/ssmd health]'
check "image: EXPOSE 8080" image_is '{{range $p,$_ := .Config.ExposedPorts}}{{$p}}{{end}}' = 8080/tcp
first_tokens || { podman logs "$name" | tail -n 20; failed=$((failed + 1)); finish; }
pid=$(podman inspect "$name" --format '{{.State.Pid}}')
check "HEALTHCHECK passes" pod healthcheck run "$name"
check "the log is on standard output" log_is_on_stdout
check "no capabilities" status_has '^CapEff:.0+$'
check "seccomp" status_has '^Seccomp:.2'
check "no new privileges" status_has '^NoNewPrivs:.1'
check "user 65532" status_has '^Uid:.65532'
check "read-only root" awk '$2 == "/" {split($4, o, ","); exit o[1] != "ro"}' "/proc/$pid/mounts"
check "memory limit in force" memory_is_limited
show_memory
check "HTTP tests against the container" http_tests "$@"
tail -n 1 "$state/last"
show_memory
shared_sessions
stop_under_load
if [[ -z ${CT_CUDA:-} ]]; then
    as_the_readme_says
    compose
fi
finish
