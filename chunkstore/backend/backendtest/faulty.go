package backendtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

var (
	// ErrInjected is the error of a call that Faulty let fail.
	ErrInjected = errors.New("injected fault")

	// ErrCrashed is the error of every call after a crash.
	ErrCrashed = errors.New("the backend has crashed")
)

// Faults says what goes wrong. Zero fields stand for nothing.
type Faults struct {
	Call  int   // the call that fails, counted from 1 over all verbs
	After bool  // it fails after it was done: its answer is lost
	Err   error // its error, wrapped; nil stands for ErrInjected

	// CrashAfterPuts is the number of successful Puts after which every call
	// fails with ErrCrashed and does nothing.
	CrashAfterPuts int

	// CrashAtCall is the first call that fails with ErrCrashed, as all calls
	// after it do.
	CrashAtCall int

	// Space is how many bytes Puts may store, before they do nothing and fail
	// with an error that wraps syscall.ENOSPC. Remove gives nothing back.
	Space int64
}

// Faulty wraps a Backend, counts its calls and lets some of them fail. A List
// is a call when it is ranged over. It is safe for concurrent use; which call
// is the n-th is then up to chance.
type Faulty struct {
	backend.Backend
	mu     sync.Mutex
	faults Faults
	calls  int
	begun  int // Puts that succeeded or are at work
	puts   int // Puts that succeeded
	stored int64
}

// NewFaulty returns b with faults.
func NewFaulty(b backend.Backend, faults Faults) *Faulty {
	return &Faulty{Backend: b, faults: faults}
}

// Calls returns how many calls there were, failed ones included.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Puts returns how many Puts have succeeded.
func (f *Faulty) Puts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.puts
}

// Set replaces the faults and starts all counting anew: the crashed or full
// Backend works again.
func (f *Faulty) Set(faults Faults) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.calls, f.begun, f.puts, f.stored = faults, 0, 0, 0, 0
}

// enter counts a call. It returns an error if nothing is to be done, and
// another if something is to be done but to fail afterwards.
func (f *Faulty) enter(verb, name string) (before, after error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.faults.CrashAfterPuts > 0 && f.puts >= f.faults.CrashAfterPuts {
		return fmt.Errorf("%s %s: %w", verb, name, ErrCrashed), nil
	}
	if f.faults.CrashAtCall > 0 && f.calls >= f.faults.CrashAtCall {
		return fmt.Errorf("%s %s: %w", verb, name, ErrCrashed), nil
	}
	if f.calls != f.faults.Call {
		return nil, nil
	}
	err := f.faults.Err
	if err == nil {
		err = ErrInjected
	}
	err = fmt.Errorf("call %d, %s %s: %w", f.calls, verb, name, err)
	if f.faults.After {
		return nil, err
	}
	return err, nil
}

// Put implements backend.Backend.
func (f *Faulty) Put(ctx context.Context, name string, p []byte) error {
	before, after := f.enter("put", name)
	if before != nil {
		return before
	}
	if err := f.begin(name, int64(len(p))); err != nil {
		return err
	}
	err := f.Backend.Put(ctx, name, p)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		f.begun--
		return err
	}
	f.puts++
	return after
}

// begin takes one of the Puts, and space, that are left.
func (f *Faulty) begin(name string, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.faults.CrashAfterPuts > 0 && f.begun >= f.faults.CrashAfterPuts:
		return fmt.Errorf("put %s: %w", name, ErrCrashed)
	case f.faults.Space > 0 && f.stored+n > f.faults.Space:
		return fmt.Errorf("put %s: %w", name, syscall.ENOSPC)
	}
	f.begun++
	f.stored += n
	return nil
}

// Get implements backend.Backend.
func (f *Faulty) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	before, after := f.enter("get", name)
	if before != nil {
		return nil, before
	}
	p, err := f.Backend.Get(ctx, name, off, n)
	if err == nil && after != nil {
		return nil, after
	}
	return p, err
}

// List implements backend.Backend. One that fails afterwards yields all and
// then the error.
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		before, after := f.enter("list", prefix)
		if before != nil {
			yield(backend.Info{}, before)
			return
		}
		for info, err := range f.Backend.List(ctx, prefix) {
			if !yield(info, err) || err != nil {
				return
			}
		}
		if after != nil {
			yield(backend.Info{}, after)
		}
	}
}

// Remove implements backend.Backend.
func (f *Faulty) Remove(ctx context.Context, name string) error {
	before, after := f.enter("remove", name)
	if before != nil {
		return before
	}
	if err := f.Backend.Remove(ctx, name); err != nil {
		return err
	}
	return after
}
