#!/usr/bin/env bash
# Run integration/ with what it needs: strace, RabbitMQ's package, Java and Kafka's jars, a container
# engine and images. Arguments go to pytest. What cannot be had skips, and fails with CI=true.
#
# The image of a broker: RELIABLE_MQ_<BROKER>_IMAGE, else one built here before, else the public
# one where a registry is reached, else it is built. An engine is installed and started with CI=true
# only.
set -euo pipefail
cd "$(dirname "$0")/.."

have() { docker image inspect "$1" >/dev/null 2>&1; }

tools/strace.sh
tools/rabbitmq.sh
tools/kafka.sh
if [ "${CI:-}" = true ]; then
    integration/images/engine.sh || true
fi

# image BROKER PUBLIC: have an image of it, and name it where it is not the public one.
image() {
    local variable=RELIABLE_MQ_${1^^}_IMAGE local=rmq/$1:local
    if [ -n "${!variable:-}" ]; then return; fi
    if have "$local" || ! { have "$2" || timeout 300 docker pull --quiet "$2" >/dev/null 2>&1; }; then
        if integration/images/build.sh "$1" >/dev/null; then
            export "$variable=$local"
        fi
    fi
}

if timeout 10 docker info >/dev/null 2>&1; then
    image rabbitmq rabbitmq:4-management
    image kafka apache/kafka:4.1.1
fi
# Two at a time, a file to each: most tests wait for something, and each worker has its own brokers.
exec .venv/bin/python -m pytest integration -n 2 --dist loadfile "$@"
