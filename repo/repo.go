package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
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
	NoOpenKeys bool                   // do not open with a key that needs no password
	Host       string                 // for people who look at intents, like Program
	Program    string
	CacheDir   string        // for local state; empty: none is kept
	CacheLimit int64         // bytes of local state; 0: no limit
	FrameCache int64         // bytes of decoded frames; 0: 64 MiB
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

	mu      sync.Mutex
	records map[ID]*Snapshot // immutable, so decoded once
	marks   map[string]Mark
	writers map[string]Writer // by seal.WriterID

	writerFiles int // how many objects were there when they were read
}

// Open opens the repository in b. No repository is ErrNoRepo, a wrong password
// ErrKey, a newer format ErrFormat, damage chunk.ErrCorrupt.
func Open(ctx context.Context, b backend.Backend, opt Options) (*Repo, error) {
	ring, key, err := openRing(ctx, b, opt.Password, opt.NoOpenKeys)
	if err != nil {
		return nil, err
	}
	k, err := ring.Open()
	if err != nil {
		return nil, err
	}
	return open(ctx, b, k, key, opt)
}

func open(ctx context.Context, b backend.Backend, k *seal.Keys, key ID, opt Options) (*Repo, error) {
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	r := &Repo{b: b, opt: opt, k: k, key: key, records: map[ID]*Snapshot{}, marks: map[string]Mark{}, writers: map[string]Writer{}}
	if err := r.readConfig(ctx); err != nil {
		return nil, err
	}
	if err := r.readWriters(ctx); err != nil {
		return nil, err
	}
	dir := ""
	if opt.CacheDir != "" {
		dir = index.RepoDir(opt.CacheDir, r.cfg.Repo.String())
	}
	ix, err := index.Open(ctx, b, k, index.Options{Dir: dir, Logf: opt.Logf, Random: opt.Random, MaxBytes: opt.CacheLimit})
	if err != nil {
		return nil, err
	}
	r.ix = ix
	r.store = chunkstore.New(b, k, ix, chunkstore.Options{FrameSize: r.cfg.FrameSize, PackSize: r.cfg.PackSize, Level: opt.Level, CacheBytes: opt.FrameCache, Random: opt.Random})
	return r, nil
}

// Close gives local state free. The repository itself needs no closing.
func (r *Repo) Close() error { return r.ix.Close() }

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

// readConfig takes the newest config that proves itself. One that does not is
// passed over, and verify names it: whoever may write to the storage could have
// put it there.
func (r *Repo) readConfig(ctx context.Context) error {
	var ns []int
	for info, err := range r.b.List(ctx, "config/") {
		if err != nil {
			return err
		}
		if n, err := strconv.Atoi(strings.TrimPrefix(info.Name, "config/")); err == nil && n > 0 {
			ns = append(ns, n)
		}
	}
	if len(ns) == 0 {
		return noStart(ctx, r.b, "config")
	}
	slices.Sort(ns)
	var first error
	for _, n := range slices.Backward(ns) {
		err := r.tryConfig(ctx, fmt.Sprintf("config/%d", n))
		if err == nil || errors.Is(err, ErrFormat) {
			return err
		}
		r.opt.Logf("%v", err)
		if first == nil {
			first = err
		}
	}
	return first
}

