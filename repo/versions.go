package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// Fits reports whether p can be the object of that name: whether it ends with the
// hash of all before it, as all objects do. Who has no key could make such a
// thing, but not one that is older than what was put when the name was taken.
func Fits(name string, p []byte) bool {
	if _, ok := pack.ParseObject(name); ok {
		return pack.Check(p) == nil
	}
	if of, ok := parity.ParseObject(name); ok {
		x, err := parity.Open(of, p)
		return errors.Is(err, seal.ErrVersion) || err == nil && x.Whole()
	}
	o, err := seal.Parse(p)
	if errors.Is(err, seal.ErrVersion) {
		return true
	}
	dir, _, _ := strings.Cut(name, "/")
	return err == nil && (o.Kind == kinds[dir] || dir == "snapshots" && o.Kind == seal.KindTombstone)
}

// ofWriters are the kinds of objects that others than the owner sign.
var ofWriters = map[seal.Kind]bool{seal.KindSnapshot: true, seal.KindSegment: true, seal.KindIntent: true, seal.KindParity: true}

// proves reports whether what Fits was signed by who may sign it. Names of packs are
// drawn at random and not known before they are taken, so nobody is there first.
func (r *Repo) proves(name string, p []byte) bool {
	if _, ok := pack.ParseObject(name); ok {
		return true
	}
	o, err := seal.Parse(p)
	if err != nil || r.k.Signed(name, o) != nil || !ofWriters[o.Kind] && o.Writer != r.k.Owner() {
		return false
	}
	if last, ok := strings.CutPrefix(name, "snapshots/"); ok {
		id, ok := ParseID(last)
		_, err := r.parseRecord(name, id, p)
		return ok && (err == nil || errors.Is(err, seal.ErrNoKey) || errors.Is(err, ErrFormat))
	}
	return true
}

// genuine chooses the version of each name that r has proven.
func (r *Repo) genuine() *backend.OldestOf {
	old := backend.Oldest(r.vault, Fits)
	old.Prove(r.proves)
	return old
}

// covered returns which objects below a prefix somebody has hidden or stored something
// over: our own programs leave nothing behind of what they remove. What goes while it
// is looked at is none of them.
func (r *Repo) covered(ctx context.Context, prefix string) (names []string, err error) {
	var all []string
	for s, err := range backend.Stacks(ctx, r.vault, prefix) {
		if err != nil {
			return nil, err
		}
		if !s.Shown {
			all = append(all, s.Name)
		}
	}
	old := r.genuine()
	for _, name := range all {
		v, err := old.Choose(ctx, name)
		if err == nil && v.Latest {
			continue // junk was there before it
		}
		var p []byte
		if err == nil {
			p, err = r.vault.GetVersion(ctx, name, v.ID, 0, -1)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !Fits(name, p) || !r.proves(name, p) {
			continue // nothing but junk was ever there
		}
		same, err := sameAsShown(ctx, r.vault, v)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil && !same {
			names = append(names, name)
		}
	}
	return names, nil
}

func errCovered(name string) error {
	return fmt.Errorf("%s: somebody has hidden it, or stored something over it; `cutbank repair versions` puts it back: %w", name, chunk.ErrCorrupt)
}

// hiddenRecord is an error where somebody has hidden a record that the owner has not
// forgotten: what it needs would seem to be needed by nobody.
func (r *Repo) hiddenRecord(ctx context.Context) error {
	if r.vault == nil {
		return nil
	}
	names, err := r.covered(ctx, "snapshots/")
	if err != nil || len(names) == 0 {
		return err
	}
	r.mu.Lock()
	forgotten, err := r.forgotten(ctx)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := forgotten[strings.TrimPrefix(name, "snapshots/")]; !ok {
			return errCovered(name)
		}
	}
	return nil
}

// DoubtMarks sets MarkErr of snapshots of which somebody has hidden a mark: it may
// have pinned them. It is for who decides what to forget, and asks only where
// objects are locked.
func (r *Repo) DoubtMarks(ctx context.Context, snaps []*Snapshot) error {
	if r.vault == nil {
		return nil
	}
	names, err := r.covered(ctx, "marks/")
	for _, name := range names {
		id, _, ok := parseMark(strings.TrimPrefix(name, "marks/"))
		for _, s := range snaps {
			if ok && s.ID == id {
				s.MarkErr = errors.Join(s.MarkErr, errCovered(name))
			}
		}
	}
	return err
}

