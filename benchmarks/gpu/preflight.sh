#!/usr/bin/env bash
# The whole journey on a CPU at toy scale, by the scripts and flags that the GPU is used with: what fails here would have
# cost its minutes. Ends with one line of JSON.
#
#     bash benchmarks/gpu/preflight.sh [RECIPE [options of farworld recipe]]     dmlab without any
#
# Packs the wheels (WHEELS=no leaves that out), copies what travels into a folder of its own, works on the recipe in two
# slices, of which the first is cut short, packs the run into small files, puts it together again, and plays both.
set -euo pipefail
cd "$(dirname "$0")/../.."
recipe=${1:-dmlab}
if [ $# -gt 0 ]; then shift; fi
export PYTHON=${PYTHON:-$(command -v .venv/bin/python || command -v python3)}
PYTHON=$(realpath --no-symlinks "$PYTHON")
began=$SECONDS
if [ "${WHEELS:-yes}" != no ]; then bash benchmarks/gpu/pack.sh "$recipe" || echo "go on without them" >&2; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree"
git ls-files -z --cached --others --exclude-standard -- . ':!assets/worlds' ':!docs' ':!tests/data' |
    while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
    tar --create --null --files-from=- | tar --extract --directory "$work/tree"
if [ -d build/gpu/wheels ]; then mkdir -p "$work/tree/build/gpu" && cp -r build/gpu/wheels "$work/tree/build/gpu/"; fi
export OUT=$work/out RUNS=$work/runs
slice() {
    bash "$work/tree/benchmarks/gpu/run_slice.sh" "$recipe" "$@" | tail -n 1
}
options=(--scale "${SCALE:-0.002}" --device cpu "$@")
first=$(slice "${FIRST_MINUTES:-0.2}" "${options[@]}")
last=$(slice 60 "${options[@]}")
cd "$work/tree"
source benchmarks/gpu/setup.sh
finished=$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])["finished"])' "$last")
digest=$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])["parcel"]["sha256"])' "$last")
if [ "$finished" != True ]; then
    echo "the recipe did not finish: $last" >&2
    exit 1
fi
"$python" benchmarks/gpu/parcel.py unpack "$OUT" "$work/home" --sha256 "$digest" >&2
same=$("$python" benchmarks/gpu/parcel.py compare "$RUNS/$recipe/world" "$work/home/world")
printf '{"recipe": "%s", "first_slice": %s, "last_slice": %s, "played": %s, "seconds": %d}\n' \
    "$recipe" "$first" "$last" "$same" $((SECONDS - began))
