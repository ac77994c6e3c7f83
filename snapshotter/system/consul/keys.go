package consul

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Limits of a transaction: how many operations, and bytes of its JSON, where the
// cluster's are not set otherwise.
const (
	maxOps = 128
	maxTxn = 512 << 10
)

// wanted is a key that shall be restored.
type wanted struct {
	item
	flags uint64
	index uint64 // of what the cluster has; 0: nothing
	same  bool
	sum   [sha256.Size]byte
}

// restoreKeys writes the keys below a path of the view.
func (s *System) restoreKeys(ctx context.Context, n tree.Node, opt system.RestoreOptions) (system.Result, error) {
	var res system.Result
	if opt.Mode == system.Dataless {
		return res, fmt.Errorf("a dataless snapshot has no values: %w", system.ErrRefused)
	}
	if opt.Path != "kv" && !strings.HasPrefix(opt.Path, "kv/") {
		return res, fmt.Errorf("%q: only keys can be restored by themselves, as kv/app: %w", opt.Path, system.ErrRefused)
	}
	state, err := n.Lookup(ctx, stateFile)
	if errors.Is(err, fs.ErrNotExist) {
		state, err = n.Lookup(ctx, recordsFile)
	}
	if err != nil {
		return res, err
	}
	v := &view{ctx: ctx, state: state}
	list, err := v.choose(ctx, opt.Path)
	if err != nil {
		return res, err
	}
	if err := s.compareKeys(ctx, list); err != nil {
		return res, err
	}
	if err := tellKeys(list, opt); err != nil {
		return res, err
	}
	for i := range list {
		if !list[i].same {
			res.Items++
			res.Bytes += uint64(list[i].size)
		}
	}
	if opt.DryRun {
		return res, nil
	}
	res.Notes = []string{"keys that are not in the snapshot were left as they are; locks and sessions were not restored"}
	done, err := s.writeKeys(ctx, v, list, opt)
	if err != nil {
		return res, fmt.Errorf("%d of %d keys are written, run again for the rest: %w", done, res.Items, err)
	}
	return res, nil
}

