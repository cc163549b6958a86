#!/usr/bin/env bash
# A wheel without extras, with the oldest dependencies it allows and then with the newest, does the main job.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$PWD/.venv/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HABITUS_CACHE="$work/cache"

"$PYTHON" -m uv build --quiet --wheel --out-dir "$work" .
for resolution in lowest-direct highest; do
    home="$work/$resolution"
    "$PYTHON" -m uv venv --quiet --python "$PYTHON" "$home"
    "$PYTHON" -m uv pip compile --quiet --python "$home/bin/python" --resolution "$resolution" pyproject.toml -o "$home/versions"
    "$PYTHON" -m uv pip install --quiet --python "$home/bin/python" -r "$home/versions" "$work"/*.whl
    cd "$work"
    echo "without extras, $resolution: $("$home/bin/python" -c 'import jax, numpy; print("jax", jax.__version__, "numpy", numpy.__version__)')"
    "$home/bin/habitus" data make pendulum-medium --size 2_000
    "$home/bin/habitus" learn td3bc --data pendulum-medium --steps 200 --seeds 2 --folder "$home/offline" --quiet
    "$home/bin/habitus" learn ppo --env cartpole --steps 5_000 --folder "$home/online" --quiet
    "$home/bin/habitus" evaluate "$home/online" --episodes 5
    "$home/bin/habitus" report "$home/offline" "$home/online" --out "$home/report.html"
    test -s "$home/report.html"
    cd - >/dev/null
done
