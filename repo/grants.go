package repo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// keyGrant is the body of keys/<id>.<n>: key epochs that key id is given after
// it was made, up to epoch n. It is clear, and signed by the owner. Public is
// that of the key (see keyFile); Sealed is the JSON form of grantedEpochs, sealed
// for it (see seal.SealTo) and bound to the repository's ID, "/" and the
// object's name. So a key file never changes: its ring may hold a writer's own
// seed, or lack the owner's, and whoever gives an epoch need not know.
//
// Why nobody else can give or get an epoch: what is given counts only if the
// owner signed it, and the owner's public key comes out of the ring, which only
// the password opens. And the owner gives to no Public but those that the owner
// has signed, in a key file or a grant: not to one that somebody put there.
type keyGrant struct {
	V       int       `json:"v"`
	ID      ID        `json:"id"`
	Epoch   uint32    `json:"epoch"`
	Created time.Time `json:"created"`
	Label   string    `json:"label,omitempty"`
	Public  []byte    `json:"public"`
	Sealed  []byte    `json:"sealed"`
}

// grantedEpochs is what a grant holds: all epochs that who gave them knew.
type grantedEpochs struct {
	V      int            `json:"v"`
	Epochs []grantedEpoch `json:"epochs"`
}

type grantedEpoch struct {
	N       uint32 `json:"n"`
	Private []byte `json:"private"`
}

func grantName(id ID, epoch uint32) string { return fmt.Sprintf("%s.%d", keyName(id), epoch) }

// grantID takes the name of a grant apart.
func grantID(name string) (id ID, epoch uint32, ok bool) {
	base, num, _ := strings.Cut(strings.TrimPrefix(name, "keys/"), ".")
	id, ok = ParseID(base)
	n, err := strconv.ParseUint(num, 10, 32)
	return id, uint32(n), ok && err == nil && grantName(id, uint32(n)) == name
}

// bound is the name that a grant is sealed for.
func (r *Repo) bound(name string) string { return r.k.Ring().Repo + "/" + name }

// sealGrant returns the object that gives these epochs to a key.
func (r *Repo) sealGrant(to keyOwner, epochs []seal.Epoch) (name string, p []byte, err error) {
	var all grantedEpochs
	all.V = 1
	newest := uint32(0)
	for _, e := range epochs {
		if len(e.Private) > 0 {
			all.Epochs = append(all.Epochs, grantedEpoch{e.N, e.Private})
			newest = max(newest, e.N)
		}
	}
	plain, err := json.Marshal(all)
	if err != nil {
		return "", nil, err
	}
	name = grantName(to.id, newest)
	sealed, err := seal.SealTo(to.public, r.bound(name), plain)
	if err != nil {
		return "", nil, err
	}
	body, err := json.Marshal(keyGrant{V: 1, ID: to.id, Epoch: newest, Created: r.opt.Now().UTC(), Label: to.label, Public: to.public, Sealed: sealed})
	if err != nil {
		return "", nil, err
	}
	p, err = r.k.Seal(name, seal.KindKey, seal.Clear, body, r.opt.Random)
	return name, p, err
}

// readGrant reads a grant and proves that the owner gave it.
func (r *Repo) readGrant(ctx context.Context, name string) (*keyGrant, error) {
	o, err := r.ownersObject(ctx, name, seal.KindKey)
	if err != nil {
		return nil, err
	}
	return r.parseGrant(name, o)
}

func (r *Repo) parseGrant(name string, o *seal.Object) (*keyGrant, error) {
	g := &keyGrant{}
	if err := decode(name, o.Body, g); err != nil {
		return nil, err
	}
	if grantName(g.ID, g.Epoch) != name {
		return nil, fmt.Errorf("%s: not what the owner gave to that key: %w", name, chunk.ErrCorrupt)
	}
	return g, nil
}

// take adds what a grant holds to the keys in use.
func (r *Repo) take(name string, g *keyGrant) error {
	plain, err := r.me.recipient.Open(r.bound(name), g.Sealed)
	if err != nil {
		return err
	}
	var all grantedEpochs
	if err := decode(name, plain, &all); err != nil {
		return err
	}
	for _, ge := range all.Epochs {
		e, err := seal.EpochOf(ge.N, ge.Private)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := r.k.AddEpoch(e); err != nil {
			// Of a rotation that another one outran: the config has the other's.
			r.opt.Logf("%s: passed over: %v", name, err)
		}
	}
	return nil
}