func (r *Repo) tryConfig(ctx context.Context, name string) error {
	o, err := r.object(ctx, name, seal.KindConfig)
	if err != nil {
		return err
	}
	if o.Writer != r.k.Owner() {
		return fmt.Errorf("%s is not signed by the owner: %w", name, chunk.ErrCorrupt)
	}
	var cfg Config
	if err := decode(name, o.Body, &cfg); err != nil {
		return err
	}
	if cfg.Repo.String() != r.k.Ring().Repo {
		return fmt.Errorf("%s is of repository %s, the key of %s: %w", name, cfg.Repo, r.k.Ring().Repo, chunk.ErrCorrupt)
	}
	if err := cfg.check(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.cfg = cfg
	return nil
}

// readWriters makes known who else may sign. What does not prove itself counts
// for nothing. The caller holds r.mu.
func (r *Repo) readWriters(ctx context.Context) error {
	numbers := map[string][]int{}
	infos, err := r.names(ctx, "writers/")
	if err != nil {
		return err
	}
	for name := range infos {
		id, num, _ := strings.Cut(name, "-")
		if n, err := strconv.Atoi(num); err == nil {
			numbers[id] = append(numbers[id], n)
		}
	}
	for id, ns := range numbers {
		slices.Sort(ns)
		for _, n := range slices.Backward(ns) {
			w, err := r.writer(ctx, fmt.Sprintf("writers/%s-%d", id, n), id)
			if err != nil {
				r.opt.Logf("%v", err) // the newest that proves itself counts
				continue
			}
			r.k.Trust(w.Public)
			r.writers[id] = w
			break
		}
	}
	r.writerFiles = len(infos)
	return nil
}

func (r *Repo) writer(ctx context.Context, name, id string) (w Writer, err error) {
	o, err := r.object(ctx, name, seal.KindWriter)
	if err != nil {
		return w, err
	}
	if err := decode(name, o.Body, &w); err != nil {
		return w, err
	}
	if o.Writer != r.k.Owner() || len(w.Public) != 32 || seal.WriterOf(w.Public).String() != id {
		return w, fmt.Errorf("%s: not what the owner signed for that writer: %w", name, chunk.ErrCorrupt)
	}
	return w, nil
}

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
	for info, err := range r.b.List(ctx, prefix) {
		if err != nil {
			return nil, err
		}
		m[strings.TrimPrefix(info.Name, prefix)] = info
	}
	return m, nil
}

// Snapshots returns all live snapshots, oldest first, with the marks applied.
// Records that are damaged or signed by a stranger are left out and named in
// the error, which comes beside the others.
func (r *Repo) Snapshots(ctx context.Context) ([]*Snapshot, error) {
	infos, err := r.names(ctx, "snapshots/")
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if there, err := r.names(ctx, "writers/"); err != nil {
		return nil, err
	} else if len(there) != r.writerFiles {
		if err := r.readWriters(ctx); err != nil {
			return nil, err
		}
	}
	forgotten, err := r.forgotten(ctx)
	if err != nil {
		return nil, err
	}
	var snaps []*Snapshot
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(infos)) {
		id, ok := ParseID(name)
		if _, gone := forgotten[name]; !ok || gone {
			continue
		}
		rec, err := r.record(ctx, id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // forgotten meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if rec == nil {
			continue // a tombstone
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
	if err := r.applyMarks(ctx, snaps); err != nil {
		errs = append(errs, err)
	}
	nameDirs(snaps)
	return snaps, errors.Join(errs...)
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
		o, err := r.object(ctx, "forgotten/"+name, seal.KindForgotten)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var f Forgotten
		if err == nil {
			err = decode("forgotten/"+name, o.Body, &f)
		}
		if err == nil && (f.ID.String() != name || o.Writer != r.k.Owner()) {
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
	if s, ok := r.records[id]; ok {
		return s, nil
	}
	name := "snapshots/" + id.String()
	p, err := r.b.Get(ctx, name, 0, -1)
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
		return nil, nil
	}
	s := &Snapshot{}
	if err := decode(name, o.Body, s); err != nil {
		return nil, err
	}
	if s.ID != id {
		return nil, fmt.Errorf("%s: record of snapshot %s: %w", name, s.ID, chunk.ErrCorrupt)
	}
	if err := r.allowed(o.Writer, s.Name); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := s.checkNames(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, err, chunk.ErrCorrupt)
	}
	s.Writer = o.Writer.String()
	return s, nil
}

// nameDirs sorts snapshots by time and gives each its TIME, unique for the
// name.
func nameDirs(snaps []*Snapshot) {
	slices.SortFunc(snaps, func(a, b *Snapshot) int {
		if c := cmp.Or(a.When().Compare(b.When()), a.Time.Compare(b.Time)); c != 0 {
			return c
		}
		return strings.Compare(a.ID.String(), b.ID.String())
	})
	taken := map[string]bool{}
	for _, s := range snaps {
		t := s.Time.UTC().Format(TimeLayout)
		s.Dir = t
		for n := 2; taken[s.Name+"/"+s.Dir]; n++ {
			s.Dir = fmt.Sprintf("%s-%d", t, n)
		}
		taken[s.Name+"/"+s.Dir] = true
	}
}

// TimeLayout is how TIME is written: UTC, without colons.
const TimeLayout = "2006-01-02T15.04.05Z"
