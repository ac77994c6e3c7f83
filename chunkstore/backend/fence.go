package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
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
	winner, winners := 0, 0
	for i, err := range errs {
		switch {
		case err == nil:
			winner, winners = i, winners+1
		case !errors.Is(err, fs.ErrExist):
			return fmt.Errorf("trying out create-if-absent: %w", err)
		}
	}
	if winners > 1 {
		return fmt.Errorf("%s: %d of %d clients that put one name were each told that it was theirs: %w", b, winners, racers, ErrUnfenced)
	}
	got, err := b.Get(ctx, name, 0, -1)
	if err != nil {
		return fmt.Errorf("trying out create-if-absent: %w", err)
	}
	if winners == 0 || !bytes.Equal(got, bytesOf(winner)) {
		return fmt.Errorf("%s: of %d clients that put one name %d were told that it was theirs, and the bytes of another are there: %w", b, racers, winners, ErrUnfenced)
	}
	// Long after it, too.
	switch err := b.Put(ctx, name, bytesOf(racers)); {
	case err == nil:
		return fmt.Errorf("%s: a name was put again: %w", b, ErrUnfenced)
	case !errors.Is(err, fs.ErrExist):
		return fmt.Errorf("trying out create-if-absent: %w", err)
	}
	return nil
}

// LookFirst returns b with Puts that look whether the name is there, for places
// that are not Fenced. It keeps no promise: two that put a name at the same time
// both succeed. Packs and segments, whose names are random, are put as they are.
func LookFirst(b Backend) Backend { return &looking{b} }

type looking struct{ Backend }

func (l *looking) Put(ctx context.Context, name string, p []byte) error {
	if !strings.HasPrefix(name, "packs/") && !strings.HasPrefix(name, "index/") {
		switch _, err := l.Get(ctx, name, 0, 0); {
		case err == nil:
			return &fs.PathError{Op: "put", Path: name, Err: fs.ErrExist}
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return l.Backend.Put(ctx, name, p)
}

// Transfers implements Parallel.
func (l *looking) Transfers() int { return Transfers(l.Backend) }
