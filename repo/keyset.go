package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// KeyInfo describes a key of the repository.
type KeyInfo struct {
	ID      ID
	Created time.Time
	Label   string
	KDF     string // empty for one that lies in a file elsewhere
	Current bool   // the one that the repository was opened with

	// Epoch is the newest key epoch that it opens; 0 if that is not known, as of
	// keys that the owner did not sign.
	Epoch   uint32
	Granted time.Time // when that was given to it later; zero: it has it from the beginning
}

// keyOwner is who can be given something: a key, and the public half of the
// pair that its password comes to.
type keyOwner struct {
	id     ID
	public []byte
	label  string
}

// keyState is all that keys/ says of one key.
type keyState struct {
	KeyInfo
	names  []string // of its objects
	there  bool     // its file is there, and whole
	writes bool     // its ring is write-only: no epoch is of use to it
	public []byte   // as the owner signed it; nil: not known
}

// keyStates reads keys/, and says what is damaged there. The states are sorted
// by ID.
func (r *Repo) keyStates(ctx context.Context) (states []*keyState, damaged, err error) {
	byID := map[ID]*keyState{}
	of := func(id ID, name string) *keyState {
		s := byID[id]
		if s == nil {
			s = &keyState{KeyInfo: KeyInfo{ID: id, Current: id == r.key}}
			byID[id] = s
		}
		s.names = append(s.names, name)
		return s
	}
	infos, err := r.names(ctx, "keys/")
	if err != nil {
		return nil, nil, err
	}
	var grants []*keyGrant
	for part, info := range infos {
		name := "keys/" + part
		if err := keySize(info); err != nil {
			damaged = errors.Join(damaged, err)
			continue
		}
		p, err := r.b.Get(ctx, name, 0, -1)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		if id, _, ok := grantID(name); ok {
			g, err := r.grantIn(name, p)
			if err != nil {
				damaged = errors.Join(damaged, err)
				continue
			}
			of(id, name)
			grants = append(grants, g)
			continue
		}
		f, err := parseKey(name, p)
		if err != nil {
			damaged = errors.Join(damaged, err)
			continue
		}
		of(f.ID, name).file(r, f)
	}
	for _, g := range grants {
		byID[g.ID].granted(g)
	}
	for _, s := range byID {
		if s.Current {
			for _, e := range r.k.Ring().Epochs {
				if len(e.Private) > 0 {
					s.Epoch = max(s.Epoch, e.N)
				}
			}
		}
		states = append(states, s)
	}
	slices.SortFunc(states, func(a, b *keyState) int { return strings.Compare(a.ID.String(), b.ID.String()) })
	return states, damaged, nil
}

func (s *keyState) file(r *Repo, f *keyFile) {
	s.there, s.writes = true, f.Role == roleWriter
	s.Created, s.Label, s.KDF = f.Created, f.Label, f.KDF
	if r.ownersKey(f) == nil {
		s.public, s.Epoch = f.Public, f.Epoch
	}
}

// granted takes what a grant says, where the key's file does not say otherwise.
func (s *keyState) granted(g *keyGrant) {
	if s.public != nil && !bytes.Equal(s.public, g.Public) {
		return
	}
	s.public = g.Public
	if !s.there {
		s.Created, s.Label = g.Created, g.Label
	}
	if g.Epoch > s.Epoch {
		s.Epoch, s.Granted = g.Epoch, g.Created
	}
}

// ownersKey proves that the owner signed a key's file.
func (r *Repo) ownersKey(f *keyFile) error {
	name := keyName(f.ID)
	if f.object.Writer != r.k.Owner() {
		return fmt.Errorf("%s is not signed by the owner: an interrupted init has left it, or somebody put it there; `cutbank key remove %s` removes it: %w", name, f.ID, chunk.ErrCorrupt)
	}
	return r.k.Open(name, f.object)
}

func (r *Repo) grantIn(name string, p []byte) (*keyGrant, error) {
	o, err := r.openOwners(name, seal.KindKey, p)
	if err != nil {
		return nil, err
	}
	return r.parseGrant(name, o)
}

// checkKey says what is damaged of an object in keys/. A key that the owner did
// not sign may be whole: older programs made such.
func (r *Repo) checkKey(name string, p []byte) error {
	if _, _, ok := grantID(name); ok {
		_, err := r.grantIn(name, p)
		return err
	}
	f, err := parseKey(name, p)
	if err != nil || f.object.Writer == (seal.WriterID{}) {
		return err
	}
	return r.ownersKey(f)
}

// Keys lists the keys, and what is damaged among them.
func (r *Repo) Keys(ctx context.Context) ([]KeyInfo, error) {
	states, damaged, err := r.keyStates(ctx)
	if err != nil {
		return nil, err
	}
	var infos []KeyInfo
	for _, s := range states {
		infos = append(infos, s.KeyInfo)
	}
	return infos, damaged
}

// wholeRing reports the first published epoch that these keys lack: who lacks
// one can hand on no key that opens all.
func (r *Repo) wholeRing(what string, cfg Config) error {
	for _, e := range r.published(cfg) {
		if !r.k.Opens(e.N) && !r.findEpoch(e.N) {
			return fmt.Errorf("%s needs a key that opens all, and this one lacks key epoch %d: %w; open the repository with another", what, e.N, seal.ErrNoKey)
		}
	}
	return nil
}