// choose returns the keys below a path, and reads their values once for their sums.
func (v *view) choose(ctx context.Context, chosen string) ([]wanted, error) {
	var items []item
	flags := map[string]uint64{}
	_, err := scan(stream(ctx, v.state), func(rec *record, _ any, p *pair) error {
		if p != nil && keysIn(p) == "kv" {
			if len(items) == maxShown {
				return tooMany(maxShown)
			}
			items = append(items, item{key: p.key, off: rec.off, len: rec.len(), value: rec.off + 1 + p.valueOff, size: p.size, absent: p.absent})
			if p.flags != 0 {
				flags[p.key] = p.flags
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var list []wanted
	keyPaths(items, func(it *item, p string) {
		if p = "kv/" + p; chosen == "kv" || p == chosen || strings.HasPrefix(p, chosen+"/") {
			list = append(list, wanted{item: *it, flags: flags[it.key]})
		}
	})
	if len(list) == 0 {
		return nil, fmt.Errorf("the snapshot has no key %s, and none below it: %w", chosen, fs.ErrNotExist)
	}
	for i := range list {
		if list[i].absent {
			return nil, fmt.Errorf("the value of %q was left out of the snapshot: %w", list[i].key, system.ErrRefused)
		}
		p, err := v.value(ctx, &list[i].item)
		if err != nil {
			return nil, err
		}
		list[i].sum = sha256.Sum256(p)
	}
	return list, nil
}

// value reads a key's value.
func (v *view) value(ctx context.Context, it *item) ([]byte, error) {
	if it.size < 0 || it.size > maxRecord {
		return nil, damaged("the value of %q has %d bytes", it.key, it.size)
	}
	p := make([]byte, it.size)
	if n, err := v.state.ReadAt(ctx, p, it.value); n < len(p) {
		return nil, fmt.Errorf("the value of %q: %w", it.key, err)
	}
	return p, nil
}

// live is a key as an agent tells it.
type live struct {
	Key         string
	Value       []byte
	Flags       uint64
	ModifyIndex uint64
}

// compareKeys finds out which of the keys the cluster has, and which are the same.
func (s *System) compareKeys(ctx context.Context, list []wanted) error {
	byKey := make(map[string]*wanted, len(list))
	prefix := list[0].key
	for i := range list {
		byKey[list[i].key] = &list[i]
		for !strings.HasPrefix(list[i].key, prefix) {
			prefix = prefix[:len(prefix)-1]
		}
	}
	query := url.Values{"recurse": {""}, "consistent": {""}}
	a, err := s.c.do(ctx, http.MethodGet, "/v1/kv/"+clean(prefix), query, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // none
	}
	if err != nil {
		return err
	}
	defer a.Body.Close()
	d := json.NewDecoder(a.body)
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("the keys that the cluster has: %w", err)
	}
	for d.More() {
		var l live
		if err := d.Decode(&l); err != nil {
			return fmt.Errorf("the keys that the cluster has: %w", err)
		}
		if w := byKey[l.Key]; w != nil {
			w.index = l.ModifyIndex
			w.same = l.Flags == w.flags && sha256.Sum256(l.Value) == w.sum
		}
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("the keys that the cluster has: %w", err)
	}
	return nil
}

// clean shortens a prefix to what agents do not take for another path.
func clean(prefix string) string {
	at := 0
	for part := range strings.SplitAfterSeq(prefix, "/") {
		if p := strings.TrimSuffix(part, "/"); p == "" || p == "." || p == ".." {
			break
		}
		at += len(part)
	}
	return prefix[:at]
}

// tellKeys says what will be done, and refuses to replace what --force is not said for.
func tellKeys(list []wanted, opt system.RestoreOptions) error {
	replaced := 0
	example := ""
	for i := range list {
		w := &list[i]
		switch {
		case w.same:
		case w.index > 0:
			if replaced++; example == "" {
				example = w.key
			}
			if opt.DryRun {
				opt.Stepf("replaces %q, %d bytes", w.key, w.size)
			}
		case opt.DryRun:
			opt.Stepf("adds %q, %d bytes", w.key, w.size)
		}
	}
	if replaced == 0 || opt.Force {
		return nil
	}
	if opt.DryRun {
		opt.Warnf("%d keys have other values now: it takes --force", replaced)
		return nil
	}
	return fmt.Errorf("%d keys have other values now, such as %q: --force replaces them: %w", replaced, example, system.ErrRefused)
}

// txnOp is one operation of a transaction.
type txnOp struct {
	KV struct {
		Verb      string
		Key       string
		Value     []byte
		Flags     uint64
		Index     uint64
		Namespace string `json:",omitempty"`
		Partition string `json:",omitempty"`
	}
}

// writeKeys writes what is not the same. A key that somebody else has written since it
// was looked at ends it.
func (s *System) writeKeys(ctx context.Context, v *view, list []wanted, opt system.RestoreOptions) (done int, err error) {
	var batch [][]byte
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		if err := s.txn(ctx, batch); err != nil {
			return err
		}
		done += len(batch)
		opt.Logf("wrote %d keys", done)
		batch, size = batch[:0], 0
		return nil
	}
	for i := range list {
		w := &list[i]
		if w.same {
			continue
		}
		value, err := v.value(ctx, &w.item)
		if err != nil {
			return done, err
		}
		op := txnOp{}
		op.KV.Verb, op.KV.Key, op.KV.Value, op.KV.Flags, op.KV.Index = "cas", w.key, value, w.flags, w.index
		op.KV.Namespace, op.KV.Partition = s.opt.namespace, s.opt.partition
		p, err := json.Marshal(op)
		if err != nil {
			return done, err
		}
		if len(batch) == maxOps || size+len(p)+len(batch)+2 > maxTxn {
			if err := flush(); err != nil {
				return done, err
			}
		}
		if len(p)+2 > maxTxn || !utf8.ValidString(w.key) {
			if err := s.putKey(ctx, w, value); err != nil {
				return done, err
			}
			done++
			continue
		}
		batch, size = append(batch, p), size+len(p)
	}
	return done, flush()
}

// txn writes keys, all of them or none.
func (s *System) txn(ctx context.Context, batch [][]byte) error {
	body := append(append([]byte{'['}, bytes.Join(batch, []byte{','})...), ']')
	a, err := s.c.do(ctx, http.MethodPut, "/v1/txn", nil, bytes.NewReader(body))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, a.body)
	return errors.Join(err, a.Body.Close())
}

// putKey writes one value that fits into no transaction, as JSON makes it longer.
func (s *System) putKey(ctx context.Context, w *wanted, value []byte) error {
	query := url.Values{"flags": {strconv.FormatUint(w.flags, 10)}, "cas": {strconv.FormatUint(w.index, 10)}}
	a, err := s.c.do(ctx, http.MethodPut, "/v1/kv/"+w.key, query, bytes.NewReader(value))
	if err != nil {
		return err
	}
	p, err := io.ReadAll(io.LimitReader(a.body, 16))
	if err = errors.Join(err, a.Body.Close()); err != nil {
		return err
	}
	if strings.TrimSpace(string(p)) != "true" {
		return fmt.Errorf("%q was written by somebody else just now: %w", w.key, system.ErrRefused)
	}
	return nil
}
