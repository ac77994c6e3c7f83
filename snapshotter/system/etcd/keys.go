package etcd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
)

// Files of a snapshot that has no database.
const (
	namesFile  = "keys.txt"   // a line for each key
	valuesFile = "keys.jsonl" // a record for each key whose value is kept
)

// record is a key, as etcdctl prints it and as a light snapshot keeps it.
type record struct {
	Key     []byte `json:"key"`
	Value   []byte `json:"value,omitempty"`
	Created int64  `json:"create_revision"`
	Changed int64  `json:"mod_revision"`
	Version int64  `json:"version"`
	Lease   int64  `json:"lease,omitempty"`
}

const (
	maxAnswer = 256 << 20 // of etcdctl to one question
	maxPage   = 5000      // keys asked for at once
	wantPage  = 4 << 20   // bytes that an answer should have
)

// txn has a transaction done. Its text goes to etcdctl's standard input, so that keys
// may have any bytes and nobody sees values in the list of processes.
func (s *System) txn(ctx context.Context, compares, ops []string, answer any) error {
	p, err := s.tools.Proc([]string{"txn", "-w", "json"}, "etcdctl")
	if err != nil {
		return err
	}
	var out bytes.Buffer
	p.Stdin = strings.NewReader(lines(compares) + "\n" + lines(ops) + "\n\n")
	p.Stdout = command.Limited(&out, maxAnswer)
	if err := p.Run(ctx); err != nil {
		return err
	}
	if err := json.Unmarshal(out.Bytes(), answer); err != nil {
		return fmt.Errorf("etcdctl txn: %w", err)
	}
	return nil
}

func lines(list []string) string {
	var b strings.Builder
	for _, l := range list {
		b.WriteString(l + "\n")
	}
	return b.String()
}

// ranged is the answer to a transaction of questions.
type ranged struct {
	Responses []struct {
		Response struct {
			Range  *page `json:"response_range"` // etcdctl 3.5 and later
			Before *page `json:"ResponseRange"`
		} `json:"Response"`
	} `json:"responses"`
}

type page struct {
	Kvs  []record `json:"kvs"`
	More bool     `json:"more"`
}

// pages returns the answers to as many questions.
func (r *ranged) pages(n int) ([]*page, error) {
	var list []*page
	for _, a := range r.Responses {
		p := a.Response.Range
		if p == nil {
			p = a.Response.Before
		}
		if p != nil {
			list = append(list, p)
		}
	}
	if len(list) != n {
		return nil, fmt.Errorf("etcdctl txn gives %d answers to %d questions: %w", len(list), n, system.ErrIncomplete)
	}
	return list, nil
}

// prefixEnd returns the first key behind all that begin with a prefix; nil: there is
// none.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// each asks for all keys that begin with a prefix, as they were at a revision, page by
// page.
func (s *System) each(ctx context.Context, prefix string, rev int64, names bool, do func(*record) error) error {
	from, limit := []byte(prefix), 100
	if len(from) == 0 {
		from = []byte{0}
	}
	for {
		op := fmt.Sprintf("get --rev=%d --limit=%d", rev, limit)
		if names {
			op += " --keys-only"
		}
		if end := prefixEnd([]byte(prefix)); end != nil {
			op += " -- " + strconv.Quote(string(from)) + " " + strconv.Quote(string(end))
		} else {
			op += " --from-key -- " + strconv.Quote(string(from))
		}
		var got ranged
		if err := s.txn(ctx, nil, []string{op}, &got); err != nil {
			return err
		}
		pages, err := got.pages(1)
		if err != nil {
			return err
		}
		page := pages[0]
		size := 0
		for i := range page.Kvs {
			r := &page.Kvs[i]
			if !bytes.HasPrefix(r.Key, []byte(prefix)) || bytes.Compare(r.Key, from) < 0 {
				return fmt.Errorf("etcdctl gives %q, which was not asked for", r.Key)
			}
			if names && len(r.Value) > 0 {
				return errors.New("etcdctl get --keys-only gives values: nothing is kept of what shall have none")
			}
			if err := do(r); err != nil {
				return err
			}
			from = append(bytes.Clone(r.Key), 0)
			size += len(r.Key) + len(r.Value) + 50
		}
		if !page.More {
			return nil
		}
		if len(page.Kvs) == 0 {
			return fmt.Errorf("etcdctl says that there is more, and gives nothing: %w", system.ErrIncomplete)
		}
		limit = min(max(wantPage/(size/len(page.Kvs)), 10), 2*limit, maxPage)
	}
}

// keys keeps the names of all keys and when they were changed, and in a light snapshot
// the values of those that are chosen: all as it was at one revision.
func (s *System) keys(ctx context.Context, c *capture, m *member, opt system.CaptureOptions, mtime tree.Time) error {
	rev := m.Status.Header.Revision
	count := 0
	names := func(w *bufio.Writer) error {
		return s.each(ctx, "", rev, true, func(r *record) error {
			count++
			_, err := fmt.Fprintf(w, "%q create_revision=%d mod_revision=%d version=%d\n", r.Key, r.Created, r.Changed, r.Version)
			return err
		})
	}
	if err := c.write(filepath.Join(opt.Scratch, namesFile), mtime, names); err != nil {
		return err
	}
	c.info.Facts["keys"], c.info.Facts["revision"] = strconv.Itoa(count), strconv.FormatInt(rev, 10)
	if opt.Mode != system.Light {
		return nil
	}
	if len(opt.Data) == 0 {
		return fmt.Errorf("--mode light: say with --data of which keys to keep the values, by what they begin with: %w", system.ErrRefused)
	}
	prefixes := reduce(opt.Data)
	count = 0
	values := func(w *bufio.Writer) error {
		for _, prefix := range prefixes {
			before := count
			if err := s.each(ctx, prefix, rev, false, func(r *record) error {
				count++
				p, err := json.Marshal(r)
				if err == nil {
					_, err = w.Write(append(p, '\n'))
				}
				return err
			}); err != nil {
				return err
			}
			if count == before {
				return fmt.Errorf("--data %q: no key begins with it: %w", prefix, system.ErrRefused)
			}
		}
		return nil
	}
	if err := c.write(filepath.Join(opt.Scratch, valuesFile), mtime, values); err != nil {
		return err
	}
	list, err := json.Marshal(prefixes)
	if err != nil {
		return err
	}
	c.info.Facts["values"], c.info.Facts["prefixes"] = strconv.Itoa(count), string(list)
	return nil
}

// reduce sorts prefixes and leaves out what another one has.
func reduce(prefixes []string) []string {
	var list []string
	for _, p := range sorted(prefixes) {
		if len(list) == 0 || !strings.HasPrefix(p, list[len(list)-1]) {
			list = append(list, p)
		}
	}
	return list
}

// write adds a file that is made in scratch space.
func (c *capture) write(file string, mtime tree.Time, fill func(w *bufio.Writer) error) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	if err := errors.Join(fill(w), w.Flush(), f.Close()); err != nil {
		return err
	}
	in, size, err := c.open(file)
	if err == nil {
		c.root.Add(system.NewFile(filepath.Base(file), mtime, in, size, nil))
	}
	return err
}
