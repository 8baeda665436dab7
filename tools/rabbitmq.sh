#!/usr/bin/env bash
# The tests of RabbitMQ run it as a local process, from Debian's package. Get it where that can be
# done; else say what will skip. Never fails: the tests decide what a skip means.
#
# The package starts a node of its own when it is installed. The tests have theirs, on ports of their
# own, so that one is held back, by the file that Debian has for it; it is removed again afterwards.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]; then
    exit 0
fi
policy=/usr/sbin/policy-rc.d
if [ "$(id -u)" -eq 0 ] && [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
if ! tools/apt.sh rabbitmq-server; then
    echo "rabbitmq-server is missing: tests of RabbitMQ run on containers only, or skip, and say so" >&2
fi
