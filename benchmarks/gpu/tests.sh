#!/usr/bin/env bash
# The tests that need a GPU; ends with one line of JSON.
#
#     bash benchmarks/gpu/tests.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/../.."
source benchmarks/gpu/setup.sh
# Only the files that have such tests are imported: others may need what is not installed here.
mapfile -t files < <(grep -lE 'mark\.gpu' tests/test_*.py || true)
if [ ${#files[@]} -eq 0 ]; then
    echo '{"tests": 0, "error": "no test is marked gpu"}'
    exit 5
fi
code=0
"$python" -m pytest -p no:cacheprovider -m gpu --junitxml "$out/tests.xml" "${files[@]}" "$@" >"$out/tests.log" 2>&1 || code=$?
cat "$out/tests.log" >&2
"$python" - "$out/tests.xml" <<'PY'
import json, sys, torch, xml.etree.ElementTree as tree
suite = tree.parse(sys.argv[1]).getroot()[0].attrib
counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
print(json.dumps({**counts, "seconds": float(suite["time"]), "gpu": gpu, "torch": torch.__version__}))
PY
exit "$code"
