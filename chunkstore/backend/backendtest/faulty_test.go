package backendtest

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

func TestFaultyCall(t *testing.T) {
	broken := errors.New("broken")
	for _, after := range []bool{false, true} {
		m := backend.NewMem()
		f := NewFaulty(m, Faults{Call: 2, After: after, Err: broken})
		for i, wantErr := range []error{nil, broken, nil} {
			if err := f.Put(t.Context(), fmt.Sprint(i), nil); !errors.Is(err, wantErr) {
				t.Errorf("after %v, put %d: got %v, want %v", after, i, err, wantErr)
			}
		}
		_, err := m.Get(t.Context(), "1", 0, -1)
		if done := !errors.Is(err, fs.ErrNotExist); done != after {
			t.Errorf("after %v: the failed put was done: %v", after, done)
		}
		if f.Calls() != 3 {
			t.Errorf("%d calls, want 3", f.Calls())
		}
	}
}

func TestFaultyCrash(t *testing.T) {
	m := backend.NewMem()
	f := NewFaulty(m, Faults{CrashAfterPuts: 7})
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			if err := f.Put(t.Context(), fmt.Sprint(i), nil); err != nil && !errors.Is(err, ErrCrashed) {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if n := len(list(t, m, "")); n != 7 {
		t.Errorf("%d puts were done, want 7", n)
	}
	if _, err := f.Get(t.Context(), "0", 0, -1); !errors.Is(err, ErrCrashed) {
		t.Errorf("get: %v", err)
	}
	if err := f.Remove(t.Context(), "0"); !errors.Is(err, ErrCrashed) {
		t.Errorf("remove: %v", err)
	}
	for _, err := range f.List(t.Context(), "") {
		if !errors.Is(err, ErrCrashed) {
			t.Errorf("list: %v", err)
		}
	}
	f.Set(Faults{})
	if err := f.Put(t.Context(), "again", nil); err != nil {
		t.Error(err)
	}
}

// A put that fails by itself is no put.
func TestFaultyCountsOnlySuccesses(t *testing.T) {
	f := NewFaulty(backend.NewMem(), Faults{CrashAfterPuts: 2})
	for range 3 {
		f.Put(t.Context(), "same", nil)
	}
	if err := f.Put(t.Context(), "other", nil); err != nil || f.Puts() != 2 {
		t.Errorf("got %v after %d puts", err, f.Puts())
	}
}

func TestFaultySpace(t *testing.T) {
	f := NewFaulty(backend.NewMem(), Faults{Space: 10})
	if err := f.Put(t.Context(), "a", make([]byte, 6)); err != nil {
		t.Error(err)
	}
	if err := f.Put(t.Context(), "b", make([]byte, 5)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if err := f.Put(t.Context(), "c", make([]byte, 4)); err != nil {
		t.Error(err)
	}
}

func TestRecorder(t *testing.T) {
	r := NewRecorder(backend.NewMem())
	put(t, r, "a/b", []byte("xyz"))
	want(t, r, "a/b", []byte("xyz"))
	list(t, r, "a/")
	if _, err := r.Get(t.Context(), "none", 0, 5); err == nil {
		t.Error("got something under no name")
	}
	if err := r.Remove(t.Context(), "a/b"); err != nil {
		t.Error(err)
	}
	if got := fmt.Sprint(r.Ops()); got != "[put a/b get a/b list a/ get none remove a/b]" {
		t.Errorf("got %s", got)
	}
	if got, put := r.Bytes(); got != 3 || put != 3 || r.Count("get") != 2 {
		t.Errorf("%d bytes got, %d put, %d gets", got, put, r.Count("get"))
	}
	if r.Reset(); len(r.Ops()) != 0 {
		t.Error("Reset forgets nothing")
	}
}
