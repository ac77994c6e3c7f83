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
	"unicode"
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
	way   way
	sum   [sha256.Size]byte
}

// way is how a key can be written.
type way uint8

const (
	byTxn  way = iota // in a transaction with others
	byPath            // by itself, its name in the path of the request
	noWay             // as part of everything only
)

// restoreKeys writes the keys below a path of the view.
func (s *System) restoreKeys(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
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
	if err := info.Check(s.now(ctx, info), opt); err != nil {
		return res, err
	}
	if err := s.compareKeys(ctx, list, opt); err != nil {
		return res, err
	}
	if err := tellKeys(list, opt); err != nil {
		return res, err
	}
	barred := []string{}
	for i := range list {
		switch w := &list[i]; {
		case w.same:
		case w.way == noWay:
			barred = append(barred, w.key)
		default:
			res.Items++
			res.Bytes += uint64(w.size)
		}
	}
	switch {
	case opt.DryRun && len(barred) > 0:
		return res, barredError(barred)
	case opt.DryRun:
		return res, nil
	}
	res.Notes = []string{"keys that are not in the snapshot were left as they are; locks and sessions were not restored"}
	done, err := s.writeKeys(ctx, v, list, opt)
	if err != nil {
		return res, fmt.Errorf("%d of %d keys are written, run again for the rest: %w", done, res.Items, err)
	}
	if len(barred) > 0 {
		return res, fmt.Errorf("%d keys are written, but %w", done, barredError(barred))
	}
	return res, nil
}

// barredError says which keys nobody can write but servers.
func barredError(keys []string) error {
	return fmt.Errorf("%d keys cannot be written by themselves, such as %q: agents take neither its name in a path nor, in a transaction, a name that is no UTF-8 or so long a value; a restore of everything has them: %w",
		len(keys), keys[0], system.ErrIncomplete)
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
		if list[i].way, err = list[i].ways(); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// ways finds out how a key can be written.
func (w *wanted) ways() (way, error) {
	p, err := w.op(nil, "", "")
	if err != nil {
		return noWay, err
	}
	switch {
	case utf8.ValidString(w.key) && int64(len(p))+(w.size+2)/3*4+maxScope <= maxTxn:
		return byTxn, nil
	case clean(w.key) == w.key:
		return byPath, nil
	}
	return noWay, nil
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
func (s *System) compareKeys(ctx context.Context, list []wanted, opt system.RestoreOptions) error {
	byKey := make(map[string]*wanted, len(list))
	prefix := list[0].key
	for i := range list {
		for !strings.HasPrefix(list[i].key, prefix) {
			prefix = prefix[:len(prefix)-1]
		}
		// JSON has no other bytes: these are asked for one by one.
		if utf8.ValidString(list[i].key) {
			byKey[list[i].key] = &list[i]
			continue
		}
		if list[i].way != byPath {
			continue
		}
		err := s.liveKeys(ctx, list[i].key, url.Values{"consistent": {""}}, opt, func(l *live) { list[i].compare(l) })
		if err != nil {
			return err
		}
	}
	if len(byKey) == 0 {
		return nil
	}
	return s.liveKeys(ctx, clean(prefix), url.Values{"recurse": {""}, "consistent": {""}}, opt, func(l *live) {
		if w := byKey[l.Key]; w != nil {
			w.compare(l)
		}
	})
}

// compare takes what the cluster has of the key.
func (w *wanted) compare(l *live) {
	w.index = l.ModifyIndex
	w.same = l.Flags == w.flags && sha256.Sum256(l.Value) == w.sum
}

// liveKeys calls each with the keys that an agent gives.
func (s *System) liveKeys(ctx context.Context, path string, query url.Values, opt system.RestoreOptions, each func(*live)) error {
	a, err := s.c.do(ctx, http.MethodGet, "/v1/kv/"+path, query, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // none
	}
	if err != nil {
		return err
	}
	defer a.Body.Close()
	if a.Header.Get("X-Consul-Results-Filtered-By-Acls") == "true" {
		opt.Warnf("the token does not let all of these keys be read: those that it hides are taken for missing, and cannot be written")
	}
	one := &io.LimitedReader{R: a.body}
	d := json.NewDecoder(one)
	fail := func(err error) error { return fmt.Errorf("the keys that the cluster has: %w: %w", err, errBroken) }
	one.N = maxRecord
	if _, err := d.Token(); err != nil {
		return fail(err)
	}
	for d.More() {
		one.N = maxRecord // of each key, or somebody could send one without end
		var l live
		if err := d.Decode(&l); err != nil {
			return fail(err)
		}
		each(&l)
	}
	if _, err := d.Token(); err != nil {
		return fail(err)
	}
	return nil
}

// clean shortens a key or a prefix to what agents take in a path: they refuse what
// cannot be printed, and take what is no clean path for another one.
func clean(prefix string) string {
	if i := strings.IndexFunc(prefix, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		prefix = prefix[:i]
	}
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
		case w.same, w.way == noWay:
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

// maxScope is what the names of a namespace and a partition may add to an operation.
const maxScope = 256

// op is the operation that writes a key.
func (w *wanted) op(value []byte, namespace, partition string) ([]byte, error) {
	op := txnOp{}
	op.KV.Verb, op.KV.Key, op.KV.Value, op.KV.Flags, op.KV.Index = "cas", w.key, value, w.flags, w.index
	op.KV.Namespace, op.KV.Partition = namespace, partition
	return json.Marshal(op)
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
		if w.same || w.way == noWay {
			continue
		}
		value, err := v.value(ctx, &w.item)
		if err != nil {
			return done, err
		}
		if w.way == byPath {
			if err := s.putKey(ctx, w, value); err != nil {
				return done, err
			}
			done++
			continue
		}
		p, err := w.op(value, s.opt.namespace, s.opt.partition)
		if err != nil {
			return done, err
		}
		if len(batch) == maxOps || size+len(p)+len(batch)+2 > maxTxn {
			if err := flush(); err != nil {
				return done, err
			}
		}
		batch, size = append(batch, p), size+len(p)
	}
	return done, flush()
}

// txn writes keys, all of them or none.
func (s *System) txn(ctx context.Context, batch [][]byte) error {
	body := append(append([]byte{'['}, bytes.Join(batch, []byte{','})...), ']')
	a, err := s.c.do(ctx, http.MethodPut, "/v1/txn", nil, bytes.NewReader(body))
	var status *statusError
	if errors.As(err, &status) && status.code == http.StatusConflict {
		return txnError(status.text, err)
	}
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, a.body)
	return errors.Join(err, a.Body.Close())
}

// txnError says in few words why a transaction was not done.
func txnError(text string, err error) error {
	var why struct {
		Errors []struct{ What string }
	}
	if json.Unmarshal([]byte(text), &why) != nil || len(why.Errors) == 0 {
		return err
	}
	what, kind := why.Errors[0].What, error(nil)
	switch {
	case strings.Contains(what, "index is stale"):
		kind = fmt.Errorf("somebody else has written it just now, or the token hides it: %w", system.ErrRefused)
	case strings.Contains(what, "Permission denied"):
		kind = fmt.Errorf("%s: %w", keyToken, fs.ErrPermission)
	}
	err = fmt.Errorf("%d of the keys cannot be written: %s", len(why.Errors), what)
	if kind != nil {
		err = fmt.Errorf("%w: %w", err, kind)
	}
	return err
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
