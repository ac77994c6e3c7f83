package backend

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"time"
)

// ErrOldest says that a place is read as it was first written, and not changed.
var ErrOldest = errors.New("the oldest versions are only read")

// OldestOf is a Backend that Oldest has made.
type OldestOf struct {
	v    Place
	fits func(name string, p []byte) bool

	mu    sync.Mutex
	proof func(name string, p []byte) bool // nil: none
	known map[string]*list.Element
	lru   list.List // of *choice, the newest use first
}

// Place is a Backend that keeps versions.
type Place interface {
	Backend
	Versions
}

// choice is which version of a name is read.
type choice struct {
	name string
	v    Version
}

// choices bounds for how many names it is remembered.
const choices = 1 << 16

// largest is how many bytes a version has at most that is looked at: no object has
// more, and who stores junk decides how long it is.
const largest = 1 << 29

// Oldest returns v as it was first written, whatever was stored over it or removed
// since: for names that are put once, by create-if-absent. List yields every name
// of which there is a version, and Get reads the oldest version that fits. It is
// asked only where there are several; if none fits it is the oldest. Put and Remove
// are ErrOldest.
//
// Which version of a name is read is remembered for many names, and otherwise
// looked up.
func Oldest(v Place, fits func(name string, p []byte) bool) *OldestOf {
	return &OldestOf{v: v, fits: fits, known: map[string]*list.Element{}}
}

// Prove says by what to know what fits for certain, now that somebody has keys:
// the oldest version that is so is read, and only where there is none the oldest
// that fits. Whoever knows which name will be taken next can be there first, with
// something that fits. It is asked while names are read, and may be asked for
// several at once.
func (o *OldestOf) Prove(proof func(name string, p []byte) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.proof, o.known = proof, map[string]*list.Element{}
	o.lru.Init()
}

// Place returns what it was made of.
func (o *OldestOf) Place() Place { return o.v }

// Put implements Backend: ErrOldest.
func (o *OldestOf) Put(_ context.Context, name string, _ []byte) error {
	return &fs.PathError{Op: "put", Path: name, Err: ErrOldest}
}

// Remove implements Backend: ErrOldest.
func (o *OldestOf) Remove(_ context.Context, name string) error {
	return &fs.PathError{Op: "remove", Path: name, Err: ErrOldest}
}

// Lag implements Backend.
func (o *OldestOf) Lag() time.Duration { return o.v.Lag() }

// String implements Backend.
func (o *OldestOf) String() string { return o.v.String() }

// Transfers implements Parallel.
func (o *OldestOf) Transfers() int { return Transfers(o.v) }

// Get implements Backend.
func (o *OldestOf) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	v, err := o.Choose(ctx, name)
	if err != nil {
		return nil, err
	}
	return o.v.GetVersion(ctx, name, v.ID, off, n)
}

// Choose returns which version of a name is read. None is an error that wraps
// fs.ErrNotExist.
func (o *OldestOf) Choose(ctx context.Context, name string) (Version, error) {
	if !ValidName(name) {
		return Version{}, InvalidName("get", name)
	}
	o.mu.Lock()
	if e, ok := o.known[name]; ok {
		o.lru.MoveToFront(e)
		v := e.Value.(*choice).v
		o.mu.Unlock()
		return v, nil
	}
	o.mu.Unlock()
	vs, _, err := versionsOf(ctx, o.v, name)
	if err != nil {
		return Version{}, err
	}
	for len(vs) > 0 && vs[len(vs)-1].Deleted {
		vs = vs[:len(vs)-1]
	}
	if len(vs) == 0 {
		return Version{}, &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist}
	}
	v, sure := vs[0], true
	if len(vs) > 1 {
		if v, sure, err = o.fitting(ctx, vs); err != nil {
			return Version{}, err
		}
	}
	if sure { // else more may be known later of who signs
		o.remember(v)
	}
	return v, nil
}

// fitting returns the oldest version that is proven; sure false: none is.
func (o *OldestOf) fitting(ctx context.Context, vs []Version) (v Version, sure bool, err error) {
	o.mu.Lock()
	proof := o.proof
	o.mu.Unlock()
	best, found := vs[0], false
	for _, v := range vs {
		if v.Size > largest {
			continue
		}
		p, err := o.v.GetVersion(ctx, v.Name, v.ID, 0, -1)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil && (ctx.Err() != nil || Transient(err)) {
			return Version{}, false, fmt.Errorf("version %s: %w", v.ID, err)
		}
		if err != nil || !o.fits(v.Name, p) {
			continue
		}
		if proof == nil || proof(v.Name, p) {
			return v, true, nil
		}
		if !found {
			best, found = v, true
		}
	}
	return best, false, nil
}

func (o *OldestOf) remember(v Version) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.known[v.Name]; ok {
		o.lru.MoveToFront(e)
		return
	}
	o.known[v.Name] = o.lru.PushFront(&choice{v.Name, v})
	if o.lru.Len() > choices {
		delete(o.known, o.lru.Remove(o.lru.Back()).(*choice).name)
	}
}

// List implements Backend. What it tells of a name is of the version that Get
// reads.
func (o *OldestOf) List(ctx context.Context, prefix string) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for s, err := range Stacks(ctx, o.v, prefix) {
			if err != nil {
				yield(Info{}, err)
				return
			}
			v := s.Oldest
			switch {
			case s.Versions == 0:
				continue
			case s.Versions == 1:
				o.remember(v)
			default:
				if v, err = o.Choose(ctx, v.Name); errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					yield(Info{}, err)
					return
				}
			}
			if !yield(v.Info, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Info{}, err)
		}
	}
}

// Stack is what is kept under one name.
type Stack struct {
	Name     string
	Versions int     // without marks of removal
	Oldest   Version // if there is a version
	Shown    bool    // the oldest is what Get and List see
}

// Stacks yields what is kept under the names that start with prefix: each name of
// which there is a version once, unless the place lists its versions apart.
func Stacks(ctx context.Context, v Versions, prefix string) iter.Seq2[Stack, error] {
	return func(yield func(Stack, error) bool) {
		var s Stack
		for x, err := range v.ListVersions(ctx, prefix, "") {
			if err != nil {
				yield(Stack{}, err)
				return
			}
			if x.Deleted {
				continue
			}
			if x.Name != s.Name {
				if s.Versions > 0 && !yield(s, nil) {
					return
				}
				s = Stack{Name: x.Name}
			}
			s.Versions++
			s.Oldest, s.Shown = x, x.Latest
		}
		if s.Versions > 0 {
			yield(s, nil)
		}
	}
}
