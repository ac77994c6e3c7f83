package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrUnfenced says that a place breaks Put's promise: it lets a name be put that
// is there already.
var ErrUnfenced = errors.New("does not keep to create-if-absent")

// racers put each of the names that Fenced tries.
const racers = 8

// Fenced tries out whether of several clients that put one name just one
// succeeds, as Backend promises: with each of the names, which must be free, and
// which are removed again. If not it is ErrUnfenced. No other error means that b
// keeps the promise.
func Fenced(ctx context.Context, b Backend, names []string) (err error) {
	for _, name := range names {
		err = race(ctx, b, name)
		if rerr := b.Remove(context.WithoutCancel(ctx), name); err == nil && rerr != nil {
			err = rerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func race(ctx context.Context, b Backend, name string) error {
	var errs [racers]error
	var group sync.WaitGroup
	bytesOf := func(i int) []byte {
		return fmt.Appendf(nil, "cutbank tries out whether this name can be taken twice: %d\n", i)
	}
	for i := range racers {
		group.Go(func() { errs[i] = b.Put(ctx, name, bytesOf(i)) })
	}
	group.Wait()
	var won []int // who was told so
	var lost error
	unclear := 0
	for i, err := range errs {
		switch {
		case err == nil:
			won = append(won, i)
		case errors.Is(err, fs.ErrExist):
		case Transient(err) && unclear < racers/2:
			unclear++
			lost = err
		default:
			return tryingOut(err)
		}
	}
	if len(won) > 1 {
		return fmt.Errorf("%s: %d of %d clients that put one name were each told that it was theirs: %w", b, len(won), racers, ErrUnfenced)
	}
	got, err := b.Get(ctx, name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) && len(won) == 0 && lost != nil {
		return tryingOut(lost)
	}
	if err != nil {
		return tryingOut(err)
	}
	if len(won) == 0 { // an answer was lost, or belongs to a request that was sent twice
		for i := range racers {
			won = append(won, i)
		}
	}
	if !slices.ContainsFunc(won, func(i int) bool { return bytes.Equal(got, bytesOf(i)) }) {
		return fmt.Errorf("%s: a client that put a name was told that it was its own, and the bytes of another are there: %w", b, ErrUnfenced)
	}
	// Long after it, too.
	for n := 1; ; n++ {
		err := b.Put(ctx, name, bytesOf(racers))
		switch {
		case err == nil:
			return fmt.Errorf("%s: a name was put again: %w", b, ErrUnfenced)
		case errors.Is(err, fs.ErrExist):
			return nil
		case !Transient(err) || n == 5:
			return tryingOut(err)
		}
	}
}

func tryingOut(err error) error { return fmt.Errorf("trying out create-if-absent: %w", err) }

// PutOnce reports whether only one client ever puts that name, once, having drawn
// it at random: those of packs and segments. Nobody races for it.
func PutOnce(name string) bool {
	return strings.HasPrefix(name, "packs/") || strings.HasPrefix(name, "index/")
}

// Careless is a Backend that looks first by itself, where it has nothing better.
type Careless interface {
	// Careless returns it so: what LookFirst says of its result is true of it.
	Careless() Backend
}

// LookFirst returns b with Puts that look whether the name is there, for places
// that are not Fenced. It keeps no promise: two that put a name at the same time
// both succeed, the later one replaces what the other put, and so does a Put that
// is late (see Late). What is PutOnce is put as it is.
func LookFirst(b Backend) Backend {
	if c, ok := b.(Careless); ok {
		return c.Careless()
	}
	return &looking{b}
}

type looking struct{ Backend }

func (l *looking) Put(ctx context.Context, name string, p []byte) error {
	if !PutOnce(name) {
		switch _, err := l.Get(ctx, name, 0, 0); {
		case err == nil:
			return &fs.PathError{Op: "put", Path: name, Err: fs.ErrExist}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return l.Backend.Put(ctx, name, p)
}

// Late implements Tardy.
func (l *looking) Late() time.Duration { return Late(l.Backend) }

// Transfers implements Parallel.
func (l *looking) Transfers() int { return Transfers(l.Backend) }
