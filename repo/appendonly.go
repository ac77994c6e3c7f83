package repo

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// In append-only mode the keys in the repository hold rings without the owner's
// seed. They open everything and sign as one writer, the members, who is
// registered for all names and trusted. The owner's ring lies in a credential
// elsewhere, and only with it snapshots are forgotten and marked, packs pruned,
// keys and writers changed.

// membersName is the note of that writer, for people.
const membersName = "passwords of the repository, in append-only mode"

// membersSeed derives the seed that the members sign with. The owner's seed
// gives it, and it does not give that. A revoked one is followed by the next
// generation.
func membersSeed(full *seal.Ring, generation uint32) []byte {
	d := chunk.Derive("cutbank v1 members", full.Seed, []byte(full.Repo), binary.LittleEndian.AppendUint32(nil, generation))
	return d[:]
}

// members returns the seed that the members sign with from now on, and whether
// it is registered.
func (r *Repo) members() (seed []byte, known bool) {
	for g := uint32(0); ; g++ {
		seed = membersSeed(r.k.Ring(), g)
		w, ok := r.registered(seal.WriterOf(publicOf(seed)).String())
		if !ok || w.Revoked.IsZero() {
			return seed, ok
		}
	}
}

// ringForKeys returns what the keys in the repository are to hold.
func (r *Repo) ringForKeys(appendOnly bool) *seal.Ring {
	full := r.k.Ring()
	if !appendOnly || len(full.Seed) == 0 {
		return full
	}
	ring := *full
	ring.Seed, ring.Extra = nil, nil
	ring.Write, _ = r.members()
	return &ring
}

// AppendOnlyOptions say how to change the mode.
type AppendOnlyOptions struct {
	// Save is given the owner's credential and keeps it, before anything is
	// changed. Required to begin the mode with a key that lies in the repository.
	Save func(credential []byte) error
	// Password protects the credential; empty: nothing does.
	Password string
	// DropKeys removes keys that cannot be changed without their passwords.
	DropKeys bool
	DryRun   bool
}

// KeyChange is what became of one key in the repository.
type KeyChange struct {
	KeyInfo
	New     ID // the key that takes its place; zero for none
	Dropped bool

	// Locked is until when the old key is locked, and opens what it opened
	// before, the owner's seed included; zero: it is gone.
	Locked time.Time
}

// keyPlan is how one key is to be replaced.
type keyPlan struct {
	state *keyState
	file  *keyFile
	drop  bool
}

// SetAppendOnly begins or ends append-only mode: every key in the repository is
// replaced by one that opens with the same password and holds another ring. Only
// the owner may. It can be interrupted at any point, and repeated with the
// owner's credential; until it is done keys of both sorts open the repository.
// Who once had a password and a copy of keys/ from before can have kept the
// owner's secrets.
//
// A key that the owner's signature does not vouch for, of an older program, needs
// its password: that is Options.Password for the key in use; others are an error,
// or dropped. It may be one that somebody put into the storage: in the place of a
// key that lies open the secrets themselves would come to lie there. A key that
// was removed, and that somebody has put back, is removed again.
func (r *Repo) SetAppendOnly(ctx context.Context, on bool, opt AppendOnlyOptions) ([]KeyChange, error) {
	const what = "changing append-only mode"
	if err := r.ownerOnly(what); err != nil {
		return nil, err
	}
	cfg, err := r.renewedConfig(ctx)
	if err == nil {
		err = r.wholeRing(what, cfg)
	}
	if err == nil {
		err = r.readWriters(ctx)
	}
	if err != nil {
		return nil, err
	}
	plans, err := r.planKeys(ctx, cfg, on, opt.DropKeys)
	if err != nil {
		return nil, err
	}
	changes := make([]KeyChange, len(plans))
	for i, p := range plans {
		changes[i] = KeyChange{KeyInfo: p.state.KeyInfo, Dropped: p.drop}
	}
	if opt.DryRun {
		return changes, nil
	}
	if on {
		if err := r.beginAppendOnly(ctx, opt, len(plans) > 0); err != nil {
			return nil, err
		}
	}
	return changes, r.replaceKeys(ctx, on, plans, changes)
}

// planKeys finds the keys that are to be replaced.
func (r *Repo) planKeys(ctx context.Context, cfg Config, on, drop bool) ([]keyPlan, error) {
	states, damaged, err := r.keyStates(ctx)
	if err = errors.Join(err, damaged); err != nil {
		return nil, err
	}
	var plans []keyPlan
	var stuck []string
	for _, s := range states {
		if !s.there || s.writes {
			continue
		}
		p, err := r.b.Get(ctx, keyName(s.ID), 0, -1)
		if err != nil {
			return nil, err
		}
		f, err := parseKey(keyName(s.ID), p)
		if err != nil {
			return nil, err
		}
		if (f.Role == roleMember) == on {
			continue // it is so already
		}
		plan := keyPlan{state: s, file: f}
		switch vouched := r.ownersKey(f) == nil; {
		case slices.Contains(cfg.Removed, s.ID) && !s.Current:
			plan.drop = true
		case vouched && (f.KDF == "none" || f.Spare != nil):
		case s.Current && (f.KDF != "none" || r.me.open): // its password is asked for; or its secrets lie there
		default:
			plan.drop = true
			stuck = append(stuck, s.ID.String()[:8])
		}
		plans = append(plans, plan)
	}
	if len(stuck) > 0 && !drop {
		return nil, fmt.Errorf("keys %v are not signed by the owner, and can only be changed by who opens the repository with them: do that, and change them by `cutbank key passwd`, or let them be removed", stuck)
	}
	if len(plans) > 0 && !slices.ContainsFunc(plans, func(p keyPlan) bool { return !p.drop }) && !slices.ContainsFunc(states, func(s *keyState) bool {
		return s.there && !s.writes && !slices.ContainsFunc(plans, func(p keyPlan) bool { return p.state == s })
	}) {
		return nil, errors.New("no key would be left that opens the repository: add a password first")
	}
	return plans, nil
}

