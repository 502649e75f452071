#!/bin/sh
# Print the Python that the set-up uses: $PYTHON when set, else the first one on PATH that is 3.10 or newer.
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' > /dev/null 2>&1; }

for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python3.14 python}; do
  if new_enough "$candidate"; then
    command -v "$candidate"
    exit 0
  fi
done
found=$("${PYTHON:-python3}" --version 2>&1) || found="no ${PYTHON:-python3}"
echo "rolltree needs Python 3.10 or newer, found $found. Install one or name it: make test PYTHON=/path/to/python3" >&2
exit 2
