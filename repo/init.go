package repo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// InitOptions say what a new repository shall be.
type InitOptions struct {
	Password  string // empty: the key lies beside the data
	Params    chunk.Params
	FrameSize int     // 0: 256 KiB
	PackSize  int     // 0: 32 MiB
	Parity    float64 // per cent of each pack; 0: none, or that of Like
	Like      *Repo   // take its secrets and parameters instead

	// Probe tries out whether the place keeps to create-if-absent, on which
	// declaring writers dead relies. If not, Init fails with
	// backend.ErrUnfenced. NoFencing makes a repository that does without.
	Probe, NoFencing bool

	// ListingLag is how long a change may stay unseen by the place's listings, where
	// the place does not say so itself; an hour at most.
	ListingLag time.Duration

	// Lock is how long each object is locked from when it is stored, by a place
	// that is a backend.Vault; 0: not at all. Nobody can take that back.
	Lock time.Duration

	// Provisional: another key takes the place of the first one at once, as in
	// append-only mode. It is not locked, so that it can go.
	Provisional bool
}

// Init makes a repository in b, which must be empty but for what an interrupted
// Init left, and opens it. Where versions of a repository are kept that somebody has
// removed, it is an error that wraps fs.ErrExist: nobody could bring that one back
// beside the new one.
func Init(ctx context.Context, b backend.Backend, in InitOptions, opt Options) (*Repo, error) {
	stale, err := leftKeys(ctx, b)
	if err != nil {
		return nil, err
	}
	if covered(ctx, b, "config/") {
		return nil, fmt.Errorf("%s held a repository that was removed, and its versions are kept: `cutbank repair versions` brings it back if it was locked; for a new one choose another place: %w", b, fs.ErrExist)
	}
	vault, err := in.vault(ctx, b)
	if err != nil {
		return nil, err
	}
	// The key is locked at the end: one of an interrupted Init must go again.
	until := func(name string) time.Time {
		if !isLocked(name) || strings.HasPrefix(name, "keys/") {
			return time.Time{}
		}
		return opt.Now().Add(in.Lock)
	}
	if vault != nil {
		b = backend.Locked(vault, until)
	}
	if in.NoFencing {
		b = backend.LookFirst(b)
	} else if in.Probe {
		if err := probe(ctx, b, opt.Random); err != nil {
			return nil, err
		}
	}
	cfg, ring, err := in.config(opt)
	if err != nil {
		return nil, err
	}
	k, err := ring.Open()
	if err != nil {
		return nil, err
	}
	key, err := newID(opt.Random)
	if err != nil {
		return nil, err
	}
	p, u, err := newKey(k, ring, key, in.Password, "", opt.Now(), opt.Random)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	c, err := k.Seal("config/1", seal.KindConfig, seal.ForList, body, opt.Random)
	if err != nil {
		return nil, err
	}
	if err := putFirst(ctx, b, keyName(key), p, c, stale); err != nil {
		return nil, err
	}
	// Where listings lag nobody could open it before, and all would take it for
	// damaged.
	if err := sleep(ctx, max(b.Lag(), in.ListingLag)); err != nil {
		return nil, err
	}
	if vault != nil {
		if err := lockFirst(ctx, vault, keyName(key), opt.Now().Add(in.Lock), in.Provisional); err != nil {
			return nil, err
		}
		b = vault
	}
	r, err := open(ctx, b, k, key, opt)
	if err == nil {
		r.use(ctx, u)
		r.reserve()
	}
	return r, err
}

// config returns what the new repository's config says, and its secrets.
func (in *InitOptions) config(opt Options) (*Config, *seal.Ring, error) {
	id, err := newID(opt.Random)
	if err != nil {
		return nil, nil, err
	}
	cfg := Config{V: 1, Repo: id, Created: opt.Now().UTC(), FrameSize: in.FrameSize, PackSize: in.PackSize,
		Splitter: SplitterConfig{string(in.Params.Kind), in.Params.Min, in.Params.Avg, in.Params.Max, in.Params.Secret}}
	cfg.FrameSize = cmp.Or(cfg.FrameSize, 256<<10)
	cfg.PackSize = cmp.Or(cfg.PackSize, 32<<20)
	var ring *seal.Ring
	if in.Like != nil {
		if err := in.Like.ownerOnly("making a repository with the same secrets"); err != nil {
			return nil, nil, err
		}
		like := *in.Like.k.Ring()
		like.Repo = id.String()
		ring = &like
		cfg = in.Like.cfg
		cfg.Repo, cfg.Created, cfg.Removed = id, opt.Now().UTC(), nil
	} else if ring, err = seal.NewRing(id.String(), opt.Random); err != nil {
		return nil, nil, err
	}
	cfg.NoFencing, cfg.ListingLag, cfg.Lock = in.NoFencing, "", ""
	if in.Lock != 0 {
		cfg.Lock = formatLock(in.Lock)
	}
	if in.ListingLag != 0 {
		cfg.ListingLag = in.ListingLag.String()
	}
	if in.Parity != 0 {
		cfg.Parity = formatParity(in.Parity)
	}
	return &cfg, ring, cfg.check()
}

