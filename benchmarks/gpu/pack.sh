#!/usr/bin/env bash
# Gets ready what travels to a machine with a GPU and no network: the checkout's files, and wheels of what is missing there.
#
#     bash benchmarks/gpu/pack.sh [RECIPE...]      doom brings VizDoom
#
# Fills build/gpu/wheels, which git ignores and which has to be named as an extra folder. Says what it could not fetch, and
# whether checkout and wheels fit. A bundled world that nothing is begun with is dead weight: leave it out of the checkout
# (git sparse-checkout set --no-cone '/*' '!/assets/worlds/' '!/docs/*.png').
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
limit=$((64 * 1024 * 1024))
wheels=build/gpu/wheels
mkdir -p "$wheels"

lists=(benchmarks/gpu/wheels.txt)
for recipe in "$@"; do
    if [ "$recipe" = doom ]; then lists+=(benchmarks/gpu/wheels-doom.txt); fi
done
names=$(sed 's/#.*//' "${lists[@]}")
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done

missing=()
for name in $names; do
    file=${name//-/_}
    if compgen -G "$wheels/${file,,}-*.whl" >/dev/null; then continue; fi
    if ! "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" --constraint constraints.txt --dest "$wheels" "$name" 2>"$wheels/$name.log"; then
        missing+=("$name")
        echo "no wheel of $name: $(grep -i error "$wheels/$name.log" | tail -n 1)" >&2
    fi
    rm -f "$wheels/$name.log"
done

checkout=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du --bytes --total 2>/dev/null | tail -n 1 | cut -f 1)
packed=$(du --bytes --summarize "$wheels" | cut -f 1)
fits=$([ $((checkout + packed)) -le "$limit" ] && echo true || echo false)
if [ "$fits" = false ]; then
    echo "checkout and wheels are $(((checkout + packed) >> 20)) MiB, and 64 travel; see the head of this script" >&2
fi
printf '{"wheels": %d, "missing": "%s", "checkout_bytes": %d, "wheel_bytes": %d, "fits": %s}\n' \
    "$(find "$wheels" -name '*.whl' | wc -l)" "${missing[*]-}" "$checkout" "$packed" "$fits"
[ ${#missing[@]} -eq 0 ] && [ "$fits" = true ]
