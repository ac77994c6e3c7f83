package backend_test

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

func TestMem(t *testing.T) {
	backendtest.Run(t, func(*testing.T) backend.Backend { return backend.NewMem() })
}

func TestMemClock(t *testing.T) {
	m := backend.NewMem()
	at := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	m.SetClock(func() time.Time { return at })
	if err := m.Put(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	for info, err := range m.List(t.Context(), "") {
		if err != nil || !info.ModTime.Equal(at) {
			t.Errorf("got %v, %v, want %v", info.ModTime, err, at)
		}
	}
}

// The wrappers keep the contract, too, where they have nothing to do.
func TestWrappers(t *testing.T) {
	never := func(int, error) (time.Duration, bool) { return 0, false }
	always := func(string) bool { return true }
	for name, wrap := range map[string]func(backend.Backend) backend.Backend{
		"retry":    func(b backend.Backend) backend.Backend { return backend.Retry(b, never, always) },
		"faulty":   func(b backend.Backend) backend.Backend { return backendtest.NewFaulty(b, backendtest.Faults{}) },
		"recorder": func(b backend.Backend) backend.Backend { return backendtest.NewRecorder(b) },
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(*testing.T) backend.Backend { return wrap(backend.NewMem()) })
		})
	}
}

// verbs are calls that succeed when the Backend holds "there" alone.
var verbs = map[string]func(ctx context.Context, b backend.Backend) error{
	"put": func(ctx context.Context, b backend.Backend) error { return b.Put(ctx, "new", []byte("new")) },
	"get": func(ctx context.Context, b backend.Backend) error {
		_, err := b.Get(ctx, "there", 0, -1)
		return err
	},
	"list": func(ctx context.Context, b backend.Backend) error {
		var names []string
		for info, err := range b.List(ctx, "") {
			if err != nil {
				return err
			}
			names = append(names, info.Name)
		}
		if !slices.Equal(names, []string{"there"}) {
			return errors.New("listed something else")
		}
		return nil
	},
	"remove": func(ctx context.Context, b backend.Backend) error { return b.Remove(ctx, "there") },
}

func TestRetry(t *testing.T) {
	for verb, call := range verbs {
		for _, after := range []bool{false, true} {
			f := backendtest.NewFaulty(backend.NewMem(), backendtest.Faults{})
			if err := f.Put(t.Context(), "there", []byte("x")); err != nil {
				t.Fatal(err)
			}
			f.Set(backendtest.Faults{Call: 1, After: after})
			waits := 0
			backoff := func(n int, _ error) (time.Duration, bool) {
				if waits++; n != waits {
					t.Errorf("backoff(%d), want %d", n, waits)
				}
				return time.Microsecond, n < 3
			}
			b := backend.Retry(f, backoff, func(string) bool { return true })
			err := call(t.Context(), b)
			if verb == "list" && after {
				// It had yielded something: not to be repeated.
				if !errors.Is(err, backendtest.ErrInjected) {
					t.Errorf("list, after: got %v", err)
				}
				continue
			}
			if err != nil || waits != 1 {
				t.Errorf("%s, after %v: got %v after %d waits, want success after one", verb, after, err, waits)
			}
		}
	}
}

func TestRetryEnds(t *testing.T) {
	for verb, call := range verbs {
		for _, tt := range []struct {
			err   error
			tries int
		}{
			{errors.New("connection reset"), 3},
			{fs.ErrPermission, 1},
			{fs.ErrNotExist, 1},
			{context.DeadlineExceeded, 1},
		} {
			b := &failing{err: tt.err}
			r := backend.Retry(b, func(n int, _ error) (time.Duration, bool) { return 0, n < 3 }, func(string) bool { return true })
			if err := call(t.Context(), r); !errors.Is(err, tt.err) || b.calls != tt.tries {
				t.Errorf("%s: got %v after %d calls, want %v after %d", verb, err, b.calls, tt.err, tt.tries)
			}
		}
	}
}

// failing fails every Put, Get, List and Remove.
type failing struct {
	backend.Backend
	err   error
	calls int
}

func (f *failing) fail() error { f.calls++; return f.err }

func (f *failing) Put(context.Context, string, []byte) error { return f.fail() }
func (f *failing) Get(context.Context, string, int64, int64) ([]byte, error) {
	return nil, f.fail()
}
func (f *failing) Remove(context.Context, string) error { return f.fail() }
func (f *failing) List(context.Context, string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) { yield(backend.Info{}, f.fail()) }
}

// A Put whose answer is lost: success if the bytes are there, no second Put
// where that is forbidden, and no success over somebody else's bytes.
func TestRetryPut(t *testing.T) {
	soon := func(n int, _ error) (time.Duration, bool) { return 0, n < 3 }
	always := func(string) bool { return true }
	m := backend.NewMem()
	lost := backendtest.Faults{Call: 1, After: true}

	if err := backend.Retry(backendtest.NewFaulty(m, lost), soon, always).Put(t.Context(), "a", []byte("mine")); err != nil {
		t.Errorf("own bytes: %v", err)
	}
	f := backendtest.NewFaulty(m, lost)
	if err := backend.Retry(f, soon, nil).Put(t.Context(), "b", []byte("mine")); !errors.Is(err, backendtest.ErrInjected) || f.Calls() != 1 {
		t.Errorf("not to be repeated: got %v after %d calls", err, f.Calls())
	}
	f = backendtest.NewFaulty(m, backendtest.Faults{Call: 1})
	if err := backend.Retry(f, soon, always).Put(t.Context(), "a", []byte("other")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("others' bytes: got %v, want fs.ErrExist", err)
	}
	f = backendtest.NewFaulty(m, backendtest.Faults{})
	if err := backend.Retry(f, soon, nil).Put(t.Context(), "a", []byte("mine")); err != nil || f.Calls() != 2 {
		t.Errorf("repeated by something on its way: got %v after %d calls, want success after two", err, f.Calls())
	}
	f = backendtest.NewFaulty(m, backendtest.Faults{})
	if err := backend.Retry(f, soon, nil).Put(t.Context(), "a", []byte("other")); !errors.Is(err, fs.ErrExist) || f.Calls() != 2 {
		t.Errorf("taken by others: got %v after %d calls, want fs.ErrExist after two", err, f.Calls())
	}
}

func TestRetryCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := backendtest.NewFaulty(backend.NewMem(), backendtest.Faults{Call: 1})
	b := backend.Retry(f, func(int, error) (time.Duration, bool) { cancel(); return time.Hour, true }, nil)
	if err := b.Remove(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
