#!/usr/bin/env bash
# One slice of a recipe: goes on with it for some minutes, and packs what it has into $OUT. Ends with one line of JSON.
#
#     bash benchmarks/gpu/run_slice.sh dmlab 9 [--scale 4 --set world_batch_size=64 ...]
#
# The same command, again and again, until it says "finished": true. Ten minutes a command leave nine for the recipe, with
# the rest for starting and packing. When the machine is gone, its last parcel has the world, or a `so-far` to begin
# another run with: --init PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."
recipe=${1:?name a recipe: dmlab, minecraft or doom} minutes=${2:?how many minutes}
shift 2
source benchmarks/gpu/setup.sh
code=0
"$python" -m farworld recipe "$recipe" --out "$runs/$recipe" --minutes "$minutes" --json "$@" \
    >"$runs/$recipe.json" 2>"$out/$recipe.log" || code=$?
if [ "$code" != 0 ]; then tail -n 20 "$out/$recipe.log" >&2; fi
"$python" benchmarks/gpu/parcel.py pack "$runs/$recipe" "$out" --report "$runs/$recipe.json"
exit "$code"
