#!/bin/sh
# Runs pytest in a clone, with a .venv of its own, that only root can enter: a node that gave its
# privileges up can read nothing there. Arguments are pytest's; without any, all tests run.
set -eu
cd "$(dirname "$0")/.."
clone=$(mktemp -d)    # mktemp makes it with mode 0700
trap 'rm -rf "$clone"' EXIT
git clone -q . "$clone/tunnel"
cd "$clone/tunnel"
make -s .venv/installed
.venv/bin/pytest -n auto --dist worksteal "$@"
