package etcd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
)

const (
	maxOps    = 64        // keys of a transaction; a server takes 128 by itself
	maxBatch  = 512 << 10 // bytes of keys and values of one; a server takes 1.5 MiB
	maxRecord = 64 << 20  // bytes of a stored record
)

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}

// putBack puts chosen keys into a running cluster.
func (s *System) putBack(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	m, err := s.ahead(ctx, opt.Warnf)
	if err != nil {
		return system.Result{}, err
	}
	now := system.Info{Kind: Kind.Name, Version: m.Status.Version, Cluster: strconv.FormatUint(m.Status.Header.Cluster, 16)}
	if err := command.CheckRelease(info, now, 2, opt); err != nil {
		return system.Result{}, err
	}
	records := s.stored
	if opt.Mode == system.Light {
		if err := covered(info, s.prefixes); err != nil {
			return system.Result{}, err
		}
		records = lightRecords
	}
	prefixes := reduce(s.prefixes)
	if len(prefixes) == 0 {
		prefixes = []string{""}
	}
	// All is looked at before anything is put.
	for _, put := range []bool{false, true} {
		b := &batch{s: s, opt: opt, put: put, hit: map[string]bool{}}
		if err := records(ctx, n, prefixes, b.add); err != nil {
			return b.res, err
		}
		if err := b.flush(ctx); err != nil {
			return b.res, err
		}
		for _, p := range s.prefixes {
			if !b.hit[p] {
				return system.Result{}, fmt.Errorf("--prefix %q: the snapshot has no key that begins so: %w", p, system.ErrRefused)
			}
		}
		if b.differ > 0 && !opt.Force {
			return system.Result{}, fmt.Errorf("%d keys have other values in the cluster, such as %q: --force replaces them: %w", b.differ, b.other, system.ErrRefused)
		}
		if put || opt.DryRun {
			return b.result(), nil
		}
	}
	return system.Result{}, nil
}

// covered refuses to take a part of what was asked for as the whole.
func covered(info system.Info, wanted []string) error {
	var kept []string
	if err := json.Unmarshal([]byte(info.Facts["prefixes"]), &kept); err != nil {
		return fmt.Errorf("what the record says of its keys: %w", err)
	}
	for _, w := range wanted {
		if !slices.ContainsFunc(kept, func(k string) bool { return strings.HasPrefix(w, k) }) {
			return fmt.Errorf("--prefix %q: the snapshot has the values of keys that begin with %q: %w", w, kept, system.ErrRefused)
		}
	}
	return nil
}

// batch collects what is put in one transaction.
type batch struct {
	s    *System
	opt  system.RestoreOptions
	put  bool // false: look only
	list []*record
	size int

	res           system.Result
	hit           map[string]bool // prefixes that keys have
	leased        uint64
	equal, differ uint64
	other         []byte // one of those that differ
}

func (b *batch) add(ctx context.Context, r *record) error {
	for _, p := range b.s.prefixes {
		b.hit[p] = b.hit[p] || bytes.HasPrefix(r.Key, []byte(p))
	}
	if r.Lease != 0 {
		b.leased++ // whom it told to be alive is gone
		return nil
	}
	b.list = append(b.list, r)
	if b.size += len(r.Key) + len(r.Value); len(b.list) < maxOps && b.size < maxBatch {
		return nil
	}
	return b.flush(ctx)
}