// Oldest returns a place as a repository was first written there: whatever was
// overwritten or removed since is read as it was. A place that keeps no versions
// is an error that wraps errors.ErrUnsupported.
func Oldest(b backend.Backend) (backend.Backend, error) {
	v, ok := b.(backend.Place)
	if !ok {
		return nil, fmt.Errorf("%s keeps no older versions of anything: %w", b, errors.ErrUnsupported)
	}
	return backend.Oldest(v, Fits), nil
}

// Covered reports whether what a repository begins with, its config and keys, has
// older versions at a place than those that are seen: somebody has overwritten or
// removed it, or it was removed as it should be.
func Covered(ctx context.Context, b backend.Backend) bool {
	return covered(ctx, b, "config/", "keys/")
}

func covered(ctx context.Context, b backend.Backend, prefixes ...string) bool {
	v, ok := b.(backend.Versions)
	if !ok {
		return false
	}
	for _, prefix := range prefixes {
		for s, err := range backend.Stacks(ctx, v, prefix) {
			if err != nil {
				break
			}
			if !s.Shown {
				return true
			}
		}
	}
	return false
}

// VersionsOptions say how to put versions back.
type VersionsOptions struct {
	DryRun bool // only tell

	// Report is called for each object that is put back, or cannot be; may be nil.
	Report func(VersionStep)
}

// VersionStep is one object of RepairVersions.
type VersionStep struct {
	Object string
	Size   int64
	Gone   bool  // it had been removed, and not overwritten
	Err    error // not nil: it stays as it is

	// Dropped: it is no object that is locked, and nothing but junk is left of it.
	Dropped bool
}

// VersionsResult tells what was put back; of a dry run, what would be.
type VersionsResult struct {
	Objects           uint64 // looked at
	Overwritten, Gone uint64 // of them those that were put back
	Bytes             uint64 // of those
	Stored            uint64 // of those had to be stored again, for what lies over them is locked
	Junk              uint64 // versions and marks of removal that were removed
	Dropped           uint64 // objects of which nothing but junk is left: they were not locked
	Failed            uint64 // of the objects those that stay as they are
}

// RepairVersions makes the oldest version that fits what is seen again, of every
// object that was overwritten or removed by somebody else than the repository's
// own programs: these remove all versions. What lies over it is removed; where
// that is locked, what is under it is stored once more. Of what is not locked nothing may
// be left but junk, which is removed: a snapshot that was only hidden may be back,
// and is forgotten again. It asks for a repository
// with locks, opened in its oldest versions (Oldest), in a Vault.
func (r *Repo) RepairVersions(ctx context.Context, opt VersionsOptions) (VersionsResult, error) {
	var res VersionsResult
	old, ok := r.b.(*backend.OldestOf)
	if !ok {
		return res, fmt.Errorf("%s is not opened in its oldest versions: %w", r.b, errors.ErrUnsupported)
	}
	v, ok := old.Place().(backend.Vault)
	if !ok || r.cfg.Lock == "" {
		return res, fmt.Errorf("what was removed on purpose is there as well, and nobody knows what was not: %w", ErrNoLock)
	}
	if opt.Report == nil {
		opt.Report = func(VersionStep) {}
	}
	p := &putter{r: r, v: v, old: old, opt: opt}
	for s, err := range backend.Stacks(ctx, v, "") {
		if err != nil {
			return p.res, err
		}
		if strings.HasPrefix(s.Name, probeDir) {
			continue
		}
		if err := p.object(ctx, s); err != nil {
			return p.res, err
		}
	}
	return p.res, ctx.Err()
}

type putter struct {
	r   *Repo
	v   backend.Vault
	old *backend.OldestOf
	opt VersionsOptions
	res VersionsResult
}

