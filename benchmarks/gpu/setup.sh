# Sourced by the other scripts, in the root of the checkout: makes farworld and the packed wheels importable.
python=${PYTHON:-python3}
site=build/gpu/site
export PYTHONPATH="$PWD:$PWD/$site"
export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE
out=${OUT:-build/gpu/out}  # what comes back
runs=${RUNS:-build/gpu/runs}  # what stays, for as long as the machine is kept
mkdir -p "$out" "$runs"
version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
if [ "$version" = 3.12 ] && [ ! -d "$site" ] && compgen -G "build/gpu/wheels/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" build/gpu/wheels/*.whl
fi
"$python" - <<'PY'
import importlib, json, sys
missing = []
for name in ("cyclopts", "einops", "gymnasium", "numba", "PIL", "rich", "safetensors", "torch", "torchmetrics",
             "torch.utils.tensorboard", "zstandard"):
    try:
        importlib.import_module(name)
    except Exception as error:
        missing.append(f"{name} ({error})")
if missing:
    print(json.dumps({"error": "modules that cannot be imported; bash benchmarks/gpu/pack.sh", "missing": missing}))
    sys.exit(3)
PY
