package featurebase

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// units are those that timestamp fields count in, with the times that they can hold.
var units = map[string]struct {
	of       func(time.Time) int64
	at       func(int64) time.Time
	min, max time.Time
}{
	"s":       {time.Time.Unix, func(n int64) time.Time { return time.Unix(n, 0) }, minTime, maxTime},
	"ms":      {time.Time.UnixMilli, time.UnixMilli, minTime, maxTime},
	"us":      {time.Time.UnixMicro, time.UnixMicro, minTime, maxTime},
	"\u00b5s": {time.Time.UnixMicro, time.UnixMicro, minTime, maxTime},
	"ns":      {time.Time.UnixNano, func(n int64) time.Time { return time.Unix(0, n) }, time.Unix(-1<<32, 0), time.Unix(1<<32, 0)},
}

var minTime, maxTime = time.Unix(-62135596799, 0), time.Unix(253402300799, 0)

// complete adds what a node does not find in a schema that it has written itself. The
// values of a timestamp field count from its epoch, which a node knows as "base", tells
// as "epoch", and takes for 1970 if it is not told of a base.
func (i *indexInfo) complete() error {
	for _, f := range i.Fields {
		o := &f.Options
		if o.Type != "timestamp" || o.Epoch == nil || o.Base != nil {
			continue
		}
		unit, ok := units[o.Unit]
		if !ok {
			return fmt.Errorf("field %s counts in %q, and only s, ms, us and ns are known: %w", f.Name, o.Unit, system.ErrRefused)
		}
		base := unit.of(*o.Epoch)
		o.Base = &base
	}
	return i.rebase()
}

// rebase writes the bases of timestamp fields into what is kept of an index.
func (i *indexInfo) rebase() error {
	var err error
	werr := i.rewrite(func(f *fieldInfo, options map[string]json.RawMessage) (keep bool) {
		if f.Options.Type == "timestamp" && f.Options.Epoch != nil && f.Options.Base != nil {
			options["base"] = json.RawMessage(strconv.FormatInt(*f.Options.Base, 10))
			options["epoch"], err = json.Marshal(f.Options.Epoch)
		}
		return true
	})
	return errors.Join(err, werr)
}

// bounded returns the base that a timestamp field's bounds were made with: they count
// from it, too. ok is false for others, and where the bounds do not tell.
func (f *fieldInfo) bounded() (base int64, ok bool) {
	o := &f.Options
	unit, known := units[o.Unit]
	lo, err := strconv.ParseInt(string(o.Min), 10, 64)
	hi, err2 := strconv.ParseInt(string(o.Max), 10, 64)
	if o.Type != "timestamp" || !known || err != nil || err2 != nil {
		return 0, false
	}
	min, max := unit.of(unit.min), unit.of(unit.max)
	switch {
	case min-lo == max-hi:
		return min - lo, true
	case o.Unit == "ns" && lo == min && hi < max:
		return max - hi, true
	case o.Unit == "ns" && hi == max && lo > min:
		return min - lo, true
	}
	return 0, false
}

// epochs finds the timestamp fields that do not count from where their bounds do. The
// system's own tool forgets epochs when it backs up, and when it restores: mend has what
// it has backed up count from where the bounds do.
func (s *schema) epochs(mend bool, warnf func(format string, a ...any)) error {
	for _, i := range s.indexes {
		for _, f := range i.Fields {
			base, ok := f.bounded()
			if !ok || f.Options.Base == nil || f.Options.Epoch == nil || *f.Options.Base == base {
				continue
			}
			if !mend || *f.Options.Base != 0 {
				warnf("field %s of index %s counts from %s, but its bounds from another time: was it restored by featurebase's own tool, which forgets that?", f.Name, i.Name, f.Options.Epoch.UTC().Format(time.RFC3339))
				continue
			}
			epoch := units[f.Options.Unit].at(base).UTC()
			warnf("field %s of index %s counts from 1970 in this backup, for featurebase's own tool forgets epochs; by its bounds it is %s, and so it is kept", f.Name, i.Name, epoch.Format(time.RFC3339))
			f.Options.Base, f.Options.Epoch = &base, &epoch
		}
		if err := i.rebase(); err != nil {
			return fmt.Errorf("the schema: index %s: %w", i.Name, err)
		}
	}
	return nil
}

// late is a field that is to be made by itself.
type late struct {
	index, field string
	options      map[string]json.RawMessage
}

// made returns the schema as the nodes of a cluster make it, and the fields that must be
// made when they have: those with the keys of another index, for each node takes the
// indexes in an order of its own, and those with a bound of 0, which means none in a
// schema.
func (s *schema) made() (*schema, []late, error) {
	first := s.without(func(*indexInfo) bool { return false })
	var rest []late
	for n, i := range s.indexes {
		x := *i
		var fields []*fieldInfo
		err := x.rewrite(func(f *fieldInfo, options map[string]json.RawMessage) bool {
			o := &f.Options
			zero := (string(o.Min) == "0" || string(o.Max) == "0") && (o.Base == nil || *o.Base == 0)
			if !(o.Type == "int" && o.Foreign != "") && !(zero && (o.Type == "int" || o.Type == "decimal")) {
				fields = append(fields, f)
				return true
			}
			// A node finds these itself, and wants not to be told.
			delete(options, "bitDepth")
			delete(options, "base")
			rest = append(rest, late{i.Name, f.Name, options})
			return false
		})
		if err != nil {
			return nil, nil, fmt.Errorf("the schema: index %s: %w", i.Name, err)
		}
		x.Fields = fields
		first.indexes[n] = &x
	}
	return first, rest, nil
}

// weighty are the options of a field that say what its data means.
var weighty = []string{"type", "keys", "base", "epoch", "scale", "timeUnit", "timeQuantum", "foreignIndex"}

// differs compares what is known of a field in two schemas: how its data is to be read,
// and all else.
func (i *indexInfo) differs(now *indexInfo) (wrong, other []string) {
	options := func(i *indexInfo) map[string]map[string]json.RawMessage {
		all := map[string]map[string]json.RawMessage{}
		_ = i.rewrite(func(f *fieldInfo, o map[string]json.RawMessage) bool { // it was parsed already
			delete(o, "bitDepth")
			all[f.Name] = o
			return true
		})
		return all
	}
	have := options(now)
	for name, want := range options(i) {
		for k, v := range want {
			got, ok := have[name][k]
			if !ok || sameJSON(v, got) {
				continue
			}
			text := fmt.Sprintf("field %s of index %s has %s %s instead of %s", name, i.Name, k, got, v)
			if slices.Contains(weighty, k) {
				wrong = append(wrong, text)
			} else {
				other = append(other, text)
			}
		}
	}
	if i.Options.Keys != now.Options.Keys {
		wrong = append(wrong, fmt.Sprintf("index %s has keys %v instead of %v", i.Name, now.Options.Keys, i.Options.Keys))
	}
	slices.Sort(wrong)
	slices.Sort(other)
	return wrong, other
}

// sameJSON compares two values that are no objects.
func sameJSON(a, b json.RawMessage) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}
