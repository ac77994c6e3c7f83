package backendtest

import (
	"context"
	"iter"
	"slices"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// Op is one call of a Backend.
type Op struct {
	Verb   string // put, get, list or remove
	Name   string // of the object, or the prefix of a list
	Off, N int64  // of a get: as asked for if it failed, else as returned; of a put: N bytes; of a list: N objects seen
	Err    error  // what the call returned
}

// String returns the verb and the name, as in "put config/1".
func (o Op) String() string { return o.Verb + " " + o.Name }

// Recorder wraps a Backend and remembers the calls, in the order in which they
// returned. A list is remembered when its range ends. It is safe for concurrent
// use.
type Recorder struct {
	backend.Backend
	mu  sync.Mutex
	ops []Op
}

// NewRecorder returns b with a record of its calls.
func NewRecorder(b backend.Backend) *Recorder { return &Recorder{Backend: b} }

// Ops returns the calls since the last Reset.
func (r *Recorder) Ops() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ops)
}

// Reset forgets all calls.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = nil
}

// Count returns how many calls of a verb there were.
func (r *Recorder) Count(verb string) int {
	n := 0
	for _, op := range r.Ops() {
		if op.Verb == verb {
			n++
		}
	}
	return n
}

// Bytes returns how many bytes successful gets returned, and successful puts
// stored.
func (r *Recorder) Bytes() (got, put int64) {
	for _, op := range r.Ops() {
		switch {
		case op.Err != nil:
		case op.Verb == "get":
			got += op.N
		case op.Verb == "put":
			put += op.N
		}
	}
	return got, put
}

func (r *Recorder) add(op Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, op)
}

// Put implements backend.Backend.
func (r *Recorder) Put(ctx context.Context, name string, p []byte) error {
	err := r.Backend.Put(ctx, name, p)
	r.add(Op{"put", name, 0, int64(len(p)), err})
	return err
}

// Get implements backend.Backend.
func (r *Recorder) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	p, err := r.Backend.Get(ctx, name, off, n)
	if err == nil {
		n = int64(len(p))
	}
	r.add(Op{"get", name, off, n, err})
	return p, err
}

// List implements backend.Backend.
func (r *Recorder) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		op := Op{Verb: "list", Name: prefix}
		defer func() { r.add(op) }()
		for info, err := range r.Backend.List(ctx, prefix) {
			if op.Err = err; err == nil {
				op.N++
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// Remove implements backend.Backend.
func (r *Recorder) Remove(ctx context.Context, name string) error {
	err := r.Backend.Remove(ctx, name)
	r.add(Op{Verb: "remove", Name: name, Err: err})
	return err
}
