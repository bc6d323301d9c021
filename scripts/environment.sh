# Sourced by quickstart.sh and test.sh: one virtual environment with everything, made once (scripts/environment.py).
#   PYTHON  the interpreter to build it from (3.11 or newer; default python3)
#   VENV    where it goes (default .venv)
#   TORCH   what to install of torch; the default is the pair that the tests and the published figures were run with.
#           Any torch >= 2.6 works, but torchvision must be the one built for it.
#   EXTRAS  the extras of the package (test.sh: dev; quickstart.sh: study)
CHOSEN="${PYTHON:+--chosen}"
PYTHON="${PYTHON:-python3}"
VENV="${VENV:-.venv}"
TORCH="${TORCH:-torch==2.14.1 torchvision==0.29.1}"
EXTRAS="${EXTRAS:-dev}"

if [ "$("$PYTHON" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)" != True ]; then
    echo "error: Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3.11 bash $0" >&2
    exit 2
fi
"$PYTHON" scripts/environment.py --venv "$VENV" --extras "$EXTRAS" --torch "$TORCH" $CHOSEN || exit $?
