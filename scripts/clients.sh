#!/usr/bin/env bash
# Fetches what the tests need beyond the Rust toolchain, once, into a cache: the jars of the real Java
# clients, name servers, brokers and tools (by Maven), and the Go client (by Go modules). Compiles the
# test programs under tests/clients against them. Prints the cache's path.
#
#   scripts/clients.sh          what `cargo test` needs: the next two
#   scripts/clients.sh java     only the Java side
#   scripts/clients.sh go       only the Go side
#   scripts/clients.sh faults   programs by which the fault suite injects some faults; it can do without
#   scripts/clients.sh nats     NATS and the load for it, which benches/versus.py needs
#
# RMQ_TEST_CACHE names another cache than ~/.cache/rmq-tests. Needs a JDK (11 or later), Maven and
# Go 1.21 or later, which fetches the newer one (1.26) that `nats` needs by itself; on Debian as root it
# installs what is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${RMQ_TEST_CACHE:-$HOME/.cache/rmq-tests}
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9

need() { # command, Debian package
    command -v "$1" >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$2"; } >"$cache/apt.log" 2>&1 && return
    fi
    echo "scripts/clients.sh: '$1' is missing: install it (Debian: apt-get install $2)" >&2
    exit 1
}

java_side() {
    need javac default-jdk-headless
    need mvn maven
    local line dir key
    for line in 4.9 5.5; do
        dir=$cache/java-$line
        key=$(sha256sum "$here/tests/clients/java/$line/pom.xml" | cut -c1-16)
        if [ "$(cat "$dir/lib.key" 2>/dev/null)" != "$key" ]; then
            rm -rf "$dir"
            mkdir -p "$dir"
            cp "$here/tests/clients/java/$line/pom.xml" "$dir/"
            (cd "$dir" && mvn -q -B dependency:copy-dependencies -DoutputDirectory=lib >mvn.log 2>&1) || { tail -5 "$dir/mvn.log" >&2; exit 1; }
            echo "$key" >"$dir/lib.key"
        fi
        key=$(cat "$here"/tests/clients/java/*.java | sha256sum | cut -c1-16)
        if [ "$(cat "$dir/classes.key" 2>/dev/null)" != "$key" ]; then
            rm -rf "$dir/classes"
            mkdir -p "$dir/classes"
            javac -nowarn -Xlint:none -cp "$dir/lib/*" -d "$dir/classes" "$here"/tests/clients/java/*.java 2>"$dir/javac.log" || { cat "$dir/javac.log" >&2; exit 1; }
            echo "$key" >"$dir/classes.key"
        fi
        cp "$here/tests/clients/java/logback.xml" "$dir/"
    done
}

go_side() {
    need go golang-go
    local key
    key=$(cat "$here"/tests/clients/go/* | sha256sum | cut -c1-16)
    if [ "$(cat "$cache/go.key" 2>/dev/null)" != "$key" ]; then
        (cd "$here/tests/clients/go" && go build -o "$cache/goclients" . >"$cache/go.log" 2>&1) || { cat "$cache/go.log" >&2; exit 1; }
        echo "$key" >"$cache/go.key"
    fi
}

faults() {
    (need strace strace) || true
    (need faketime faketime) || true
}

nats() {
    need go golang-go
    local key
    key=$(cat "$here"/benches/nats/* | sha256sum | cut -c1-16)
    if [ "$(cat "$cache/nats/key" 2>/dev/null)" != "$key" ]; then
        mkdir -p "$cache/nats"
        (cd "$here/benches/nats" && go build -o "$cache/nats/natsgen" . && go build -o "$cache/nats/nats-server" github.com/nats-io/nats-server/v2) \
            >"$cache/nats/log" 2>&1 || { cat "$cache/nats/log" >&2; exit 1; }
        echo "$key" >"$cache/nats/key"
    fi
}

case ${1:-all} in
java) java_side ;;
go) go_side ;;
faults) faults ;;
nats) nats ;;
all) java_side; go_side ;;
*) sed -n '2,14p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
echo "$cache"
