#!/usr/bin/env bash
# Runs the published set on its own Kafka and writes docs/benchmarks.md and its chart: below half an hour.
# Arguments are the bench's: bench/run.sh --runs 1
set -euo pipefail
cd "$(dirname "$0")/.."
exec scripts/kafka.sh run 4.4.0 -- go -C bench run . --all -o ../docs/benchmarks.md "$@"