// AddKey adds a password. Only the owner may, with a key that opens all. After an
// error it may have been added, or be added yet, as Keys tells.
func (r *Repo) AddKey(ctx context.Context, password, label string) (ID, error) {
	if password == "" {
		return ID{}, errors.New("an empty password protects nothing: give one")
	}
	if err := r.ownerOnly("adding a key"); err != nil {
		return ID{}, err
	}
	cfg, err := r.renewedConfig(ctx)
	if err == nil {
		err = r.wholeRing("adding a key", cfg)
	}
	if err != nil {
		return ID{}, err
	}
	id, err := r.newID()
	if err != nil {
		return id, err
	}
	epoch := r.k.Newest()
	p, u, err := newKey(r.k, r.ringForKeys(cfg.AppendOnly), id, password, label, r.opt.Now(), r.opt.Random)
	if err != nil {
		return id, err
	}
	if err := r.putNew(ctx, keyName(id), p); err != nil {
		return id, err
	}
	// A rotation that went on meanwhile may not have seen this key.
	if cfg, err = r.renewedConfig(ctx); err != nil || r.k.Newest() == epoch {
		return id, err
	}
	if err := r.wholeRing("adding a key", cfg); err != nil {
		return id, err
	}
	return id, r.grant(ctx, keyOwner{id, u.recipient.Public(), label}, r.k.Ring().Epochs)
}

// renewedConfig reads the newest config and publishes its epochs.
func (r *Repo) renewedConfig(ctx context.Context) (Config, error) {
	cfg, n, err := r.newestConfig(ctx)
	if err != nil {
		return cfg, err
	}
	r.keysMu.Lock()
	defer r.keysMu.Unlock()
	if n < r.configN {
		return cfg, fmt.Errorf("%s, which was there, is gone: %w", configName(r.configN), chunk.ErrCorrupt)
	}
	r.configN = n
	return cfg, r.publish(cfg)
}

// matchKey returns the key whose ID starts with prefix.
func matchKey(states []*keyState, prefix string) (*keyState, error) {
	var found []*keyState
	for _, s := range states {
		if prefix != "" && strings.HasPrefix(s.ID.String(), prefix) {
			found = append(found, s)
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("no key %q: %w; `cutbank key list` shows them", prefix, fs.ErrNotExist)
	case len(found) > 1:
		return nil, fmt.Errorf("%q fits %d keys: give more digits", prefix, len(found))
	}
	return found[0], nil
}

// RemoveKey removes the key whose ID starts with prefix, and notes that it was
// removed: if somebody puts it back, it is given no later epoch. The last key
// stays, for without it nothing could be read. Only the owner may. If it is
// interrupted, it can be repeated.
func (r *Repo) RemoveKey(ctx context.Context, prefix string) (ID, error) {
	if err := r.ownerOnly("removing a key"); err != nil {
		return ID{}, err
	}
	states, damaged, err := r.keyStates(ctx)
	if err != nil {
		return ID{}, err
	}
	if len(states) == 0 && damaged != nil {
		return ID{}, damaged
	}
	s, err := matchKey(states, prefix)
	if err != nil {
		return ID{}, err
	}
	// Of a key that the owner did not sign nobody knows whether it opens, unless
	// it has just done so.
	opens := func(o *keyState) bool { return o != s && o.there && !o.writes && (o.public != nil || o.Current) }
	if s.there && !slices.ContainsFunc(states, opens) {
		return ID{}, fmt.Errorf("%s is the only key that is known to open: without it nothing could be read; add another first", s.ID)
	}
	if err := r.noteRemoved(ctx, s.ID); err != nil {
		return s.ID, err
	}
	locked, err := r.removeKey(ctx, s)
	if err == nil && !locked.IsZero() {
		err = fmt.Errorf("key %s is given nothing more, but opens what it has opened so far until its lock has passed, and a prune removes it then: %w", s.ID, &backend.LockedError{Name: keyName(s.ID), Until: locked})
	}
	return s.ID, err
}

func (r *Repo) noteRemoved(ctx context.Context, ids ...ID) error {
	return r.changeConfig(ctx, func(c *Config) error {
		c.addRemoved(ids)
		return nil
	})
}

func (c *Config) addRemoved(ids []ID) {
	c.Removed = slices.Clone(c.Removed)
	for _, id := range ids {
		if !slices.Contains(c.Removed, id) {
			c.Removed = append(c.Removed, id)
		}
	}
}

// removeKey removes all objects of a key: its file first, so that the key is
// gone when the first Remove has been acknowledged.
//
// What of it is locked stays, and until then the password opens what it opened
// before; locked tells how long. The caller has noted that the key is removed:
// prune removes it then, and nobody locks it any longer.
func (r *Repo) removeKey(ctx context.Context, s *keyState) (locked time.Time, err error) {
	slices.Sort(s.names) // "keys/<id>" comes before "keys/<id>.<n>"
	for _, name := range s.names {
		until, err := r.remove(ctx, name)
		if err != nil {
			return locked, err
		}
		if until.After(locked) {
			locked = until
		}
	}
	return locked, nil
}

// sweepKeys removes what is left of keys that were removed while they were locked.
func (r *Repo) sweepKeys(ctx context.Context) error {
	if r.vault == nil || len(r.cfg.Removed) == 0 {
		return nil
	}
	infos, err := r.names(ctx, "keys/")
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(infos)) {
		if r.keyRemoved(name) {
			if _, err := r.removeInfo(ctx, infos[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

// keyRemoved reports whether an object below keys/ belongs to a key that was
// removed.
func (r *Repo) keyRemoved(name string) bool {
	base, _, _ := strings.Cut(name, ".")
	id, ok := ParseID(base)
	return ok && slices.Contains(r.cfg.Removed, id)
}
