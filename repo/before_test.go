package repo

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// before does something once, just before the first call of that verb (get, put
// or list) for a name or prefix that begins so, and when says so.
type before struct {
	backend.Backend
	verb, name string
	when       func(call int) bool // counted from 1; nil: the first
	do         func()

	mu    sync.Mutex
	calls int
}

func (b *before) call(verb, name string) {
	if b.verb != verb || !strings.HasPrefix(name, b.name) {
		return
	}
	b.mu.Lock()
	b.calls++
	now := b.calls == 1
	if b.when != nil {
		now = b.when(b.calls)
	}
	b.mu.Unlock()
	if now {
		b.do()
	}
}

func (b *before) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	b.call("get", name)
	return b.Backend.Get(ctx, name, off, n)
}

func (b *before) Put(ctx context.Context, name string, p []byte) error {
	b.call("put", name)
	return b.Backend.Put(ctx, name, p)
}

func (b *before) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		b.call("list", prefix)
		for info, err := range b.Backend.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
	}
}

// failing lets so many changes through, and no more.
type failing struct {
	backend.Backend
	left int
}

var errFailing = errors.New("no more changes")

func (f *failing) change() error {
	if f.left == 0 {
		return errFailing
	}
	f.left--
	return nil
}

func (f *failing) Put(ctx context.Context, name string, p []byte) error {
	if err := f.change(); err != nil {
		return err
	}
	return f.Backend.Put(ctx, name, p)
}

func (f *failing) Remove(ctx context.Context, name string) error {
	if err := f.change(); err != nil {
		return err
	}
	return f.Backend.Remove(ctx, name)
}