// vault returns b as what can lock, if that is asked for; nil if it is not.
func (in *InitOptions) vault(ctx context.Context, b backend.Backend) (backend.Vault, error) {
	if in.Lock == 0 {
		return nil, nil
	}
	if err := CheckLock(in.Lock); err != nil {
		return nil, err
	}
	if in.NoFencing {
		return nil, fmt.Errorf("what is put twice cannot be locked: a lock needs a place that keeps to create-if-absent: %w", errors.ErrUnsupported)
	}
	v, ok := b.(backend.Vault)
	if !ok {
		return nil, fmt.Errorf("%s locks no objects, only buckets of S3 with Object Lock do: %w", b, errors.ErrUnsupported)
	}
	return v, v.Lockable(ctx)
}

// lockFirst locks the key of a new repository, and looks whether the config is:
// some stores take a lock and do not keep it.
func lockFirst(ctx context.Context, v backend.Vault, key string, until time.Time, provisional bool) error {
	names := []string{configName(1)}
	if !provisional {
		if err := v.Lock(ctx, key, "", until); err != nil {
			return fmt.Errorf("the repository is made, but its key is not locked: %w; `cutbank lock` does it", err)
		}
		names = append(names, key)
	}
	for _, name := range names {
		got, err := v.LockedUntil(ctx, name, "")
		if err != nil {
			return err
		}
		if got.Before(until.Add(-time.Hour)) {
			return fmt.Errorf("%s has taken a lock of %s until %s and does not keep it: what is there is not protected: %w", v, name, until.UTC().Format(time.RFC3339), errors.ErrUnsupported)
		}
	}
	return nil
}

// probeDir is where Init tries the place out.
const probeDir = "tmp/"

// probe tries out whether b keeps to create-if-absent.
func probe(ctx context.Context, b backend.Backend, random io.Reader) error {
	id, err := newID(random)
	if err != nil {
		return err
	}
	var names []string
	for i := range 4 {
		names = append(names, fmt.Sprintf("%sfence-%s-%d", probeDir, id, i))
	}
	return backend.Fenced(ctx, b, names)
}

// leftKeys returns the keys, and the names tried out, that an interrupted Init
// left in b. Anything else in it is an error.
func leftKeys(ctx context.Context, b backend.Backend) (stale []string, err error) {
	other := ""
	for info, err := range b.List(ctx, "") {
		switch {
		case err != nil:
			return nil, err
		case strings.HasPrefix(info.Name, "config/"):
			return nil, fmt.Errorf("%s is a repository already: %w", b, fs.ErrExist)
		case strings.HasPrefix(info.Name, "keys/"), strings.HasPrefix(info.Name, probeDir):
			stale = append(stale, info.Name)
		default:
			other = info.Name
		}
	}
	if other != "" {
		return nil, fmt.Errorf("%s is not empty (it holds %s) and no repository: choose another place: %w", b, other, fs.ErrExist)
	}
	return stale, nil
}

// putFirst puts the key and then the config of a new repository: a config
// without a key would look like a repository that nobody can open. Who puts
// config/1 has made the repository; all others take their keys back. Who does not
// know whether it will come yet leaves its key there: a repeated Init removes it,
// or finds a repository that opens.
func putFirst(ctx context.Context, b backend.Backend, key string, keyData, config []byte, stale []string) error {
	after := context.WithoutCancel(ctx)
	err, sure := putKey(ctx, b, key, keyData), true
	if err == nil {
		err = b.Put(ctx, "config/1", config)
		sure = definite(err)
	}
	if err != nil {
		got, gerr := b.Get(after, "config/1", 0, -1)
		switch {
		case gerr == nil && bytes.Equal(got, config):
			// The answer was lost, the config was not.
		case gerr == nil, sure && errors.Is(gerr, fs.ErrNotExist):
			return errors.Join(err, b.Remove(after, key))
		default:
			return fmt.Errorf("unclear whether the repository was made, or will be yet; run init again: %w", err)
		}
	}
	for _, name := range stale {
		if err := b.Remove(after, name); err != nil && !errors.Is(err, backend.ErrLocked) {
			return fmt.Errorf("the repository is made, but %s of an interrupted init is left in it and must be removed: %w", name, err)
		}
	}
	return nil
}

// putKey puts the first key. Elsewhere no key is put again after an unclear answer, for
// fear that it was removed meanwhile; nobody else knows of this one yet. One that was
// taken back, and comes late, would lie beside that of the next Init for good.
func putKey(ctx context.Context, b backend.Backend, name string, p []byte) error {
	backoff := func(n int, why error) (time.Duration, bool) {
		return 100 * time.Millisecond << n, n < 5 && !definite(why)
	}
	return backend.Retry(b, backoff, func(string) bool { return true }).Put(ctx, name, p)
}