func (p *putter) object(ctx context.Context, s backend.Stack) error {
	p.res.Objects++
	dir, _, _ := strings.Cut(s.Name, "/")
	loose := !isLocked(s.Name) && kinds[dir] != 0
	if s.Versions == 1 && s.Shown && !loose {
		return nil
	}
	genuine, err := p.old.Choose(ctx, s.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if loose {
		if fits, err := p.drop(ctx, genuine); err != nil || !fits || s.Versions == 1 && s.Shown {
			return err
		}
	}
	if same, err := sameAsShown(ctx, p.v, genuine); same || err != nil {
		return err
	}
	if fits, err := p.better(ctx, s, genuine); err != nil || !fits {
		return err
	}
	step := VersionStep{Object: s.Name, Size: genuine.Size, Gone: s.Versions == 1}
	if !p.opt.DryRun {
		if err := p.putBack(ctx, genuine); err != nil {
			return err
		}
	}
	if step.Gone {
		p.res.Gone++
	} else {
		p.res.Overwritten++
	}
	p.res.Bytes += uint64(genuine.Size)
	p.opt.Report(step)
	return nil
}

// better reports whether a version is to be put back. Junk is not: where that is
// all there is, it is told if it can be seen.
func (p *putter) better(ctx context.Context, s backend.Stack, genuine backend.Version) (bool, error) {
	b, err := p.v.GetVersion(ctx, s.Name, genuine.ID, 0, -1)
	if err != nil {
		return false, err
	}
	if p.r.proves(s.Name, b) && Fits(s.Name, b) {
		return true, nil
	}
	shown, err := p.v.Get(ctx, s.Name, 0, -1)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Fits(s.Name, b), nil
	case err != nil:
		return false, err
	case Fits(s.Name, b):
		return !Fits(s.Name, shown) || !p.r.proves(s.Name, shown), nil
	}
	p.res.Failed++
	p.opt.Report(VersionStep{Object: s.Name, Size: genuine.Size, Err: fmt.Errorf("none of its %d versions proves itself: %w", s.Versions, chunk.ErrCorrupt)})
	return false, nil
}

// drop removes all that is under a name that is not locked, if nothing of it proves
// itself: the thief could remove what did, and has left only junk.
func (p *putter) drop(ctx context.Context, genuine backend.Version) (fits bool, err error) {
	b, err := p.v.GetVersion(ctx, genuine.Name, genuine.ID, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || Fits(genuine.Name, b) {
		return true, err
	}
	step := VersionStep{Object: genuine.Name, Size: genuine.Size, Dropped: true}
	if !p.opt.DryRun {
		err := backend.Locked(p.v, p.r.lockUntil).Remove(ctx, genuine.Name)
		if errors.Is(err, backend.ErrLocked) {
			step.Err = err
			p.res.Failed++
			p.res.Dropped--
		} else if err != nil {
			return false, err
		}
	}
	p.res.Dropped++
	p.opt.Report(step)
	return false, nil
}

// putBack removes what lies over a version. What is locked stays, and the version
// is stored over it.
func (p *putter) putBack(ctx context.Context, genuine backend.Version) error {
	over := false
	for {
		var above []backend.Version
		for x, err := range p.v.ListVersions(ctx, genuine.Name, "") {
			if err != nil {
				return err
			}
			if x.Name == genuine.Name && (x.Deleted || x.ID != genuine.ID) && (x.Latest || !x.ModTime.Before(genuine.ModTime)) {
				above = append(above, x)
			}
			if len(above) == manyAbove {
				break
			}
		}
		removed := 0
		for _, x := range above {
			err := p.v.RemoveVersion(ctx, x.Name, x.ID)
			if errors.Is(err, backend.ErrLocked) {
				over = true
				continue
			}
			if err != nil {
				return err
			}
			removed++
			p.res.Junk++
		}
		if len(above) < manyAbove || removed == 0 {
			break
		}
	}
	if !over {
		return nil
	}
	b, err := p.v.GetVersion(ctx, genuine.Name, genuine.ID, 0, -1)
	if err != nil {
		return err
	}
	p.res.Stored++
	return p.v.PutOver(ctx, genuine.Name, b, p.r.lockUntil(genuine.Name))
}

// manyAbove is how many versions of an object are removed between two looks.
const manyAbove = 1000
