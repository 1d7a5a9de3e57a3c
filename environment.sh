#!/bin/sh
# sh environment.sh VENV PYTHON CHOSEN REQUIREMENTS...: make sure that the virtual environment VENV holds what is pinned.
#
# PYTHON makes it where there is none; CHOSEN is not empty where a person named that Python. Each of REQUIREMENTS is a file
# whose content counts, not its time; pip installs the first. Nothing is ever cleared, for a program may be running from
# VENV: what is missing is added, and pip changes what differs.
set -e
venv=$1 python=$2 chosen=$3
shift 3
stamp=$venv/.installed # Python's version, then the requirement files, as they were when all of it was installed
PATH=$(printf %s "$PATH" | sed "s|^[^:]*/$venv/bin:||") # where make looks first

version() {
    "$1" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null || echo "no Python"
}
fail() {
    echo "error: $1" >&2
    exit 1
}
wanted() {
    version "$venv/bin/python"
    cat "$@"
}

own=$(version "$venv/bin/python")
if [ -n "$chosen" ] && [ "$own" != "no Python" ] && [ "$own" != "$(version "$python")" ]; then
    fail "$venv has $own, and $python is $(version "$python"): remove $venv, or leave PYTHON=$python out"
fi
if wanted "$@" | cmp -s - "$stamp"; then
    exit 0
fi
if [ -L "$venv" ]; then
    fail "$venv is a link to $(readlink "$venv"), where other packages are installed than $1 pins: remove the link"
fi
if [ "$own" = "no Python" ] && [ -e "$venv" ]; then
    fail "$venv holds no Python that runs: remove $venv"
fi
if [ -s "$stamp" ] && [ "$(head -n 1 "$stamp")" != "$own" ]; then
    fail "$venv was made with $(head -n 1 "$stamp"), and its Python is $own now: remove $venv"
fi
if [ "$own" = "no Python" ]; then
    case $(version "$python") in
    "Python 3.11" | "Python 3.12" | "Python 3.13") ;; # mmengine and mmcv call what Python 3.14 no longer has
    *) fail "Python 3.11 to 3.13 is needed, and $python is $(version "$python"): make PYTHON=python3.13 ..." ;;
    esac
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    echo "$python -m venv $venv"
    "$python" -m venv "$venv"
fi
echo "pip install -r $1"
rm -f "$stamp"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1"
wanted "$@" >"$stamp.new"
mv "$stamp.new" "$stamp"
