#!/usr/bin/env bash
# Checks the dependencies against deny.toml; builds cargo-deny into the cache the first time.
# Advisories need their database from outside the registries: run `cargo deny check` for those too
# where it can be reached.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
version=0.20.2
tools=${RMQ_TEST_CACHE:-$HOME/.cache/rmq-tests}/tools-$version
if [ ! -x "$tools/bin/cargo-deny" ]; then
    mkdir -p "$tools"
    (cd "$tools" && cargo install -q --locked "cargo-deny@$version" --root "$tools" --target-dir "$tools/target" >install.log 2>&1) || { tail -5 "$tools/install.log" >&2; exit 1; }
    rm -rf "$tools/target"
fi
exec "$tools/bin/cargo-deny" --log-level error --all-features check licenses bans sources