// flush compares what was collected with what the cluster has, and puts what is another.
func (b *batch) flush(ctx context.Context) error {
	if len(b.list) == 0 {
		return nil
	}
	var gets, compares, puts []string
	for _, r := range b.list {
		gets = append(gets, "get -- "+strconv.Quote(string(r.Key)))
	}
	var got ranged
	if err := b.s.txn(ctx, nil, gets, &got); err != nil {
		return err
	}
	pages, err := got.pages(len(b.list))
	if err != nil {
		return err
	}
	for i, r := range b.list {
		var have *record
		if found := pages[i].Kvs; len(found) > 0 {
			have = &found[0]
		}
		do, rev := "create", int64(0)
		switch {
		case have != nil && !bytes.Equal(have.Key, r.Key):
			return fmt.Errorf("etcdctl gives %q, which was not asked for", have.Key)
		case have != nil && bytes.Equal(have.Value, r.Value):
			b.equal++
			continue
		case have != nil:
			b.differ, b.other = b.differ+1, r.Key
			do, rev = "change", have.Changed
		}
		if b.put || b.opt.DryRun {
			b.opt.Stepf("%s %q, %d bytes", do, r.Key, len(r.Value))
		}
		b.res.Items++
		b.res.Bytes += uint64(len(r.Value))
		compares = append(compares, fmt.Sprintf("mod(%s) = %q", strconv.Quote(string(r.Key)), strconv.FormatInt(rev, 10)))
		puts = append(puts, "put -- "+strconv.Quote(string(r.Key))+" "+strconv.Quote(string(r.Value)))
	}
	b.list, b.size = nil, 0
	if !b.put || len(puts) == 0 || b.differ > 0 && !b.opt.Force {
		return nil
	}
	var done struct {
		Succeeded bool `json:"succeeded"`
	}
	if err := b.s.txn(ctx, compares, puts, &done); err != nil {
		return err
	}
	if !done.Succeeded {
		return fmt.Errorf("somebody has changed keys meanwhile, such as one of the %d from %s on: run again, what was put back before is kept: %w", len(puts), compares[0], system.ErrIncomplete)
	}
	return nil
}

func (b *batch) result() system.Result {
	if b.equal > 0 {
		b.opt.Stepf("nothing for %d keys, which have these values", b.equal)
	}
	if b.leased > 0 {
		b.res.Notes = append(b.res.Notes, fmt.Sprintf("look at %d keys that were left out, for they had leases: who held these makes them anew", b.leased))
	}
	return b.res
}

// begins reports whether a key begins with one of the prefixes.
func begins(key []byte, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return bytes.HasPrefix(key, []byte(p)) })
}

// lightRecords calls do with each wanted record of a light snapshot.
func lightRecords(ctx context.Context, n tree.Node, prefixes []string, do func(context.Context, *record) error) error {
	f, err := n.Lookup(ctx, valuesFile)
	if err != nil {
		return err
	}
	in := command.Reader(ctx, f)
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, maxRecord)
	for sc.Scan() {
		r := &record{}
		if err := json.Unmarshal(sc.Bytes(), r); err != nil {
			return fmt.Errorf("%s: %w", valuesFile, err)
		}
		if begins(r.Key, prefixes) {
			if err := do(ctx, r); err != nil {
				return err
			}
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("%s: %w", valuesFile, err)
	}
	return nil
}

// stored calls do with each wanted key of a full snapshot, in their order.
func (s *System) stored(ctx context.Context, n tree.Node, prefixes []string, do func(context.Context, *record) error) error {
	f, err := n.Lookup(ctx, "snapshot.db")
	if err != nil {
		return err
	}
	at := readerAt{ctx, f}
	places, err := findKeys(at, f.Attr().Size, prefixes)
	if err != nil {
		return fmt.Errorf("snapshot.db: %w", err)
	}
	names := make([]string, 0, len(places))
	for name := range places {
		names = append(names, name)
	}
	for _, name := range sorted(names) {
		p := make([]byte, places[name].len)
		if _, err := at.ReadAt(p, places[name].off); err != nil && err != io.EOF {
			return err
		}
		r, err := parseRecord(p)
		if err == nil && string(r.Key) != name {
			err = errors.New("its place has another key")
		}
		if err != nil {
			return fmt.Errorf("snapshot.db: %q: %w", name, err)
		}
		if err := do(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// readerAt is a stored file.
type readerAt struct {
	ctx context.Context
	n   tree.Node
}

// ReadAt implements io.ReaderAt.
func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := r.n.ReadAt(r.ctx, p[done:], off+int64(done))
		if done += n; err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.ErrUnexpectedEOF
		}
	}
	return done, nil
}
