#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Checks on the sources as text. Each check prints what it found, file and line first; the last line
# counts them. Tracked files only, so that a build folder or an editor's copy is never judged.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

findings=0

# report CHECK: every line of stdin is a finding.
report() {
    local check=$1 line
    while IFS= read -r line; do
        [[ -n $line ]] || continue
        printf '%s: %s\n' "$check" "$line"
        findings=$((findings + 1))
    done
}

tracked() { # tracked PATTERN...: existing tracked (or new, not ignored) files
    git ls-files --cached --others --exclude-standard -- "$@" | while IFS= read -r file; do
        [[ -f $file ]] && printf '%s\n' "$file"
    done
}

mapfile -t c_files < <(tracked '*.c' '*.cc' '*.h' '*.cu' '*.cuh')
mapfile -t scripts < <(tracked run .ci/run '*.sh')
mapfile -t sources < <(tracked '*.c' '*.cc' '*.h' '*.cu' '*.cuh' '*.sh' '*.py' run .ci/run)

# The formatter by its version: each one breaks lines a little differently.
check_format() {
    clang-format-14 --dry-run -Werror "${c_files[@]}" 2>&1 | grep -E 'error:' | sed 's/ error: code should be clang-formatted.*/ not formatted (clang-format-14 -i)/'
}

# include_rule FOLDER FORBIDDEN WHY: dependencies point one way, server -> include/ssm <- engine ->
# kernels. Tests may look inside.
include_rule() { # further words: pathspecs of exceptions
    local folder=$1 forbidden=$2 why=$3
    shift 3
    git grep -nE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[<\"]($forbidden)" -- "$folder" "$@" |
        sed "s|\$|   ($why)|"
}

check_includes() {
    include_rule server '(\.\./)*(engine|kernels|tests)/' 'server/ sees libssm through include/ssm alone'
    include_rule engine '(\.\./)*(server|tests)/|microhttpd|uv\.h' 'engine/ knows nothing of the server' \
        ':!engine/state/redis_link.h' # a loop of its own
    include_rule kernels '(\.\./)*(engine|server|tests)/|jansson|microhttpd|uv\.h|pcre2|utf8proc' \
        'kernels/ compute only'
    include_rule include '(\.\./)*(engine|kernels|server|tests)/|jansson|microhttpd|uv\.h' \
        'public headers stand alone'
}

check_spdx() {
    local file
    for file in "${sources[@]}"; do
        head -n 2 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0' ||
            printf '%s:1: no SPDX-License-Identifier in the first lines\n' "$file"
    done
}

# No path of the machine that something was written on.
check_paths() {
    git grep -nIF -e "$PWD/" -- . ':!LICENSE'
    git grep -nIE '/(home|Users)/[a-z][a-z0-9_-]+/' -- . ':!LICENSE'
}

check_whitespace() {
    git grep -nIE '[[:space:]]+$' -- '*.c' '*.h' '*.cu' '*.py' '*.sh' '*.md' run '*CMakeLists.txt'
    local file
    for file in "${sources[@]}"; do
        [[ ! -s $file || -z $(tail -c 1 "$file") ]] || printf '%s: no newline at the end\n' "$file"
    done
}

# Two .cu files' structs of one name are one type to the linker: launch<> of either copies the
# arguments of whichever it kept.
check_cuda_types() {
    git grep -nhoE '^(template <[^>]*> )?struct [a-z_0-9]+ \{' -- kernels/cuda | sed -E 's/.*struct ([a-z_0-9]+) .*/\1/' |
        sort | uniq -d | sed 's|^|kernels/cuda: more than one struct |'
}

# Loads through a const pointer with __restrict__ are of constant data to the compiler, which moves
# them above dependency_wait() where it can: before the predecessor has written what they read.
check_cuda_restrict() {
    git grep -nE '__restrict' -- kernels/cuda | grep -vE '^[^:]+:[0-9]+:[[:space:]]*//' |
        sed 's|$|   (its loads may pass dependency_wait)|'
}

check_scripts() {
    shellcheck -f gcc "${scripts[@]}"
}

# cppcheck at what it is sure of: errors, warnings, portability and performance. Weights are streams
# of bytes that are read as vectors: its view of such casts is not ours.
check_static() {
    local -a plain=()
    local file
    for file in "${c_files[@]}"; do
        [[ $file == *.c && $file != tests/* ]] && plain+=("$file")
    done
    [[ ${#plain[@]} -gt 0 ]] || return 0
    cppcheck --quiet -j "$(nproc)" --std=c11 --enable=warning,portability,performance --inline-suppr \
        --suppress=missingInclude --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=invalidPointerCast:kernels/cpu/* \
        -I include -I . --template='{file}:{line}: {id}: {message}' "${plain[@]}" 2>&1
}

# Not findings: functions that pass two screens are worth a look.
long_functions() {
    ctags -x --_xformat='%{input}:%{line} %N %{end}' --fields=+ne --kinds-C=f --languages=C \
        "${c_files[@]}" 2>/dev/null |
        awk '{ split($1, at, ":"); lines = $3 - at[2] + 1;
               if (lines > 100) printf "note: %s %s has %d lines\n", $1, $2, lines }'
}

report format < <(check_format)
report includes < <(check_includes)
report licence < <(check_spdx)
report paths < <(check_paths)
report whitespace < <(check_whitespace)
report cuda < <(check_cuda_types)
report cuda < <(check_cuda_restrict)
report shellcheck < <(check_scripts)
report cppcheck < <(check_static)
long_functions

printf 'lint: %d files, %d findings\n' "${#sources[@]}" "$findings"
[[ $findings -eq 0 ]]
