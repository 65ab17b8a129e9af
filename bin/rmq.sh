# Sourced by the scripts beside it: finds the executable and runs it with "$@".
# RMQ_BIN names another one than the packaged ../rmq or the one that cargo built.
here=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
for bin in "${RMQ_BIN:-}" "$here/rmq" "$here/target/release/rmq" "$here/target/debug/rmq"; do
    [ -n "$bin" ] && [ -x "$bin" ] && exec "$bin" "$@"
done
echo "$(basename "$0"): no executable under $here: run 'cargo build --release' there, or set RMQ_BIN" >&2
exit 69
