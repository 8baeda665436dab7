#!/usr/bin/env bash
# Build the images of brokers from Debian's packages, for machines that reach no container registry:
# rmq/<broker>:local for each folder here, on a base made by mmdebstrap from this host's own sources.
#
#   build.sh [BROKER...]                            builds these, or all
#   RELIABLE_MQ_RABBITMQ_IMAGE=rmq/rabbitmq:local   makes the tests take it
#
# Kafka's jars come from Maven Central, by the Maven of this host. Half a minute the first time, a second afterwards: docker keeps the layers.
set -euo pipefail
cd "$(dirname "$0")"

base=rmq/base:local
say() { echo "images: $*" >&2; }

# sources: what this host installs from, as mmdebstrap takes it: a file, in either format of apt.
sources() {
    local file
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        if [ -s "$file" ]; then
            echo "$file"
            return
        fi
    done
    say "neither /etc/apt/sources.list.d/debian.sources nor /etc/apt/sources.list is there"
    return 1
}

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT

if ! docker image inspect "$base" >/dev/null 2>&1; then
    say "making $base"
    command -v mmdebstrap >/dev/null 2>&1 || ../../tools/apt.sh mmdebstrap
    # shellcheck disable=SC2016 # $1 is for the hook's own shell
    mmdebstrap --quiet --variant=minbase --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt=force-unsafe-io --include=ca-certificates,tini,procps \
        --customize-hook='rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/*' \
        "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$temporary/base.tar" "$(sources)"
    docker import --change 'CMD ["bash"]' "$temporary/base.tar" "$base" >/dev/null
fi

[ $# -gt 0 ] || set -- */
for broker in "${@%/}"; do
    image=rmq/$broker:local
    context=$broker
    if [ "$broker" = kafka ]; then
        context=$temporary/kafka
        cp -r kafka "$context"
        cp -r "$(cd ../.. && .venv/bin/python -m reliable_mq.testing.brokers.kafka_jars)" "$context/jars"
    fi
    if ! built=$(DOCKER_BUILDKIT=0 docker build --network host --quiet --tag "$image" \
        --build-arg "BASE=$base" --build-arg http_proxy --build-arg https_proxy "$context" 2>&1); then
        say "$image could not be built:"
        echo "$built" | tail -n 20 >&2
        exit 1
    fi
    echo "$image"
done