// beginAppendOnly keeps the owner's ring elsewhere, and registers the members.
func (r *Repo) beginAppendOnly(ctx context.Context, opt AppendOnlyOptions, needed bool) error {
	if opt.Save == nil && needed && r.opt.Credential == nil {
		return errors.New("the owner's credential must be kept somewhere: without it nobody could forget or prune any more")
	}
	if opt.Save != nil {
		ring := *r.k.Ring()
		cred, err := newCredential(&ring, opt.Password, "owner", r.opt.Now(), r.opt.Random)
		if err != nil {
			return err
		}
		if err := opt.Save(cred); err != nil {
			return err
		}
	}
	seed, known := r.members()
	if known {
		return nil
	}
	public := ed25519.PublicKey(publicOf(seed))
	return r.putWriter(ctx, seal.WriterOf(public).String(), Writer{V: 1, Public: public, Names: []string{"*"},
		Rights: []string{RightRead, RightWrite, RightTrusted}, Note: membersName})
}

// replaceKeys puts all new keys before it removes an old one, and says so last.
func (r *Repo) replaceKeys(ctx context.Context, on bool, plans []keyPlan, changes []KeyChange) error {
	ring := r.ringForKeys(on)
	var old []ID
	for i, p := range plans {
		old = append(old, p.state.ID)
		if p.drop {
			continue
		}
		to, obj, err := r.rewrap(p, ring)
		if err != nil {
			return err
		}
		if to.public != nil {
			if err := r.grant(ctx, to, r.k.Ring().Epochs); err != nil {
				return err
			}
		}
		if err := r.putNew(ctx, keyName(to.id), obj); err != nil {
			return err
		}
		changes[i].New = to.id
	}
	if len(old) > 0 {
		if err := r.noteRemoved(ctx, old...); err != nil {
			return err
		}
	}
	for i, p := range plans {
		until, err := r.removeKey(ctx, p.state)
		if err != nil {
			return err
		}
		changes[i].Locked = until
	}
	err := r.changeConfig(ctx, func(c *Config) error {
		c.AppendOnly = on
		return nil
	})
	if err == nil {
		r.cfg.AppendOnly = on
	}
	return err
}

// rewrap returns a key with another ring that opens as the old one does, and to
// whom the key epochs are to be given, because they are not in that ring: it is
// sealed by the spare key, which opens to who has any owner's ring of old. The
// public half is nil where the ring has them.
func (r *Repo) rewrap(p keyPlan, ring *seal.Ring) (to keyOwner, obj []byte, err error) {
	f := p.file
	to.label = f.Label
	if to.id, err = r.newID(); err != nil {
		return to, nil, err
	}
	if f.KDF == "none" {
		obj, _, err = newKey(r.k, ring, to.id, "", f.Label, r.opt.Now(), r.opt.Random)
		return to, obj, err
	}
	spare, public, err := r.spareOf(p)
	if err != nil {
		return to, nil, err
	}
	to.public = public
	bare := *ring
	bare.Epochs = nil
	for _, e := range ring.Epochs {
		bare.Epochs = append(bare.Epochs, seal.Epoch{N: e.N, Public: e.Public})
	}
	plain, err := json.Marshal(&bare)
	if err != nil {
		return to, nil, err
	}
	next := keyFile{V: 1, ID: to.id, Created: r.opt.Now().UTC(), Label: f.Label, KDF: kdfGiven, Salt: f.Salt, Passes: f.Passes,
		Memory: f.Memory, Threads: f.Threads, Public: public, Role: roleOf(ring)}
	if next.Ring, err = next.lock(spare, plain, r.opt.Random); err != nil {
		return to, nil, err
	}
	if err := next.setSpare(r.k, spare, r.opt.Random); err != nil {
		return to, nil, err
	}
	body, err := json.Marshal(next)
	if err != nil {
		return to, nil, err
	}
	obj, err = r.k.Seal(keyName(to.id), seal.KindKey, seal.Clear, body, r.opt.Random)
	return to, obj, err
}

// spareOf returns what is needed to put another ring in a key's place: the spare
// key and the public half. The key in use may be one of an older program; then
// they come from its password.
func (r *Repo) spareOf(p keyPlan) (spare [32]byte, public []byte, err error) {
	f := p.file
	if f.Spare != nil && r.ownersKey(f) == nil {
		spare, err = f.spare(r.k)
		return spare, f.Public, err
	}
	if r.opt.Password == nil {
		return spare, nil, fmt.Errorf("%s: its password is needed: %w", keyName(f.ID), ErrKey)
	}
	password, err := r.opt.Password()
	if err != nil {
		return spare, nil, err
	}
	stretched, err := f.stretch(password)
	if err != nil {
		return spare, nil, err
	}
	u, err := f.unlock(func() ([32]byte, error) { return stretched, nil })
	if err != nil {
		return spare, nil, fmt.Errorf("%s: %w", keyName(f.ID), err)
	}
	return spareKey(stretched), u.recipient.Public(), nil
}
