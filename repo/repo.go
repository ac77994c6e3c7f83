package repo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/index"
)

// Options say how to use a repository. Random and Now are required.
type Options struct {
	Password   func() (string, error) // asked once, if a key needs it
	Credential []byte                 // the contents of a credential's file, to open with instead of the keys in the repository
	NoOpenKeys bool                   // do not open with a key that needs no password
	Host       string                 // for people who look at intents, like Program
	Program    string
	CacheDir   string        // for local state; empty: none is kept
	CacheLimit int64         // bytes of local state; 0: no limit
	FrameCache int64         // bytes of decoded frames; 0: 64 MiB
	DiskCache  int64         // bytes of stored frames below CacheDir, if the backend is across a network; 0: none are kept
	DiskPages  bool          // keep only those of trees there
	Level      seal.Level    // compression of new frames
	Heartbeat  time.Duration // of a session; 0: five minutes
	Random     io.Reader
	Now        func() time.Time
	Logf       func(format string, args ...any) // may be nil
}

// Repo is an open repository. It is safe for concurrent use.
type Repo struct {
	b     backend.Backend
	opt   Options
	k     *seal.Keys
	key   ID // that it was opened with
	cfg   Config
	ix    *index.DB
	store *chunkstore.Store

	vault    backend.Vault // nil: nothing is locked
	readOnly error         // not nil: why nothing is written here

	mu      sync.Mutex
	records map[ID]*Snapshot // immutable, so decoded once
	dirs    map[ID]string    // Dir of each snapshot
	marks   map[string]Mark

	keysMu  sync.Mutex
	me      *unlocked       // what key grants are opened with; nil: none are
	grants  map[string]bool // those that were read
	asked   time.Time       // when an unknown epoch was last looked for
	configN int             // number of the newest config that was read

	writersMu     sync.RWMutex
	writers       map[string]registered // by seal.WriterID
	writerObjects map[string]Writer     // by object name; immutable, so decoded once
}

// Open opens the repository in b. No repository is ErrNoRepo, a wrong password
// or another repository's credential ErrKey, a newer format ErrFormat, damage
// chunk.ErrCorrupt.
func Open(ctx context.Context, b backend.Backend, opt Options) (*Repo, error) {
	ctx, e := withEarly(ctx, b)
	src := b
	if e != nil {
		e.opening()
		src = e
	}
	if opt.Credential != nil {
		return openWith(ctx, b, opt)
	}
	keys, err := newUnlocker(ctx, src, opt.Password, opt.NoOpenKeys)
	if err != nil {
		return nil, err
	}
	// A key may be of another repository: of an Init that was given up, and whose
	// Put of it was late.
	var first error
	for {
		u, err := keys.next()
		if err != nil {
			return nil, cmp.Or(first, err)
		}
		k, err := u.ring.Open()
		if err != nil {
			return nil, err
		}
		r, err := open(ctx, b, k, u.id, opt)
		switch {
		case err == nil:
			r.tryOthers(ctx, u, keys)
			return r, nil
		case !unproven(err):
			return nil, err
		}
		first = cmp.Or(first, err)
	}
}

func open(ctx context.Context, b backend.Backend, k *seal.Keys, key ID, opt Options) (*Repo, error) {
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	r := &Repo{b: b, opt: opt, k: k, key: key, records: map[ID]*Snapshot{}, marks: map[string]Mark{}, writerObjects: map[string]Writer{}}
	if old, ok := b.(*backend.OldestOf); ok {
		old.Prove(r.proves)
	}
	if err := r.readConfig(ctx); err != nil {
		return nil, err
	}
	if r.cfg.NoFencing {
		r.b = backend.LookFirst(b)
	}
	r.useLocks()
	b = r.b
	if err := r.readWriters(ctx); err != nil {
		return nil, err
	}
	dir := ""
	if opt.CacheDir != "" {
		dir = index.RepoDir(opt.CacheDir, r.cfg.Repo.String())
	}
	ix, err := index.Open(ctx, b, k, index.Options{Dir: dir, Logf: opt.Logf, Random: opt.Random, MaxBytes: opt.CacheLimit, Lag: r.lag(), Locked: r.segmentLocked()})
	if err != nil {
		return nil, err
	}
	r.ix = ix
	r.store = chunkstore.New(b, k, ix, chunkstore.Options{FrameSize: r.cfg.FrameSize, PackSize: r.cfg.PackSize, Level: opt.Level, CacheBytes: opt.FrameCache,
		Parity: r.cfg.ParityPercent(), Random: opt.Random, Lag: r.lag(), Disk: r.diskCache(), DiskPages: opt.DiskPages})
	return r, nil
}

// Close gives local state free. The repository itself needs no closing.
func (r *Repo) Close() error {
	r.store.Close()
	return r.ix.Close()
}

