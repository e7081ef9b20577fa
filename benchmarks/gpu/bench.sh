#!/usr/bin/env bash
# Speed on this machine: training of each preset, rollouts of worlds over steps, context and batch. Each measurement is a line
# of JSON in $OUT/bench.jsonl, what failed too; ends with one line of JSON.
#
#     bash benchmarks/gpu/bench.sh [WORLD...]          without any: FAR-B-Long and FAR-M-Long with random weights, and the
#                                                      worlds of the runs that are there
#
# PRESETS, STEPS, CONTEXTS and BATCHES narrow it down or widen it; FRAMES is what is measured of each. After MINUTES, 9,
# the rest is skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
source benchmarks/gpu/setup.sh
read -ra presets <<<"${PRESETS-maze-s voxel-s}"
read -ra steps <<<"${STEPS-1 4}"
read -ra contexts <<<"${CONTEXTS-16 300 1000}"
read -ra batches <<<"${BATCHES-1 64}"
worlds=("$@")
if [ ${#worlds[@]} -eq 0 ]; then
    for size in far_b_long far_m_long; do
        "$python" benchmarks/gpu/random_world.py "$size" "$runs/$size"
        worlds+=("$runs/$size")
    done
    for world in "$runs"/*/world; do
        if [ -f "$world/config.json" ]; then worlds+=("$world"); fi
    done
fi
results=$out/bench.jsonl
: >"$results"
done_=0 failed=0 skipped=0
measure() {
    local line
    if [ "$SECONDS" -ge $((60 * ${MINUTES:-9})) ]; then
        skipped=$((skipped + 1))
        return
    fi
    if line=$("$python" -m farworld bench "$@" --json 2>"$out/bench.log" | tail -n 1) && [ -n "$line" ]; then
        printf '%s\n' "$line" | tee -a "$results" >&2
        done_=$((done_ + 1))
    else
        printf '{"failed": "farworld bench %s", "error": "%s"}\n' \
            "$*" "$(tail -n 1 "$out/bench.log" | tr -d '"\\')" | tee -a "$results" >&2
        failed=$((failed + 1))
    fi
}
for preset in "${presets[@]}"; do measure train --preset "$preset"; done
for world in "${worlds[@]}"; do
    for step in "${steps[@]}"; do
        for context in "${contexts[@]}"; do
            for batch in "${batches[@]}"; do
                measure env --ckpt "$world" --steps "$step" --context "$context" --batch-size "$batch" --frames "${FRAMES:-100}"
            done
        done
    done
done
printf '{"measured": %d, "failed": %d, "skipped": %d, "results": "%s"}\n' "$done_" "$failed" "$skipped" "$results"
[ "$failed" = 0 ]
