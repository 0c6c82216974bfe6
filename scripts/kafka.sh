#!/usr/bin/env bash
# Runs a real Apache Kafka from its Maven Central jars: needs java and mvn, no Docker.
set -euo pipefail

usage() {
	cat <<'USAGE'
usage: scripts/kafka.sh start [VERSION] [--brokers N] [--secure]  start a cluster, print its KAFKA_BROKERS
       scripts/kafka.sh stop                                      stop it and remove its data
       scripts/kafka.sh status
       scripts/kafka.sh run [VERSION] [--brokers N] [--secure] -- CMD...
                                                                  run CMD beside a fresh cluster, then stop that
       scripts/kafka.sh stop-broker N | start-broker N | restart-broker N
       scripts/kafka.sh fetch [VERSION]                           download the jars only

The default VERSION is 4.4.0. A command under `run` may stop and start the brokers of its own cluster.
With --secure the brokers also listen with SASL over TLS, at KAFKA_SECURE_BROKERS; KAFKA_SECURE_CA names the file
of the CA to trust. Users: app, who has no rights until ACLs give some, and admin, who has all; for both the password
is secret, and the mechanism PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512. KAFKA_BROKERS stays open to everybody.
Jars are kept in $ACKPOLICY_KAFKA_HOME (default: ${XDG_CACHE_HOME:-$HOME/.cache}/watermill-ackpolicy/kafka).
USAGE
}

readonly default_version=4.4.0
readonly start_seconds=120 stop_seconds=30
readonly secure_users=(admin app) secure_password=secret store_password=changeit
cache=${ACKPOLICY_KAFKA_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/watermill-ackpolicy/kafka}
# The running cluster: a directory with one subdirectory per broker. `run` exports its own.
state=${ACKPOLICY_KAFKA_STATE:-$cache/current}

say() { echo "kafka.sh: $*" >&2; }
die() {
	say "$@"
	exit 1
}

