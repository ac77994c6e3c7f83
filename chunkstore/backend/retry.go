package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"syscall"
	"time"
)

// Retry returns b with calls repeated that fail for a reason that may pass.
//
// After the n-th failure of a call (n from 1), which was why, backoff says how long
// to wait and whether to try again; where the place has asked for more (After) it is
// waited for that. It is called by many at once. A List that has yielded something goes on behind it where b is
// a Resumer and names came in order, or with the same page where b is a Pager, and
// is not repeated otherwise.
//
// A Put whose answer was lost may have been done, and what it stored may since
// have been removed on purpose: repeating it would bring that back. So a Put is
// repeated only after ErrNotDone, or where again says that its name may be put
// twice; nil stands for never. If a Put finds the name taken, and its own bytes
// under it, it has succeeded: it was repeated here, or by something on its way. One that gives up after an answer was
// unclear is ErrUnclear, and not ErrNotDone, whatever the last answer was.
//
// A call that has succeeded may have left an earlier one of itself under way: see
// Late. A Vault stays one.
func Retry(b Backend, backoff func(n int, why error) (wait time.Duration, again bool), again func(name string) bool) Backend {
	r := &retry{b, backoff, again}
	if v, ok := b.(Vault); ok {
		return &retryVault{r, v}
	}
	return r
}

type retry struct {
	Backend
	backoff func(n int, why error) (time.Duration, bool)
	again   func(name string) bool
}

// Transient reports whether an error of a Backend may pass by itself. All may,
// but those that tell a fact: about the name, the object, the permission, the
// space left, or the caller's context.
func Transient(err error) bool {
	for _, fact := range []error{
		fs.ErrExist, fs.ErrNotExist, fs.ErrPermission, fs.ErrInvalid, io.ErrUnexpectedEOF, errors.ErrUnsupported,
		context.Canceled, context.DeadlineExceeded, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, ErrLocked, ErrOldest,
	} {
		if errors.Is(err, fact) {
			return false
		}
	}
	return err != nil
}

// do calls f until it succeeds or is not to be called again.
func (r *retry) do(ctx context.Context, f func(n int) error) error {
	for n := 1; ; n++ {
		err := f(n)
		if err == nil || !Transient(err) {
			return err
		}
		wait, again := r.backoff(n, err)
		if !again {
			return err
		}
		if err := pause(ctx, max(wait, asked(err)), err); err != nil {
			return err
		}
	}
}

func (r *retry) Put(ctx context.Context, name string, p []byte) error {
	return r.put(ctx, name, p, r.Backend.Put)
}

func (r *retry) put(ctx context.Context, name string, p []byte, put func(context.Context, string, []byte) error) error {
	again := r.again != nil && r.again(name)
	doubt := false // an earlier one may have been done
	var last error // ends it, though it may pass
	err := r.do(ctx, func(int) error {
		err := put(ctx, name, p)
		unclear := Transient(err) && !errors.Is(err, ErrNotDone)
		if unclear && !again {
			last = err
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			doubt = doubt || unclear
			return err
		}
		have, read := r.Get(ctx, name, 0, -1)
		switch {
		case read == nil && bytes.Equal(have, p):
			return nil
		case Transient(read):
			last, doubt = read, true // nobody knows whose it is
			return nil
		}
		return err
	})
	if err = errors.Join(last, err); err != nil && doubt {
		return &unclearError{err}
	}
	return err
}

// unclearError is the last answer to a call of which an earlier one is unclear.
type unclearError struct{ last error }

func (e *unclearError) Error() string { return fmt.Sprintf("%v; %v", e.last, ErrUnclear) }

// Is keeps what the last answer says of itself from being taken for what is known
// of all.
func (e *unclearError) Is(target error) bool {
	return target == ErrUnclear || target != ErrNotDone && errors.Is(e.last, target)
}

func (e *unclearError) As(target any) bool { return errors.As(e.last, target) }

func (r *retry) Get(ctx context.Context, name string, off, n int64) (p []byte, err error) {
	err = r.do(ctx, func(int) error {
		p, err = r.Backend.Get(ctx, name, off, n)
		return err
	})
	return p, err
}

func (r *retry) Remove(ctx context.Context, name string) error {
	return r.do(ctx, func(int) error { return r.Backend.Remove(ctx, name) })
}

func (r *retry) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	if p, ok := r.Backend.(Pager); ok {
		return r.pages(ctx, p, prefix)
	}
	return func(yield func(Info, error) bool) {
		from, resumes := r.Backend.(Resumer)
		after := "" // the last that was yielded
		for n, err := 1, error(nil); ; n++ {
			list := r.Backend.List(ctx, prefix)
			if after != "" {
				list = from.ListAfter(ctx, prefix, after)
			}
			for info, e := range list {
				if err = e; e != nil {
					break
				}
				if !yield(info, nil) {
					return
				}
				resumes = resumes && info.Name >= after // else names would be passed over
				after, n = info.Name, 1
			}
			if err == nil {
				return
			}
			wait, again := r.backoff(n, err)
			if !again || !Transient(err) || after != "" && !resumes {
				yield(Info{}, err)
				return
			}
			if err = pause(ctx, max(wait, asked(err)), err); err != nil {
				yield(Info{}, err)
				return
			}
		}
	}
}

// Late implements Tardy: also a place that does what it is asked at once is asked
// more than once here.
func (r *retry) Late() time.Duration { return max(longestUnderWay, Late(r.Backend)) }

// Round finds out that a server lists the same again and again: of all that it lists,
// the n-th is remembered, for n a power of two, and one of these comes again then. The
// zero value has seen nothing.
type Round struct {
	seen    string
	n, mark int
}

// Again reports whether what is listed now was listed before; a round is found out in
// the second or third turn.
func (r *Round) Again(what string) bool {
	if r.n > 0 && what == r.seen {
		return true
	}
	if r.n++; r.n > r.mark {
		r.seen, r.mark = what, 2*r.n-1
	}
	return false
}

// pages lists page by page.
func (r *retry) pages(ctx context.Context, p Pager, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		var round Round
		for from := ""; ; {
			var page []Info
			var next string
			err := r.do(ctx, func(int) (err error) {
				page, next, err = p.ListPage(ctx, prefix, from)
				return err
			})
			if err != nil {
				yield(Info{}, err)
				return
			}
			for _, info := range page {
				if !yield(info, nil) {
					return
				}
			}
			if from = next; from == "" {
				return
			}
			if round.Again(from) {
				yield(Info{}, fmt.Errorf("list %s of %s: a page is to come again: the server may never come to an end: %w", prefix, r.Backend, errors.ErrUnsupported))
				return
			}
		}
	}
}

// Transfers implements Parallel.
func (r *retry) Transfers() int { return Transfers(r.Backend) }

// pause waits; if ctx ends before, its error and why there was to wait.
func pause(ctx context.Context, wait time.Duration, why error) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return errors.Join(ctx.Err(), why)
	case <-timer.C:
		return nil
	}
}
