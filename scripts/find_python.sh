#!/bin/sh
# Print the Python that the set-up uses: $PYTHON when set, else the first one on PATH that is new enough.
#
# usage: scripts/find_python.sh [MINOR]      (3.MINOR or newer; default 10)
minor=${1:-10}
new_enough() { "$1" -c "import sys; sys.exit(sys.version_info < (3, $minor))" > /dev/null 2>&1; }

for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python3.14 python}; do
  if new_enough "$candidate"; then
    command -v "$candidate"
    exit 0
  fi
done
found=$("${PYTHON:-python3}" --version 2>&1) || found="no ${PYTHON:-python3}"
echo "this needs Python 3.$minor or newer, found $found. Install one or name it: make TARGET PYTHON=/path/to/python3" >&2
exit 2
