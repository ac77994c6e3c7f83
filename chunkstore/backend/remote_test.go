package backend_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// flaky is a Mem whose calls fail as scripted: one error a call, nil for none.
type flaky struct {
	*backend.Mem
	errs  []error
	done  bool // the failing Put was done all the same
	calls int
}

func (f *flaky) next() error {
	f.calls++
	if len(f.errs) == 0 {
		return nil
	}
	err := f.errs[0]
	f.errs = f.errs[1:]
	return err
}

func (f *flaky) Put(ctx context.Context, name string, p []byte) error {
	err := f.next()
	if err == nil || f.done {
		if perr := f.Mem.Put(ctx, name, p); err == nil {
			return perr
		}
	}
	return err
}

// List fails after two names.
func (f *flaky) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return f.list(ctx, prefix, "")
}

func (f *flaky) list(ctx context.Context, prefix, after string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		fail, n := f.next(), 0
		for info, err := range f.Mem.List(ctx, prefix) {
			if err == nil && info.Name <= after {
				continue
			}
			if n++; n > 2 && fail != nil {
				yield(backend.Info{}, fail)
				return
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

type resuming struct{ *flaky }

func (r resuming) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[backend.Info, error] {
	return r.list(ctx, prefix, after)
}

func quick(n int, _ error) (time.Duration, bool) { return 0, n < 4 }

func TestRetryPutAgain(t *testing.T) {
	unclear := errors.New("the line broke")
	refused := fmt.Errorf("slow down: %w", backend.ErrNotDone)
	for _, tt := range []struct {
		name  string
		errs  []error
		done  bool
		want  error
		calls int
	}{
		{"packs/x", []error{refused, refused}, false, nil, 3},
		{"packs/x", []error{refused, refused, refused, refused, refused}, false, backend.ErrNotDone, 4},
		{"packs/x", []error{unclear}, false, unclear, 1},
		{"packs/x", []error{refused, unclear}, true, unclear, 2},
		{"snapshots/x", []error{unclear}, true, nil, 2},
		{"keys/x", []error{unclear}, true, unclear, 1},
		{"packs/x", []error{fs.ErrPermission}, false, fs.ErrPermission, 1},
		{"index/x", []error{unclear, refused}, false, nil, 3},
		{"index/x", []error{unclear}, true, nil, 2}, // its own bytes are there
		{"index/x", []error{unclear, unclear, unclear, unclear, unclear}, false, unclear, 4},
		{"snapshots/x", []error{unclear, fs.ErrPermission}, false, fs.ErrPermission, 2},
		{"snapshots/x", []error{unclear, fs.ErrPermission}, false, backend.ErrUnclear, 2},
		{"snapshots/x", []error{unclear, refused, refused, refused}, false, backend.ErrUnclear, 4},
		{"snapshots/x", []error{refused, fs.ErrPermission}, false, fs.ErrPermission, 2},
		{"writers/x", []error{unclear}, true, nil, 2},
	} {
		f := &flaky{Mem: backend.NewMem(), errs: tt.errs, done: tt.done}
		err := backend.Retry(f, quick, backend.PutAgain).Put(t.Context(), tt.name, []byte("x"))
		if !errors.Is(err, tt.want) || f.calls != tt.calls {
			t.Errorf("%s after %v: got %v in %d calls, want %v in %d", tt.name, tt.errs, err, f.calls, tt.want, tt.calls)
		}
		// Nobody may conclude from the last answer what became of the others.
		sure := !slices.Contains(tt.errs, unclear)
		if err != nil && (errors.Is(err, backend.ErrUnclear) || errors.Is(err, unclear)) == sure || errors.Is(err, backend.ErrNotDone) && !sure {
			t.Errorf("%s after %v: %v", tt.name, tt.errs, err)
		}
	}
	// A refusal hides nobody else's object.
	f := &flaky{Mem: backend.NewMem(), errs: []error{refused}}
	if err := f.Mem.Put(t.Context(), "index/x", []byte("other")); err != nil {
		t.Fatal(err)
	}
	if err := backend.Retry(f, quick, backend.PutAgain).Put(t.Context(), "index/x", []byte("x")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: got %v", err)
	}
}

// TestLate: where calls are repeated one may come late, through all wrappers.
func TestLate(t *testing.T) {
	b := backend.NewMem()
	if d := backend.Late(b); d != 0 {
		t.Errorf("in memory: %s", d)
	}
	if d := backend.Late(backend.LookFirst(backend.Retry(b, quick, nil))); d < 15*time.Minute {
		t.Errorf("repeated: %s", d)
	}
	if d := backend.Late(backend.Retry(tardy{b}, quick, nil)); d != 24*time.Hour {
		t.Errorf("a place that is slower still: %s", d)
	}
}

type tardy struct{ backend.Backend }

func (tardy) Late() time.Duration { return 24 * time.Hour }

func TestRetryListResumes(t *testing.T) {
	broke := errors.New("the line broke")
	f := &flaky{Mem: backend.NewMem()}
	var all []string
	for i := range 9 {
		all = append(all, fmt.Sprintf("a/%d", i))
		if err := f.Mem.Put(t.Context(), all[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	list := func(b backend.Backend) (names []string, last error) {
		for info, err := range b.List(t.Context(), "") {
			if last = err; err == nil {
				names = append(names, info.Name)
			}
		}
		return names, last
	}
	f.errs = []error{broke, broke, broke}
	if names, err := list(backend.Retry(resuming{f}, quick, nil)); err != nil || !slices.Equal(names, all) {
		t.Errorf("resumed: got %v, %v", names, err)
	}
	f.errs = []error{broke, fs.ErrPermission}
	if names, err := list(backend.Retry(resuming{f}, quick, nil)); !errors.Is(err, fs.ErrPermission) || !slices.Equal(names, all[:4]) {
		t.Errorf("refused: got %v, %v", names, err)
	}
	f.errs = []error{broke, broke}
	if names, err := list(backend.Retry(f, quick, nil)); !errors.Is(err, broke) || !slices.Equal(names, all[:2]) {
		t.Errorf("cannot resume: got %v, %v", names, err)
	}
}

// paging lists two at once, and some pages are empty.
type paging struct{ *flaky }

func (p paging) ListPage(ctx context.Context, prefix, from string) (page []backend.Info, next string, err error) {
	if err := p.next(); err != nil {
		return nil, "", err
	}
	if from == "a/4" { // an empty one
		return nil, "a/3~", nil
	}
	for info, err := range p.Mem.List(ctx, prefix) {
		if err != nil {
			return nil, "", err
		}
		if info.Name >= from {
			page = append(page, info)
		}
	}
	slices.SortFunc(page, func(a, b backend.Info) int { return strings.Compare(a.Name, b.Name) })
	if len(page) > 2 {
		page, next = page[:2], page[2].Name
	}
	return page, next, nil
}

func TestRetryListPages(t *testing.T) {
	broke := errors.New("the line broke")
	f := &flaky{Mem: backend.NewMem()}
	var all []string
	for i := range 9 {
		all = append(all, fmt.Sprintf("a/%d", i))
		if err := f.Mem.Put(t.Context(), all[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		errs []error
		want error
		n    int
	}{
		{nil, nil, 9},
		{[]error{broke, broke, broke, nil, broke, broke, broke, nil, broke}, nil, 9}, // each page has its own count
		{[]error{nil, fs.ErrPermission}, fs.ErrPermission, 2},
		{[]error{nil, nil, broke, broke, broke, broke}, broke, 4},
	} {
		f.errs, f.calls = tt.errs, 0
		var names []string
		var last error
		for info, err := range backend.Retry(paging{f}, quick, nil).List(t.Context(), "a/") {
			if last = err; err == nil {
				names = append(names, info.Name)
			}
		}
		if !errors.Is(last, tt.want) || !slices.Equal(names, all[:tt.n]) {
			t.Errorf("%v: got %v, %v", tt.errs, names, last)
		}
	}
	for range backend.Retry(paging{f}, quick, nil).List(t.Context(), "") {
		break
	}
}

// round lists the same three pages again and again.
type round struct{ *backend.Mem }

func (round) ListPage(_ context.Context, _, from string) ([]backend.Info, string, error) {
	next := map[string]string{"": "b", "a": "b", "b": "c", "c": "a"}[from]
	return []backend.Info{{Name: next}}, next, nil
}

func TestRetryListRound(t *testing.T) {
	n := 0
	for _, err := range backend.Retry(round{backend.NewMem()}, quick, nil).List(t.Context(), "") {
		if n++; err == nil && n < 100 {
			continue
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("after %d: %v", n, err)
		}
		break
	}
}

func TestBackoff(t *testing.T) {
	for n := 1; ; n++ {
		wait, again := backend.Backoff(n)
		if full := min(200*time.Millisecond<<(n-1), 20*time.Second); wait < full/2 || wait > full {
			t.Errorf("pause %d is %s, want %s to %s", n, wait, full/2, full)
		}
		if !again {
			if n != 10 {
				t.Errorf("gave up after %d", n)
			}
			return
		}
	}
}

// twice is a Mem behind a proxy that sends every Put twice, and returns the second
// answer.
type twice struct{ *backend.Mem }

func (m twice) Put(ctx context.Context, name string, p []byte) error {
	if err := m.Mem.Put(ctx, name, p); err != nil {
		return err
	}
	return m.Mem.Put(ctx, name, p)
}

// TestFencedTwice: a request that is sent twice breaks no promise.
func TestFencedTwice(t *testing.T) {
	if err := backend.Fenced(t.Context(), twice{backend.NewMem()}, []string{"a", "b"}); err != nil {
		t.Error(err)
	}
}

// A place that asks for some time is left alone for so long.
func TestRetryAfter(t *testing.T) {
	const wait = 60 * time.Millisecond
	busy := backend.After(fmt.Errorf("busy: %w", backend.ErrNotDone), wait)
	if !errors.Is(busy, backend.ErrNotDone) {
		t.Errorf("%v is not what it was made of", busy)
	}
	b := backend.Retry(&flaky{Mem: backend.NewMem(), errs: []error{busy, busy}}, quick, nil)
	begun := time.Now()
	if err := b.Put(t.Context(), "packs/x", nil); err != nil || time.Since(begun) < 2*wait {
		t.Errorf("%v after %s, want success after %s", err, time.Since(begun), 2*wait)
	}
}

// unsorted is a vault that lists in an order of its own, and fails in between.
type unsorted struct {
	backend.Vault
	names []string
	fail  error
}

func (u *unsorted) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return u.ListAfter(ctx, prefix, "")
}

func (u *unsorted) ListAfter(ctx context.Context, prefix, after string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for v, err := range u.ListVersions(ctx, prefix, after) {
			if !yield(v.Info, err) {
				return
			}
		}
	}
}

func (u *unsorted) ListVersions(_ context.Context, _, after string) iter.Seq2[backend.Version, error] {
	return func(yield func(backend.Version, error) bool) {
		for i, name := range u.names {
			if i == len(u.names)-1 && u.fail != nil {
				fail := u.fail
				u.fail = nil
				yield(backend.Version{}, fail)
				return
			}
			if name > after && !yield(backend.Version{Info: backend.Info{Name: name}, ID: "1"}, nil) {
				return
			}
		}
	}
}

// A listing whose names are in no order is not taken up behind one: it would miss
// others.
func TestRetryUnsorted(t *testing.T) {
	broke := errors.New("the line broke")
	for _, names := range [][]string{{"z", "b", "a"}, {"c", "b", "a"}, {"a", "b", "c"}} {
		for _, versions := range []bool{false, true} {
			u := backend.Retry(&unsorted{names: names, fail: broke}, quick, nil)
			seen, err := map[string]bool{}, error(nil)
			if versions {
				for v, e := range u.(backend.Vault).ListVersions(t.Context(), "", "") {
					seen[v.Name], err = true, e
				}
			} else {
				for info, e := range u.List(t.Context(), "") {
					seen[info.Name], err = true, e
				}
			}
			if err == nil && len(seen) != 3 || names[0] == "a" && err != nil {
				t.Errorf("%v, versions %v: got %v, %v", names, versions, seen, err)
			}
		}
	}
}
