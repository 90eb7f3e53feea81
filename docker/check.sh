#!/bin/sh
# Builds the images, runs the demo to its end and removes every trace of it. Needs an engine, so no test depends on it.
#   sh docker/check.sh
set -eu
cd "$(dirname "$0")/.."

docker info >/dev/null 2>&1 || {
  echo 'check: there is no docker engine here' >&2
  exit 69
}

# Another project and any free port, so that a demo that somebody is looking at is not disturbed.
export PGCLONED_PORT=0
compose() { docker compose --project-name pgcloned-check --file docker/compose.yaml "$@"; }
trap 'compose down --volumes --timeout 30 >/dev/null 2>&1' EXIT

compose config --quiet
compose build
compose up --no-build --detach --wait api primary replica
compose run --rm --no-deps demo
