package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// flags are those that change a case, or make one.
func (c *bcase) flags(set *pflag.FlagSet) {
	set.Int64Var(&c.records, "records", c.records, "records of the topic")
	set.DurationVar(&c.work, "work", c.work, "the handler's waiting")
	set.DurationVar(&c.spin, "spin", c.spin, "the handler's computing")
	set.IntVar(&c.concurrency, "concurrency", c.concurrency, "handlers at once, per partition")
	set.IntVar(&c.partitions, "partitions", c.partitions, "partitions of the topic")
	set.IntVar(&c.size, "size", c.size, "bytes of a record's value")
	set.IntVar(&c.keys, "keys", c.keys, "distinct keys")
	set.Float64Var(&c.zipf, "zipf", c.zipf, "exponent of Zipf's law for the keys, above 1; 0: each key as often")
}

func (c bcase) check() error {
	switch {
	case c.records < 1, c.concurrency < 1, c.partitions < 1, c.keys < 1:
		return errors.New("--records, --concurrency, --partitions and --keys must be 1 or more")
	case c.work < 0, c.spin < 0, c.size < 0:
		return errors.New("--work, --spin and --size must not be negative")
	case c.zipf != 0 && (c.zipf <= 1 || c.keys < 2):
		return fmt.Errorf("--zipf is %g: it must be above 1, and --keys 2 or more", c.zipf)
	}
	return nil
}

// chosen are the cases that a command line asks for: all, the named ones, or, where
// it only has flags that change a case, the custom one.
func chosen(given *pflag.FlagSet, names string, all bool) ([]bcase, error) {
	set := map[string]string{}
	given.Visit(func(f *pflag.Flag) { set[f.Name] = f.Value.String() })
	var asked []bcase
	_, named := set["case"]
	switch {
	case all && named:
		return nil, errors.New("--all and --case exclude each other")
	case all:
		asked = append(asked, cases...)
	case !named && (&bcase{}).changedBy(set):
		asked = append(asked, custom)
	default:
		for name := range strings.SplitSeq(names, ",") {
			c, err := findCase(name)
			if err != nil {
				return nil, err
			}
			asked = append(asked, c)
		}
	}
	for i := range asked {
		asked[i].changedBy(set)
		if err := asked[i].check(); err != nil {
			return nil, err
		}
	}
	return asked, nil
}

// changedBy sets what the flags say, and reports whether they say anything.
func (c *bcase) changedBy(set map[string]string) (changed bool) {
	var own pflag.FlagSet
	c.flags(&own)
	own.VisitAll(func(f *pflag.Flag) {
		if value, ok := set[f.Name]; ok {
			changed = true
			_ = f.Value.Set(value) // it comes from a flag of the same type
		}
	})
	return changed
}
