#!/usr/bin/env bash
# Make an environment that has triton and lends everything else from another one, which stays without it.
#
# usage: scripts/triton_venv.sh VENV LENDER
set -euo pipefail
venv=$1
lender=$(realpath "$2")
site='import sysconfig; print(sysconfig.get_path("platlib"))'
[ -x "$venv/bin/python" ] || "$lender/bin/python" -m venv "$venv"
"$venv/bin/python" -m pip install -qq --no-deps --require-hashes -r requirements/triton.txt
echo "import site; site.addsitedir('$("$lender/bin/python" -c "$site")')" > "$("$venv/bin/python" -c "$site")/lent.pth"
"$venv/bin/python" -c 'import triton, vllm'
