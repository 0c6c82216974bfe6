package redrive

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/IBM/sarama"
)

// usageError is a mistake on the command line.
type usageError struct{ error }

// The commands.
const (
	cmdList   = "list"
	cmdShow   = "show"
	cmdSend   = "send"
	cmdSkip   = "skip"
	cmdReopen = "reopen"
)

var commands = []string{cmdList, cmdShow, cmdSend, cmdSkip, cmdReopen}

// options is the command line.
type options struct {
	command string
	connection
	filter
	topic, group string
	limit        int
	all          bool
	json         bool
	verbose      bool

	dryRun    bool
	to        string
	headers   string
	timestamp string
	rate      float64
	batch     int
	firstRun  bool
	yes       bool
}

const usage = `usage: ackpolicy-redrive [list|show|send|skip|reopen] -topic TOPIC [flags]

Reads a dead letter topic, and sends letters back to the topic that they are from.

  list     lists the letters that are open (the default)
  show     shows letters whole: headers, key and value
  send     sends letters back, once each
  skip     marks letters as done without sending them
  reopen   makes letters that were sent or skipped open again
  help     shows this page, or with a command behind it the flags of that

Without filters all open letters are chosen, up to the end of the topic at the start;
send then asks first, or wants -yes.
What is done is stored in Kafka, for the consumer group of -group: a command that was
interrupted, or killed, goes on where it was.

examples:
  ackpolicy-redrive -brokers kafka:9092 -topic orders.dlq
  ackpolicy-redrive show -topic orders.dlq -at 2:17
  ackpolicy-redrive send -topic orders.dlq -reason timeout -since 6h -dry-run
  ackpolicy-redrive send -topic orders.dlq -reason timeout -since 6h -rate 50
  ackpolicy-redrive send -topic orders.dlq -at 2:17,3:100-250 -to orders.repaired
  ackpolicy-redrive skip -topic orders.dlq -handler metrics

exit status: 0 done, 1 failed, 2 wrong flags, 3 done but for letters that cannot be
sent, 130 interrupted.

'ackpolicy-redrive help send' shows the flags of send, and so on. Those of %s:

`

// errShown: what was asked for was help or the version, which has been shown.
var errShown = errors.New("shown")

// version is the module's, as go install knows it, and that of the library.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}

// parseOptions reads the command line. The flags that a command has no use for are
// not defined, so that a slip such as "list -to" is an error.
func parseOptions(args []string, getenv func(string) string, now time.Time, help io.Writer) (*options, error) {
	o := &options{command: cmdList}
	switch {
	case len(args) == 0:
	case args[0] == "version" || strings.TrimLeft(args[0], "-") == "version":
		_, err := fmt.Fprintln(help, "ackpolicy-redrive", version())
		return nil, errors.Join(err, errShown)
	case args[0] == "help":
		args = append(args[1:len(args):len(args)], "-h")
	}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		o.command, args = args[0], args[1:]
		if !slices.Contains(commands, o.command) {
			return nil, usageError{fmt.Errorf("no command %q: want one of %s", o.command, strings.Join(commands, ", "))}
		}
	}
	flags := flag.NewFlagSet("ackpolicy-redrive "+o.command, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var brokers string
	o.connectFlags(flags, &brokers, getenv)
	o.filterFlags(flags, now)
	flags.BoolVar(&o.json, "json", false, "print one JSON object a letter")
	if o.command == cmdList || o.command == cmdShow {
		flags.BoolVar(&o.all, "all", false, "also letters that were sent or skipped")
	} else {
		flags.BoolVar(&o.dryRun, "dry-run", false, "list what would be done, and do nothing")
	}
	if o.command == cmdSend {
		o.sendFlags(flags)
	}
	flags.Usage = func() {}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(help, usage, o.command)
			flags.SetOutput(help)
			flags.PrintDefaults()
			return nil, errShown
		}
		return nil, usageError{err}
	}
	if flags.NArg() > 0 {
		return nil, usageError{fmt.Errorf("what is %q? The command comes first, then the flags", flags.Arg(0))}
	}
	o.brokers = strings.FieldsFunc(brokers, func(r rune) bool { return r == ',' || r == ' ' })
	if err := o.check(); err != nil {
		return nil, usageError{err}
	}
	return o, nil
}

func (o *options) connectFlags(flags *flag.FlagSet, brokers *string, getenv func(string) string) {
	flags.StringVar(brokers, "brokers", getenv("KAFKA_BROKERS"), "`host:port`s, comma separated; KAFKA_BROKERS, if not given")
	flags.StringVar(&o.topic, "topic", "", "the dead letter `topic`")
	flags.StringVar(&o.group, "group", "", "the consumer `group` whose offsets say what is done (default TOPIC-redrive)")
	flags.BoolVar(&o.tls, "tls", false, "connect by TLS; a -tls- flag implies it")
	flags.StringVar(&o.caFile, "tls-ca", "", "PEM `file` with the certificates to trust (default the system's)")
	flags.StringVar(&o.certFile, "tls-cert", "", "PEM `file` with the client's certificate")
	flags.StringVar(&o.keyFile, "tls-key", "", "PEM `file` with its key")
	flags.StringVar(&o.sasl, "sasl", "", "`mechanism`: plain, scram-sha-256 or scram-sha-512")
	flags.StringVar(&o.user, "user", "", "SASL `user`")
	flags.StringVar(&o.passwordFile, "password-file", "", "`file` with the SASL password")
	flags.BoolVar(&o.verbose, "v", false, "log what the Kafka client does")
}

