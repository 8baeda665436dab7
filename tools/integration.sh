#!/usr/bin/env bash
# Run integration/ with what it needs: strace, RabbitMQ's package, a container engine and an image.
# Arguments go to pytest. What cannot be had skips, and fails with CI=true.
#
# The image: RELIABLE_MQ_RABBITMQ_IMAGE, else one built here before, else the public one where a
# registry is reached, else it is built. An engine is installed and started with CI=true only.
set -euo pipefail
cd "$(dirname "$0")/.."

public=rabbitmq:4-management
local=rmq/rabbitmq:local

have() { docker image inspect "$1" >/dev/null 2>&1; }

tools/strace.sh
tools/rabbitmq.sh
if [ "${CI:-}" = true ]; then
    integration/images/engine.sh || true
fi
if [ -z "${RELIABLE_MQ_RABBITMQ_IMAGE:-}" ] && timeout 10 docker info >/dev/null 2>&1; then
    if have "$local" || ! { have "$public" || timeout 300 docker pull --quiet "$public" >/dev/null 2>&1; }; then
        if integration/images/build.sh >/dev/null; then
            export RELIABLE_MQ_RABBITMQ_IMAGE=$local
        fi
    fi
fi
exec .venv/bin/python -m pytest integration "$@"