require_tools() {
	local missing=()
	command -v java >/dev/null || missing+=(java)
	command -v mvn >/dev/null || missing+=(mvn)
	if ((${#missing[@]})) && [[ ${CI:-} == true && $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
		say "installing java and maven"
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq default-jre-headless maven; } >&2
		missing=()
	fi
	((${#missing[@]} == 0)) ||
		die "missing: ${missing[*]}. On Debian or Ubuntu: apt-get install -y default-jre-headless maven"
}

require_java() { # VERSION
	local java wanted=11
	[[ $1 != [012].* ]] || die "Kafka $1 needs ZooKeeper: its brokers without it take no idempotent producers. Want 3 or newer"
	[[ $1 == [123].* ]] || wanted=17
	java=$(java -XshowSettings:properties -version 2>&1 | sed -n 's/^ *java\.specification\.version = //p')
	[[ ${java%%.*} -ge $wanted ]] || die "Kafka $1 needs Java $wanted or newer, this is Java ${java:-unknown}"
}

# Prints the directory of the version's jars, after fetching them the first time. Runs in a subshell: see the trap.
fetch() ( # VERSION
	version=$1
	libs=$cache/$version
	if [[ ! -d $libs ]]; then
		say "fetching Kafka $version (about 45 MB, once)"
		mkdir -p "$cache"
		tmp=$(mktemp -d "$cache/fetch.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		# Kafka is built against slf4j 1.7 and brings no binding for it.
		cat >"$tmp/pom.xml" <<POM
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>ackpolicy</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
POM
		if ! mvn -B -f "$tmp/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
			-DoutputDirectory="$tmp/libs" >"$tmp/mvn.log" 2>&1; then
			grep -m 1 '^\[ERROR\]' "$tmp/mvn.log" >&2 || tail -n 20 "$tmp/mvn.log" >&2
			die "could not fetch Kafka $version"
		fi
		# Renamed when complete, so that an interrupted fetch leaves no half a version.
		[[ -d $libs ]] || mv "$tmp/libs" "$libs"
	fi
	echo "$libs"
)

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Prints N free ports, below those that the kernel hands to clients.
free_ports() { # N
	local found=() port
	while ((${#found[@]} < $1)); do
		port=$((16000 + RANDOM % 16000))
		[[ " ${found[*]-} " == *" $port "* ]] || port_open "$port" || found+=("$port")
	done
	echo "${found[@]}"
}

# Makes a CA, and a certificate of it that all brokers have.
certify() { # DIR
	local name
	keystore() { keytool "$1" -storepass "$store_password" -keystore "$2.p12" -alias "$2" "${@:3}"; }
	mkdir -p "$1"
	(
		cd "$1"
		for name in ca broker; do
			keystore -genkeypair $name -storetype PKCS12 -keyalg EC -groupname secp256r1 -validity 30 \
				-dname "CN=kafka.sh $name" -ext bc:c
		done
		keystore -exportcert ca -rfc >ca.pem
		keystore -certreq broker | keystore -gencert ca -rfc -validity 30 -ext san=ip:127.0.0.1,dns:localhost >broker.pem
		cat broker.pem ca.pem | keystore -importcert broker -noprompt
	) >"$1/log" 2>&1 || {
		cat "$1/log" >&2
		die "keytool could not make certificates"
	}
}

# The settings of the listener with SASL over TLS. Who comes by the other one is User:ANONYMOUS, and may do all.
secure_properties() { # DIR
	local user users=""
	for user in "${secure_users[@]}"; do users+=" user_$user=\"$secure_password\""; done
	cat <<PROPERTIES
listener.name.secure.ssl.keystore.type=PKCS12
listener.name.secure.ssl.keystore.location=$1/broker.p12
listener.name.secure.ssl.keystore.password=$store_password
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required$users;
listener.name.secure.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:admin
PROPERTIES
}

configure() { # VERSION BROKERS
	local version=$1 brokers=$2 ports i port voters="" addrs="" secure_addrs="" libs cluster_id=ackpolicyTestCluster00
	local listeners users=() user
	local replicas=$brokers
	((replicas <= 3)) || replicas=3
	local min_isr=$(((replicas + 1) / 2))
	libs=$(fetch "$version")
	# Of the ports a broker has one for clients, one for controllers, and one for clients with SASL over TLS.
	read -ra ports <<<"$(free_ports $((3 * brokers)))"
	for ((i = 0; i < brokers; i++)); do
		addrs+=${addrs:+,}127.0.0.1:${ports[3 * i]}
		voters+=${voters:+,}$((i + 1))@127.0.0.1:${ports[3 * i + 1]}
		secure_addrs+=${secure_addrs:+,}127.0.0.1:${ports[3 * i + 2]}
	done
	echo "$version" >"$state/version"
	echo "$libs" >"$state/libs"
	echo "$addrs" >"$state/addrs"
	if [[ $secure ]]; then
		certify "$state/tls"
		echo "$secure_addrs" >"$state/secure_addrs"
		for user in "${secure_users[@]}"; do
			for i in 256 512; do users+=(--add-scram "SCRAM-SHA-$i=[name=$user,password=$secure_password]"); done
		done
	fi
	for ((i = 1; i <= brokers; i++)); do
		mkdir -p "$state/$i"
		port=${ports[3 * i - 3]}
		echo "$port" >"$state/$i/port"
		listeners=PLAINTEXT://127.0.0.1:$port${secure:+,SECURE://127.0.0.1:${ports[3 * i - 1]}}
		cat >"$state/$i/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=$i
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
listeners=$listeners,CONTROLLER://127.0.0.1:${ports[3 * i - 2]}
advertised.listeners=$listeners
log.dirs=$state/$i/data
auto.create.topics.enable=true
num.partitions=1
default.replication.factor=$replicas
min.insync.replicas=$min_isr
offsets.topic.num.partitions=4
offsets.topic.replication.factor=$replicas
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$min_isr
share.coordinator.state.topic.num.partitions=4
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$min_isr
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
controlled.shutdown.retry.backoff.ms=500
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=8388608
PROPERTIES
		[[ ! $secure ]] || secure_properties "$state/tls" >>"$state/$i/server.properties"
		java -Xmx256m -cp "$libs/*" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn kafka.tools.StorageTool \
			format -t "$cluster_id" -c "$state/$i/server.properties" ${users[@]+"${users[@]}"} >"$state/$i/format.log" 2>&1 || {
			tail -n 20 "$state/$i/format.log" >&2
			die "could not format the storage of broker $i"
		}
	done
}

broker_dir() { # N
	[[ -d $state/ ]] || die "no cluster is running"
	[[ -f $state/$1/server.properties ]] || die "no broker $1 in this cluster"
	echo "$state/$1"
}

# Whether the broker's process runs. Where there is a /proc, it distinguishes zombies and reused process ids;
# the script's own name is what a broker has before its exec.
alive() { # DIR
	local pid
	pid=$(cat "$1/pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null &&
		{ [[ ! -d /proc/self ]] || grep -qaF -e "$1/server.properties" -e "${0##*/}" "/proc/$pid/cmdline" 2>/dev/null; }
}

launch() { # N: starts a broker's process and does not wait for it.
	local dir
	dir=$(broker_dir "$1")
	! alive "$dir" || die "broker $1 runs already"
	: >"$dir/log"
	# nohup, and in the background without job control: neither a hangup nor Ctrl-C reaches the broker, only `stop`.
	nohup java -Xms256m -Xmx768m -XX:+UseSerialGC -Djava.awt.headless=true \
		-Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS \
		-cp "$(cat "$state/libs")/*" kafka.Kafka "$dir/server.properties" >"$dir/log" 2>&1 </dev/null &
	echo $! >"$dir/pid"
	disown # or bash reports its end
}

await() { # N
	local dir port deadline=$((SECONDS + start_seconds))
	dir=$(broker_dir "$1")
	port=$(cat "$dir/port")
	# The log line comes after the controller has unfenced the broker: from then on it leads partitions.
	until grep -q 'Kafka Server started' "$dir/log" && port_open "$port"; do
		if ! alive "$dir" || ((SECONDS > deadline)); then
			tail -n 40 "$dir/log" >&2
			die "broker $1 did not start (end of its log above)"
		fi
		sleep 0.1
	done
}

brokers() { (cd "$state" && ls -d [0-9]*); }

start_broker() { # N
	launch "$1"
	await "$1"
}

stop_broker() { # N
	local dir
	dir=$(broker_dir "$1")
	terminate "$stop_seconds" "$dir"
}

terminate() { # SECONDS DIR...: SIGTERM to all, SIGKILL to those that are left then.
	local deadline=$((SECONDS + $1)) dir left
	shift
	for dir in "$@"; do
		! alive "$dir" || kill "$(cat "$dir/pid")" 2>/dev/null || true
	done
	while :; do
		left=()
		for dir in "$@"; do
			! alive "$dir" || left+=("$dir")
		done
		((${#left[@]})) || break
		if ((SECONDS >= deadline)); then
			for dir in "${left[@]}"; do
				kill -KILL "$(cat "$dir/pid")" 2>/dev/null || true
			done
		fi
		sleep 0.1
	done
	for dir in "$@"; do rm -f "$dir/pid"; done
}

start_cluster() { # VERSION BROKERS
	local i
	require_tools
	require_java "$1"
	configure "$1" "$2"
	for i in $(brokers); do launch "$i"; done
	for i in $(brokers); do await "$i"; done
}

stop_cluster() {
	local dirs=() i seconds=$stop_seconds
	[[ -d $state/ ]] || return 0
	for i in $(brokers 2>/dev/null); do dirs+=("$state/$i"); done
	# Stopped together, the last brokers have no quorum left to say goodbye to, and their data goes anyway.
	((${#dirs[@]} == 1)) || seconds=1
	((${#dirs[@]} == 0)) || terminate "$seconds" "${dirs[@]}"
	rm -rf "$state"
}

new_state() { (cd "$(mktemp -d "${TMPDIR:-/tmp}/ackpolicy-kafka.XXXXXX")" && pwd -P); }

start() { # VERSION BROKERS
	local link=$state i
	if [[ -d $link/ ]]; then
		state=$(cd "$link" && pwd -P)
		for i in $(brokers 2>/dev/null); do
			! alive "$state/$i" || die "a cluster is running: $(cat "$state/addrs")"
		done
		stop_cluster # what a crash left
	fi
	state=$(new_state)
	trap stop_cluster EXIT
	trap 'exit 130' INT TERM HUP
	start_cluster "$1" "$2"
	mkdir -p "$(dirname "$link")"
	rm -f "$link"
	ln -s "$state" "$link"
	trap - EXIT INT TERM HUP
	environment | sed 's/^/export /'
}

environment() {
	echo "KAFKA_BROKERS=$(cat "$state/addrs")"
	[[ ! -f $state/secure_addrs ]] || printf '%s\n' "KAFKA_SECURE_BROKERS=$(cat "$state/secure_addrs")" "KAFKA_SECURE_CA=$state/tls/ca.pem"
}

run() { # VERSION BROKERS CMD...
	local version=$1 brokers=$2 cmd="" signalled="" status=0 variable
	shift 2
	state=$(new_state)
	trap stop_cluster EXIT
	trap 'exit 130' INT TERM HUP
	start_cluster "$version" "$brokers"
	say "Kafka $version on $(cat "$state/addrs")"
	export ACKPOLICY_KAFKA_STATE=$state
	while read -r variable; do export "${variable?}"; done < <(environment)
	# The command gets a process group of its own: a signal then ends all of it, and the broker after it.
	trap 'signalled=1; [[ -z $cmd ]] || kill -TERM -- "-$cmd" 2>/dev/null || true' INT TERM HUP
	set -m
	"$@" </dev/null &
	cmd=$!
	set +m
	wait "$cmd" || status=$?
	if [[ $signalled ]]; then
		for _ in {1..50}; do
			kill -0 -- "-$cmd" 2>/dev/null || break
			sleep 0.1
		done
		kill -KILL -- "-$cmd" 2>/dev/null || true
		status=130
	fi
	exit "$status"
}

status() {
	local i dir
	[[ -d $state/ ]] || die "no cluster is running"
	echo "Kafka $(cat "$state/version")"
	environment
	for i in $(brokers); do
		dir=$state/$i
		if alive "$dir"; then
			echo "broker $i: 127.0.0.1:$(cat "$dir/port"), pid $(cat "$dir/pid"), log $dir/log"
		else
			echo "broker $i: 127.0.0.1:$(cat "$dir/port"), stopped, log $dir/log"
		fi
	done
}

version=$default_version brokers=1 secure=""
parse() { # the arguments after the subcommand; the rest is left in `rest`
	rest=()
	while (($#)); do
		case $1 in
		--brokers) brokers=${2:?--brokers needs a number} && shift ;;
		--brokers=*) brokers=${1#*=} ;;
		--secure) secure=1 ;;
		--)
			shift
			rest=("$@")
			break
			;;
		[0-9]*) version=$1 ;;
		*) die "unknown argument $1" ;;
		esac
		shift
	done
	[[ $brokers =~ ^[1-9]$ ]] || die "--brokers: want 1 to 9, got $brokers"
}

command=${1:-}
(($# == 0)) || shift
# The real path, not the link: it is what the brokers' command lines hold.
case $command in
stop | status | *-broker) [[ ! -d $state/ ]] || link=$state state=$(cd "$state" && pwd -P) ;;
esac
case $command in
start)
	parse "$@"
	start "$version" "$brokers"
	;;
run)
	parse "$@"
	((${#rest[@]})) || die "run needs a command after --"
	run "$version" "$brokers" "${rest[@]}"
	;;
fetch)
	parse "$@"
	require_tools
	fetch "$version"
	;;
stop)
	[[ -d $state/ ]] || say "no cluster is running"
	stop_cluster
	[[ ! -L ${link:-} ]] || rm -f "$link"
	;;
status) status ;;
stop-broker) stop_broker "${1:?which broker?}" ;;
start-broker) start_broker "${1:?which broker?}" ;;
restart-broker)
	stop_broker "${1:?which broker?}"
	start_broker "$1"
	;;
help | -h | --help) usage ;;
*)
	usage >&2
	exit 2
	;;
esac
