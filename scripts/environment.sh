# Sourced by quickstart.sh and test.sh: one virtual environment with everything, made once.
#   PYTHON  the interpreter to build it from (3.11 or newer; default python3)
#   VENV    where it goes (default .venv)
#   TORCH   the torch to install; the default is the release that the tests and the published figures were run with.
#           Any torch >= 2.6 works; a free choice would fetch several gigabytes of GPU libraries on many machines.
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"
TORCH="${TORCH:-torch==2.13.0}"

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11 bash $0" >&2
    exit 2
fi
if [ ! -x "$VENV/bin/python" ]; then
    echo "making the environment $VENV"
    "$PYTHON" -m venv "$VENV"
fi
wanted="$(printf '%s\n' "$TORCH"; cat pyproject.toml)"
if [ "$wanted" != "$(cat "$VENV/installed" 2>/dev/null)" ]; then
    echo "installing (a few minutes the first time)"
    "$VENV/bin/python" -m pip install --quiet "$TORCH"
    "$VENV/bin/python" -m pip install --quiet --editable ".[dev]"
    printf '%s\n' "$wanted" > "$VENV/installed"
fi