// Config returns what all writers agree on.
func (r *Repo) Config() Config { return r.cfg }

// Store returns the chunks.
func (r *Repo) Store() *chunkstore.Store { return r.store }

// Index returns where the chunks are.
func (r *Repo) Index() *index.DB { return r.ix }

// Backend returns where the objects are.
func (r *Repo) Backend() backend.Backend { return r.b }

// SecretKeys returns the keys in use.
func (r *Repo) SecretKeys() *seal.Keys { return r.k }

// object gets, proves and opens an object.
func (r *Repo) object(ctx context.Context, name string, kind seal.Kind) (*seal.Object, error) {
	p, err := r.b.Get(ctx, name, 0, -1)
	if err != nil {
		return nil, err
	}
	o, err := r.k.OpenAs(name, kind, p)
	return o, formatError(err)
}

// putJSON seals v and puts it; ForList unless it names files.
func (r *Repo) putJSON(ctx context.Context, name string, kind seal.Kind, s seal.Sealing, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	p, err := r.k.Seal(name, kind, s, body, r.opt.Random)
	if err != nil {
		return err
	}
	return r.b.Put(ctx, name, p)
}

// putNew puts what nobody else puts, under a name that is new. That it is there
// is success, whatever the answer was.
func (r *Repo) putNew(ctx context.Context, name string, p []byte) error {
	err := r.b.Put(ctx, name, p)
	if err == nil {
		return nil
	}
	if got, gerr := r.b.Get(context.WithoutCancel(ctx), name, 0, -1); gerr == nil && bytes.Equal(got, p) {
		return nil
	}
	return err
}

// after returns a number behind n for the next word about something. Where two
// that put one name at once both succeed, they are kept apart by chance.
func (r *Repo) after(n int) (int, error) {
	if !r.cfg.NoFencing {
		return n + 1, nil
	}
	var jump [2]byte
	if _, err := io.ReadFull(r.opt.Random, jump[:]); err != nil {
		return 0, fmt.Errorf("random number: %w", err)
	}
	return n + 1 + int(binary.LittleEndian.Uint16(jump[:])), nil
}

func newID(random io.Reader) (ID, error) {
	var id ID
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return id, fmt.Errorf("random ID: %w", err)
	}
	return id, nil
}

func (r *Repo) newID() (ID, error) { return newID(r.opt.Random) }

// names lists the last parts of the objects below prefix.
func (r *Repo) names(ctx context.Context, prefix string) (map[string]backend.Info, error) {
	m := map[string]backend.Info{}
	for info, err := range r.from(ctx).List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		m[strings.TrimPrefix(info.Name, prefix)] = info
	}
	return m, nil
}