func (o *options) filterFlags(flags *flag.FlagSet, now time.Time) {
	list := func(into *[]string, name, help string) {
		flags.Func(name, help, func(text string) error {
			*into = append(*into, strings.Split(text, ",")...)
			return nil
		})
	}
	flags.Func("at", "only at these `places`: PARTITION, PARTITION:OFFSET or PARTITION:FIRST-LAST, comma separated", func(text string) error {
		p, err := parsePlaces(text)
		if o.at == nil {
			o.at = places{}
		}
		for partition, spans := range p {
			o.at[partition] = append(o.at[partition], spans...)
		}
		return err
	})
	list(&o.origin, "origin", "only from these origin `topics`, comma separated")
	list(&o.handler, "handler", "only from these `handlers`, comma separated")
	list(&o.rejectedBy, "rejected-by", "only what these consumer `groups` rejected, comma separated")
	flags.Func("reason", "only for reasons that match this `regexp`", func(text string) (err error) {
		o.reason, err = regexp.Compile(text)
		return err
	})
	flags.Func("key", "only with exactly this `key`", func(text string) error {
		o.key = &text
		return nil
	})
	moment := func(into *time.Time, name, help string) {
		flags.Func(name, help, func(text string) (err error) {
			*into, err = parseMoment(text, now)
			return err
		})
	}
	moment(&o.since, "since", "only if rejected at or after this `time`: 2006-01-02T15:04:05Z, a date, or 90m or 2d for how long ago")
	moment(&o.until, "until", "only if rejected at or before this `time`")
	flags.IntVar(&o.limit, "limit", 0, "at most this many letters; 0: no limit")
}

func (o *options) sendFlags(flags *flag.FlagSet) {
	flags.StringVar(&o.to, "to", "", "send to this `topic` instead of the origin")
	flags.StringVar(&o.headers, "headers", headersOrigin, "what stays of the letter's `headers`: origin (what keeps its origin and count, should it be rejected again), all or none")
	flags.StringVar(&o.timestamp, "timestamp", timestampNow, "now, or original: Kafka deletes by it, so an old one may go unread")
	flags.TextVar(&o.compression, "compression", sarama.CompressionNone, "`codec` of what is sent: none, gzip, snappy, lz4 or zstd")
	flags.Float64Var(&o.rate, "rate", 0, "at most this many letters a second; 0: no limit")
	flags.IntVar(&o.batch, "batch", 100, "letters in a transaction")
	flags.BoolVar(&o.yes, "yes", false, "send all letters without asking, where no filter chooses some")
	flags.BoolVar(&o.firstRun, "first-run", false, "nothing was ever sent from this topic, although it has letters older than what Kafka remembers")
}

func (o *options) check() error {
	var errs []error
	want := func(ok bool, text string) {
		if !ok {
			errs = append(errs, errors.New(text))
		}
	}
	want(len(o.brokers) > 0, "no brokers: set -brokers or KAFKA_BROKERS to host:port")
	want(o.topic != "", "no topic: set -topic to the dead letter topic")
	want(o.topic == "" || topicName.MatchString(o.topic), "-topic: not the name of a topic")
	want(o.limit >= 0, "-limit: want 0 or more")
	want(o.since.IsZero() || o.until.IsZero() || !o.until.Before(o.since), "-until is before -since")
	if o.command == cmdSend {
		want(o.to == "" || topicName.MatchString(o.to), "-to: not the name of a topic")
		want(o.to == "" || o.to != o.topic, "-to is the dead letter topic itself")
		want(slices.Contains([]string{headersOrigin, headersAll, headersNone}, o.headers), "-headers: want origin, all or none")
		want(slices.Contains([]string{timestampNow, timestampOriginal}, o.timestamp), "-timestamp: want now or original")
		want(o.rate == 0 || o.rate >= 0.001 && !math.IsInf(o.rate, 0), "-rate: want 0, or 0.001 letters a second and more")
		want(o.batch >= 1 && o.batch <= 10_000, "-batch: want 1 to 10000")
	}
	if o.command == cmdSkip || o.command == cmdReopen {
		want(o.narrow(), o.command+" wants a filter, such as -at 2:17; -reason '' chooses all")
	}
	if o.group == "" {
		o.group = o.topic + "-redrive"
	}
	return errors.Join(errs...)
}
