#!/usr/bin/env bash
# The long form of the chaos suite (docs/chaos.md) on a real Kafka of its own, all seeds at once.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
	cat <<'USAGE'
usage: scripts/chaos.sh [--seeds 1,2,3,4,5] [--for 10m] [--protocol eager|cooperative] [--kafka VERSION] [--out DIR]
                        [--transactions] [--at-once N] [--no-stock]

Runs each seed with both protocols, and watermill-kafka's own Subscriber through the same schedules. With --transactions
members copy a topic exactly once, and beside it at least once, on three brokers that are restarted. The summaries go to
DIR/summaries.txt, violations to DIR/chaos.log, and the ledgers of all members stay in DIR; so do the brokers' data of a
run that failed, in DIR/kafka. The default DIR is ./chaos-out.
USAGE
}

seeds=1,2,3,4,5 length=10m kafka=4.4.0 out=chaos-out at_once=32 test=TestChaos brokers=1 args=(-chaos-stock)
while (($#)); do
	case $1 in
	--seeds) seeds=$2 && shift ;;
	--for) length=$2 && shift ;;
	--protocol) args+=(-chaos-protocol "$2") && shift ;;
	--kafka) kafka=$2 && shift ;;
	--out) out=$2 && shift ;;
	--transactions) test=TestExactlyOnce brokers=3 ;;
	--at-once) at_once=$2 && shift ;;
	--no-stock) args=("${args[@]/-chaos-stock/-chaos-stock=false}") ;;
	*)
		usage
		[[ $1 == --help ]] && exit 0 || exit 2
		;;
	esac
	shift
done

mkdir -p "$out"
out=$(cd "$out" && pwd)
go test -c -o "$out/chaos.test" ./internal/chaos
status=0
cd internal/chaos # where its tests expect to be
../../scripts/kafka.sh run "$kafka" --brokers "$brokers" -- \
	bash -c '"$@" || { cp -R "$ACKPOLICY_KAFKA_STATE/" "$0/kafka" && false; }' "$out" \
	"$out/chaos.test" -test.run "^$test\$" -test.v -test.parallel "$at_once" -test.timeout 4h \
	-chaos-seed "$seeds" -chaos-for "$length" -chaos-out "$out/summaries.txt" -chaos-keep "$out" "${args[@]}" \
	>"$out/chaos.log" 2>&1 || status=$?
cat "$out/summaries.txt"
((status == 0)) || echo "violations, or a run that failed: see $out/chaos.log" >&2
exit "$status"