// Snapshots returns all live snapshots, oldest first, with the marks applied.
// Records that are damaged or signed by a stranger are left out and named in
// the error, which comes beside the others. Those that the owner does not allow
// (ErrRefused) are left out. Write-only keys open no record: they get none.
func (r *Repo) Snapshots(ctx context.Context) ([]*Snapshot, error) {
	if r.WriteOnly() {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, _ = withEarly(ctx, r.b)
	snaps, damage, err := r.liveRecords(ctx)
	if err != nil {
		return nil, err
	}
	damage = errors.Join(damage, r.applyMarks(ctx, snaps))
	r.nameDirs(snaps)
	return snaps, damage
}

// liveRecords returns the live snapshots, without marks and in no order. Records
// that cannot be read are left out and named in damage. The caller holds r.mu.
func (r *Repo) liveRecords(ctx context.Context) (snaps []*Snapshot, damage, err error) {
	infos, err := r.names(ctx, "snapshots/")
	if err != nil {
		return nil, nil, err
	}
	if e := earlyIn(ctx); e != nil {
		r.listing(e, infos)
	}
	if err := r.readWriters(ctx); err != nil {
		return nil, nil, err
	}
	forgotten, err := r.forgotten(ctx)
	if err != nil {
		return nil, nil, err
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(infos)) {
		id, ok := ParseID(name)
		_, gone := forgotten[name]
		if !ok || gone {
			continue
		}
		rec, err := r.record(ctx, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // forgotten meanwhile
		}
		if errors.Is(err, ErrRefused) {
			r.opt.Logf("%v", err)
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		state := aRecord
		if rec == nil {
			state = aTombstone
		}
		if !isLive(state, gone) {
			continue
		}
		s := *rec
		s.Tags = slices.Clone(rec.Tags)
		s.ModTime = infos[name].ModTime
		snaps = append(snaps, &s)
	}
	for id := range r.records {
		if _, ok := infos[id.String()]; !ok {
			delete(r.records, id)
		}
	}
	return snaps, errors.Join(errs...), nil
}

// forgotten returns which snapshots the owner has forgotten, although their
// records are still there. What does not prove itself hides nothing. The caller
// holds r.mu.
func (r *Repo) forgotten(ctx context.Context) (map[string]struct{}, error) {
	infos, err := r.names(ctx, "forgotten/")
	if err != nil {
		return nil, err
	}
	gone := map[string]struct{}{}
	for name := range infos {
		o, err := r.ownersObject(ctx, "forgotten/"+name, seal.KindForgotten)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var f Forgotten
		if err == nil {
			err = decode("forgotten/"+name, o.Body, &f)
		}
		if err == nil && f.ID.String() != name {
			err = fmt.Errorf("forgotten/%s: not the owner's word about that snapshot: %w", name, chunk.ErrCorrupt)
		}
		if err != nil {
			r.opt.Logf("%v", err)
			continue
		}
		gone[name] = struct{}{}
	}
	return gone, nil
}

// record returns a decoded record; nil for a tombstone. The caller holds r.mu.
func (r *Repo) record(ctx context.Context, id ID) (*Snapshot, error) {
	name := "snapshots/" + id.String()
	if s, ok := r.records[id]; ok {
		if s == nil {
			return nil, nil
		}
		if err := r.allowed(s); err != nil { // its writer may have been revoked since
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return s, nil
	}
	p, err := r.from(ctx).Get(ctx, name, 0, -1)
	if err != nil {
		return nil, err
	}
	s, err := r.parseRecord(name, id, p)
	if err == nil {
		r.records[id] = s
	}
	return s, err
}

func (r *Repo) parseRecord(name string, id ID, p []byte) (*Snapshot, error) {
	o, err := seal.Parse(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, formatError(err))
	}
	if o.Kind != seal.KindSnapshot && o.Kind != seal.KindTombstone {
		return nil, fmt.Errorf("%s: is an object of kind %q: %w", name, o.Kind, chunk.ErrCorrupt)
	}
	if err := r.k.Open(name, o); err != nil {
		return nil, formatError(err)
	}
	if o.Kind == seal.KindTombstone {
		var t Tombstone
		if err := decode(name, o.Body, &t); err != nil {
			return nil, err
		}
		if t.ID != id {
			return nil, fmt.Errorf("%s: tombstone of %s: %w", name, t.ID, chunk.ErrCorrupt)
		}
		if o.Writer != r.k.Owner() {
			return nil, fmt.Errorf("%s: a tombstone that writer %s put: %w", name, o.Writer, ErrRefused)
		}
		return nil, nil
	}
	s := &Snapshot{}
	if err := decode(name, o.Body, s); err != nil {
		return nil, err
	}
	if s.ID != id {
		return nil, fmt.Errorf("%s: record of snapshot %s: %w", name, s.ID, chunk.ErrCorrupt)
	}
	if err := s.checkNames(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, err, chunk.ErrCorrupt)
	}
	s.Writer, s.sum = o.Writer.String(), chunk.Digest(p)
	if s.Origin != nil {
		if was, err := seal.Parse(s.Copied); err == nil {
			s.author = was.Writer.String()
		}
	}
	if err := r.allowed(s); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// standIn is 1 for a snapshot that stands in for a damaged one of the same time,
// and comes behind it.
func (s *Snapshot) standIn() int {
	if s.Repairs != nil {
		return 1
	}
	return 0
}

// nameDirs sorts snapshots by time and gives each its TIME, unique for the
// name. A process that has named a snapshot once stays with that, whatever is
// forgotten beside it: a mount's files must not move. The caller holds r.mu.
func (r *Repo) nameDirs(snaps []*Snapshot) {
	sortSnapshots(snaps)
	taken, dirs := map[string]bool{}, make(map[ID]string, len(snaps))
	for _, s := range snaps {
		if s.Dir = r.dirs[s.ID]; s.Dir != "" {
			taken[s.Name+"/"+s.Dir] = true
		}
	}
	for _, s := range snaps {
		t := s.Time.UTC().Format(TimeLayout)
		for n := 1; s.Dir == ""; n++ {
			if dir := t + suffix(n); !taken[s.Name+"/"+dir] {
				s.Dir = dir
			}
		}
		taken[s.Name+"/"+s.Dir] = true
		dirs[s.ID] = s.Dir
	}
	r.dirs = dirs
}

// sortSnapshots puts the oldest first.
func sortSnapshots(snaps []*Snapshot) {
	slices.SortFunc(snaps, func(a, b *Snapshot) int {
		if c := cmp.Or(a.When().Compare(b.When()), a.Time.Compare(b.Time), a.standIn()-b.standIn()); c != 0 {
			return c
		}
		return strings.Compare(a.ID.String(), b.ID.String())
	})
}

func suffix(n int) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf("-%d", n)
}

// TimeLayout is how TIME is written: UTC, without colons.
const TimeLayout = "2006-01-02T15.04.05Z"