// readGrants takes what the key that is used was given. What does not prove
// itself is passed over. The caller holds r.keysMu, or has the Repo alone.
func (r *Repo) readGrants(ctx context.Context) error {
	if r.me == nil {
		return nil
	}
	infos, err := r.names(ctx, keyName(r.me.id)+".")
	if err != nil {
		return err
	}
	for part := range infos {
		name := keyName(r.me.id) + "." + part
		if r.grants[name] {
			continue
		}
		g, err := r.readGrant(ctx, name)
		if err == nil {
			err = r.take(name, g)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.opt.Logf("%v", err)
		}
		r.grants[name] = true // immutable
	}
	return nil
}

// use makes u the key that is used from now on, and takes what it was given.
func (r *Repo) use(ctx context.Context, u *unlocked) {
	r.keysMu.Lock()
	defer r.keysMu.Unlock()
	r.me, r.key, r.grants = u, u.id, map[string]bool{}
	if u.writes {
		return
	}
	if earlyIn(ctx) == nil || r.lacking() != 0 { // else it is not worth a round trip
		if err := r.readGrants(ctx); err != nil {
			r.opt.Logf("keys/: %v", err)
		}
	}
	r.k.OnUnknownEpoch(r.findEpoch)
}

// lacking returns the first published epoch that does not open; 0 if all do.
func (r *Repo) lacking() uint32 {
	for _, e := range r.published(r.cfg) {
		if !r.k.Opens(e.N) {
			return e.N
		}
	}
	return 0
}

// tryOthers takes u, which was opened, into use. If it lacks a published epoch,
// the other keys that the password opens are tried: a password may have been
// added anew because its older key could not be given what is new.
func (r *Repo) tryOthers(ctx context.Context, u *unlocked, keys *unlocker) {
	r.use(ctx, u)
	for r.lacking() != 0 && !u.writes {
		other, err := keys.next()
		if err != nil {
			r.opt.Logf("what is sealed for key epoch %d does not open with this password: %v", r.lacking(), err)
			return
		}
		if other.ring.Repo != u.ring.Repo || other.writes {
			continue
		}
		for _, e := range other.ring.Epochs {
			if err := r.k.AddEpoch(e); err != nil {
				r.opt.Logf("%s: passed over: %v", keyName(other.id), err)
			}
		}
		r.use(ctx, other)
	}
}

// epochEvery is how often the repository is asked for an epoch that is not here.
const epochEvery = 10 * time.Second

// findEpoch is asked when something is sealed for an epoch that does not open:
// the keys may have been rotated since they were read.
func (r *Repo) findEpoch(epoch uint32) bool {
	r.keysMu.Lock()
	defer r.keysMu.Unlock()
	if r.k.Opens(epoch) {
		return true // somebody else has asked
	}
	now := r.opt.Now()
	if d := now.Sub(r.asked); d >= 0 && d < epochEvery {
		return false
	}
	r.asked = now
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := r.readEpochs(ctx)
	if err == nil {
		err = r.readGrants(ctx)
	}
	if err != nil {
		r.opt.Logf("looking for key epoch %d: %v", epoch, err)
	}
	return r.k.Opens(epoch)
}

// renewKeys learns which epoch to seal for, if the keys were rotated since.
func (r *Repo) renewKeys(ctx context.Context) error {
	r.keysMu.Lock()
	defer r.keysMu.Unlock()
	return r.readEpochs(ctx)
}

// readEpochs reads what the newest config says of epochs, if it was not read yet.
// The caller holds r.keysMu.
func (r *Repo) readEpochs(ctx context.Context) error {
	infos, err := r.names(ctx, "config/")
	if err != nil {
		return err
	}
	newer := false
	for part := range infos {
		n, err := strconv.Atoi(part)
		newer = newer || err == nil && n > r.configN
	}
	if !newer {
		return nil
	}
	cfg, n, err := r.newestConfig(ctx)
	if err != nil {
		return err
	}
	if n <= r.configN {
		return nil // junk, or what somebody put back
	}
	r.configN = n
	return r.publish(cfg)
}
