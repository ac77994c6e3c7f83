package repo

import (
	"context"
	"iter"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// slowLine is a backend across a network on which calls take until three are under
// way at once, and no time from then on.
type slowLine struct {
	backend.Backend
	now atomic.Int64
	met chan struct{}
}

func (s *slowLine) Transfers() int { return 4 }

func (s *slowLine) trip() {
	if s.now.Add(1) == 3 {
		close(s.met)
	}
	select {
	case <-s.met:
	case <-time.After(20 * time.Second):
		s.now.Add(-1)
	}
}

func (s *slowLine) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	s.trip()
	return s.Backend.Get(ctx, name, off, n)
}

func (s *slowLine) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	s.trip()
	return s.Backend.List(ctx, prefix)
}

// Answers that were begun early are given out once; what fails, and what was not
// begun, is asked for as ever.
func TestEarly(t *testing.T) {
	mem := backend.NewMem()
	for _, name := range []string{"marks/a", "marks/b", "keys/a"} {
		if err := mem.Put(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, e := withEarly(t.Context(), mem); e != nil {
		t.Error("a backend that gains nothing is read early")
	}
	line := &slowLine{Backend: mem, met: make(chan struct{})}
	ctx, e := withEarly(t.Context(), line)
	if earlyIn(ctx) != e || earlyIn(t.Context()) != nil {
		t.Error("the context does not tell")
	}
	e.list("marks/", smallOnes)
	e.get([]string{"keys/a", "keys/gone"})
	read := func(name string) string {
		p, err := e.Get(t.Context(), name, 0, -1)
		if err != nil {
			return err.Error()
		}
		return string(p)
	}
	listed := func() (n int) {
		for _, err := range e.List(t.Context(), "marks/") {
			if err != nil {
				t.Error(err)
			}
			n++
		}
		return n
	}
	if n := listed(); n != 2 {
		t.Errorf("%d marks are listed, want 2", n)
	}
	for _, name := range []string{"marks/a", "marks/b", "keys/a"} {
		if got := read(name); got != name {
			t.Errorf("%s: got %q", name, got)
		}
	}
	select {
	case <-line.met:
	default:
		t.Error("never were three calls under way at once")
	}
	// Once given out, what is there by now counts.
	if err := mem.Remove(t.Context(), "marks/a"); err != nil {
		t.Fatal(err)
	}
	if n := listed(); n != 1 {
		t.Errorf("%d marks are listed after one was removed, want 1", n)
	}
	if got := read("marks/a"); got == "marks/a" {
		t.Error("a removed mark is read")
	}
	if err := mem.Put(t.Context(), "keys/gone", []byte("back")); err != nil {
		t.Fatal(err)
	}
	if got := read("keys/gone"); got != "back" {
		t.Errorf("what was missing early is %q", got)
	}
}
