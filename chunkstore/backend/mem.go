package backend

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mem is a Backend in memory, for tests and for trying things out. What it
// holds is gone with it.
type Mem struct {
	mu      sync.RWMutex
	clock   func() time.Time
	objects map[string]memObject
}

type memObject struct {
	data []byte // never changed
	time time.Time
}

var _ Backend = (*Mem)(nil)

// NewMem returns an empty Mem with the system's clock.
func NewMem() *Mem { return &Mem{clock: time.Now, objects: make(map[string]memObject)} }

// SetClock lets now tell the time of later Puts.
func (m *Mem) SetClock(now func() time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock = now
}

// Put implements Backend.
func (m *Mem) Put(ctx context.Context, name string, p []byte) error {
	if err := check(ctx, "put", name); err != nil {
		return err
	}
	data := bytes.Clone(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; ok {
		return &fs.PathError{Op: "put", Path: name, Err: fs.ErrExist}
	}
	m.objects[name] = memObject{data, m.clock()}
	return nil
}

// Get implements Backend.
func (m *Mem) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if err := check(ctx, "get", name); err != nil {
		return nil, err
	}
	m.mu.RLock()
	o, ok := m.objects[name]
	m.mu.RUnlock()
	if !ok {
		return nil, &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist}
	}
	n, err := Range(name, int64(len(o.data)), off, n)
	if err != nil {
		return nil, err
	}
	return append(make([]byte, 0, n), o.data[off:off+n]...), nil
}

// List implements Backend. It yields what is there when it starts.
func (m *Mem) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		m.mu.RLock()
		var found []Info
		for name, o := range m.objects {
			if strings.HasPrefix(name, prefix) {
				found = append(found, Info{name, int64(len(o.data)), o.time})
			}
		}
		m.mu.RUnlock()
		slices.SortFunc(found, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
		for _, info := range found {
			if err := ctx.Err(); err != nil {
				yield(Info{}, err)
				return
			}
			if !yield(info, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Info{}, err)
		}
	}
}

// Remove implements Backend.
func (m *Mem) Remove(ctx context.Context, name string) error {
	if err := check(ctx, "remove", name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

// Lag implements Backend: zero.
func (m *Mem) Lag() time.Duration { return 0 }

// String implements Backend.
func (m *Mem) String() string { return "memory" }

func check(ctx context.Context, verb, name string) error {
	if !ValidName(name) {
		return InvalidName(verb, name)
	}
	return ctx.Err()
}

// InvalidName is the error of all verbs for a name that is none. It wraps
// fs.ErrInvalid.
func InvalidName(verb, name string) error {
	return fmt.Errorf("%s %q: no name of an object: %w", verb, name, fs.ErrInvalid)
}

// Range returns how many bytes Get is to return of an object of that size, or
// the error that Get returns: io.ErrUnexpectedEOF where the object is shorter
// than that, fs.ErrInvalid where off is negative or where it would be more than
// MaxGet. It is for implementations, and lets neither n nor a sparse file decide
// how much is allocated.
func Range(name string, size, off, n int64) (int64, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("get %s: offset %d: %w", name, off, fs.ErrInvalid)
	case off > size, n > size-off:
		want := "the rest"
		if n >= 0 {
			want = fmt.Sprintf("%d bytes", n)
		}
		return 0, fmt.Errorf("get %s: it has %d bytes, too few for %s from %d on: %w", name, size, want, off, io.ErrUnexpectedEOF)
	case n < 0:
		n = size - off
	}
	if n > MaxGet {
		return 0, fmt.Errorf("get %s: %d bytes at once, more than any object has: %w", name, n, fs.ErrInvalid)
	}
	return n, nil
}

// MaxGet is the most bytes that one Get returns. No object that a repository has
// comes near.
const MaxGet = 2 << 30
