package repo

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// ErrRefused says that the owner does not allow it: a writer whose right has
// ended or does not reach so far, or a record that such a writer signed. Such a
// record is whole, and counts for nothing: it is left out of Snapshots, and
// needs no chunk.
var ErrRefused = errors.New("the repository's owner does not allow it")

// Rights of a writer. Without any it may write.
const (
	RightWrite   = "write"   // add snapshots
	RightRead    = "read"    // its ring opens everything; for people who look
	RightTrusted = "trusted" // others lean on its packs before the owner verified them
)

// registered is what is known of a writer.
type registered struct {
	Writer
	n int // of the object that counts
	// newer is why a newer word of the owner about this writer could not be
	// read; nil if there is none. Nothing is refused then: it might be allowed.
	newer error
}

// readWriters makes known who else may sign. Of each writer the newest object
// that proves itself counts. The objects are immutable, and read once.
func (r *Repo) readWriters(ctx context.Context) error {
	infos, err := r.names(ctx, "writers/")
	if err != nil {
		return err
	}
	r.writersMu.Lock()
	defer r.writersMu.Unlock()
	numbers := map[string][]int{}
	for name := range infos {
		id, num, _ := strings.Cut(name, "-")
		if n, err := strconv.Atoi(num); err == nil && n > 0 && strconv.Itoa(n) == num {
			numbers[id] = append(numbers[id], n)
		}
	}
	for name := range r.writerObjects {
		if _, ok := infos[strings.TrimPrefix(name, "writers/")]; !ok {
			delete(r.writerObjects, name)
		}
	}
	found := map[string]registered{}
	for id, ns := range numbers {
		slices.Sort(ns)
		var reg registered
		for _, n := range slices.Backward(ns) {
			w, err := r.writer(ctx, fmt.Sprintf("writers/%s-%d", id, n), id)
			if err == nil {
				reg.Writer, reg.n = w, n
				r.k.Trust(w.Public)
				found[id] = reg
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.opt.Logf("%v", err)
			if errors.Is(err, errNotOwners) {
				continue // so it is no word of the owner's that cannot be read
			}
			if reg.newer == nil || errors.Is(err, ErrFormat) {
				reg.newer = err
			}
		}
	}
	r.writers = found
	return nil
}

// writerNames returns the names of the writers' objects that were read.
func (r *Repo) writerNames() map[string]struct{} {
	r.writersMu.RLock()
	defer r.writersMu.RUnlock()
	names := make(map[string]struct{}, len(r.writerObjects))
	for name := range r.writerObjects {
		names[name] = struct{}{}
	}
	return names
}

// writer reads one object. The caller holds r.writersMu.
func (r *Repo) writer(ctx context.Context, name, id string) (w Writer, err error) {
	if w, ok := r.writerObjects[name]; ok {
		return w, nil
	}
	o, err := r.ownersObject(ctx, name, seal.KindWriter)
	if err != nil {
		return w, err
	}
	if err := decode(name, o.Body, &w); err != nil {
		return w, err
	}
	if len(w.Public) != ed25519.PublicKeySize || seal.WriterOf(w.Public).String() != id {
		return w, fmt.Errorf("%s: not what the owner signed for that writer: %w", name, chunk.ErrCorrupt)
	}
	r.writerObjects[name] = w
	return w, nil
}

func (r *Repo) registered(id string) (registered, bool) {
	r.writersMu.RLock()
	defer r.writersMu.RUnlock()
	w, ok := r.writers[id]
	return w, ok
}

// trustedWriters returns whose packs others may lean on unverified. Who was
// revoked is none of them: what such a writer stored since cannot be told from
// what it stored before.
func (r *Repo) trustedWriters() map[seal.WriterID]bool {
	r.writersMu.RLock()
	defer r.writersMu.RUnlock()
	trusted := map[seal.WriterID]bool{r.k.Owner(): true, r.k.Self(): true}
	for _, w := range r.writers {
		if slices.Contains(w.Rights, RightTrusted) && w.Revoked.IsZero() && w.newer == nil {
			trusted[seal.WriterOf(w.Public)] = true
		}
	}
	return trusted
}

// may reports whether the name fits one of the writer's globs.
func (w *Writer) may(name string) bool {
	return slices.ContainsFunc(w.Names, func(glob string) bool {
		ok, err := path.Match(glob, name)
		return ok && err == nil
	})
}

// allowed checks a record against what the owner allows its writer: ErrRefused
// if it counts for nothing. Any other error leaves the question open. The
// owner's own records are always allowed.
func (r *Repo) allowed(s *Snapshot) error {
	if s.Writer == r.k.Owner().String() {
		return nil
	}
	w, ok := r.registered(s.Writer)
	if !ok {
		return fmt.Errorf("signed by writer %s, whom this repository does not know: %w", s.Writer, seal.ErrNoKey)
	}
	if errors.Is(w.newer, ErrFormat) {
		return w.newer // it may take back what the older one allows
	}
	why := ""
	switch {
	case !w.may(s.Name):
		why = fmt.Sprintf("may not write snapshots named %q", s.Name)
	case !w.Revoked.IsZero() && !bytes.Equal(w.Accepted[s.ID], s.sum[:]):
		why = fmt.Sprintf("was revoked on %s, and this is not among what it had written", stamp(w.Revoked))
	case !w.Expires.IsZero() && s.Time.After(w.Expires):
		why = fmt.Sprintf("might write until %s, and this is of %s", stamp(w.Expires), stamp(s.Time))
	default:
		return nil
	}
	if w.newer != nil {
		return fmt.Errorf("writer %s %s, unless a newer word of the owner says otherwise, which cannot be read: %w", s.Writer, why, w.newer)
	}
	return fmt.Errorf("writer %s %s: %w", s.Writer, why, ErrRefused)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// MayWrite checks that these keys may still write, and snapshots of that name
// unless it is empty: ErrRefused if not. It asks the repository anew.
func (r *Repo) MayWrite(ctx context.Context, name string) error {
	if r.readOnly != nil {
		return r.readOnly
	}
	if err := r.readWriters(ctx); err != nil {
		return err
	}
	return r.mayWrite(name)
}

// mayWrite is MayWrite by what was last read.
func (r *Repo) mayWrite(name string) error {
	self := r.k.Self()
	if self == r.k.Owner() {
		return nil
	}
	if self == (seal.WriterID{}) {
		return fmt.Errorf("this key cannot sign: %w", seal.ErrNoKey)
	}
	w, ok := r.registered(self.String())
	switch {
	case !ok:
		return fmt.Errorf("this repository does not know writer %s, whose credential this is: %w", self, ErrRefused)
	case !w.Revoked.IsZero():
		return fmt.Errorf("writer %s was revoked on %s; the owner's `cutbank writer add` makes a new credential: %w", self, stamp(w.Revoked), ErrRefused)
	case !w.Expires.IsZero() && r.opt.Now().After(w.Expires):
		return fmt.Errorf("the credential of writer %s ended on %s; the owner's `cutbank writer add` makes a new one: %w", self, stamp(w.Expires), ErrRefused)
	case name != "" && !w.may(name):
		return fmt.Errorf("writer %s may not write snapshots named %q, only %s: %w", self, name, strings.Join(w.Names, ", "), ErrRefused)
	}
	return nil
}

// NewWriter says what a new writer may do.
type NewWriter struct {
	Names   []string  // globs of snapshot names, as path.Match has them; required
	Expires time.Time // zero: never
	Trusted bool
	Note    string // for people
}

// AddWriter registers a new writer and makes its write-only credential. save is
// given the credential and keeps it; it is called before the writer is
// registered, so that after an error at most a credential is left that opens
// nothing, unless the registration comes late (Writers tells). Only the owner may.
func (r *Repo) AddWriter(ctx context.Context, nw NewWriter, save func(credential []byte) error) (seal.WriterID, error) {
	var id seal.WriterID
	if err := r.ownerOnly("adding a writer"); err != nil {
		return id, err
	}
	if len(nw.Names) == 0 {
		return id, errors.New("a writer needs a name that it may write, such as web-*")
	}
	for _, glob := range nw.Names {
		if _, err := path.Match(glob, ""); err != nil || glob == "" {
			return id, fmt.Errorf("%q is no pattern of names: write it like web-* or db[0-9]", glob)
		}
	}
	if !nw.Expires.IsZero() && !nw.Expires.After(r.opt.Now()) {
		return id, fmt.Errorf("%s is over already", stamp(nw.Expires))
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(r.opt.Random, seed); err != nil {
		return id, fmt.Errorf("random seed: %w", err)
	}
	w := Writer{V: 1, Public: publicOf(seed), Names: nw.Names, Rights: []string{RightWrite}, Note: nw.Note, Expires: nw.Expires.UTC()}
	if nw.Trusted {
		w.Rights = append(w.Rights, RightTrusted)
	}
	id = seal.WriterOf(w.Public)
	cred, err := newCredential(writeOnlyRing(r.k.Ring(), seed), "", nw.Note, r.opt.Now(), r.opt.Random)
	if err != nil {
		return id, err
	}
	if err := save(cred); err != nil {
		return id, err
	}
	return id, r.putWriter(ctx, id.String(), w)
}

func publicOf(seed []byte) ed25519.PublicKey {
	return ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// putWriter puts the next word about a writer. Junk under a high number must not
// use the numbers up, and junk under the next ones must not keep a writer from
// being revoked: nobody can take all those that may come behind them.
func (r *Repo) putWriter(ctx context.Context, id string, w Writer) error {
	known, _ := r.registered(id)
	n, err := r.after(known.n)
	for try := 1; err == nil; try++ {
		err := r.putJSON(ctx, fmt.Sprintf("writers/%s-%d", id, n), seal.KindWriter, seal.ForList, w)
		switch {
		case err == nil:
			return r.readWriters(ctx)
		case !errors.Is(err, fs.ErrExist) || try == 2*nextNumbers:
			return err
		case try < nextNumbers:
			n++ // another word came first; or this one, and its answer was lost
		default:
			var jump [4]byte
			if _, err := io.ReadFull(r.opt.Random, jump[:]); err != nil {
				return fmt.Errorf("random number: %w", err)
			}
			n += 1 + int(binary.LittleEndian.Uint32(jump[:])>>1)
		}
	}
	return err
}

// nextNumbers is how many numbers are tried one after the other.
const nextNumbers = 20

// WriterInfo describes a writer.
type WriterInfo struct {
	Writer
	ID        seal.WriterID
	Self      bool      // these keys are its
	Last      *Snapshot // the newest that counts; nil for none, or where these keys read none
	Snapshots int
	Newer     error // why a newer word about it cannot be read
}

// Writers lists who may write besides the owner, by note and ID. Damage found on
// the way comes beside the list.
func (r *Repo) Writers(ctx context.Context) ([]WriterInfo, error) {
	if err := r.readWriters(ctx); err != nil {
		return nil, err
	}
	snaps, damage := r.Snapshots(ctx)
	r.writersMu.RLock()
	byID := maps.Clone(r.writers)
	r.writersMu.RUnlock()
	var list []WriterInfo
	for id, w := range byID {
		info := WriterInfo{Writer: w.Writer, ID: seal.WriterOf(w.Public), Newer: w.newer}
		info.Self = info.ID == r.k.Self()
		for _, s := range snaps { // oldest first
			if s.Writer == id {
				info.Last = s
				info.Snapshots++
			}
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b WriterInfo) int {
		return cmp.Or(strings.Compare(a.Note, b.Note), strings.Compare(a.ID.String(), b.ID.String()))
	})
	return list, damage
}

// RevokeWriter ends the right of the writer whose ID starts with prefix, and
// returns how many of its snapshots stay valid: those that are there now and
// allowed. They are noted by ID and hash, so that nothing which it signs from now
// on counts, whatever time or ID it bears. Records that cannot be read now stay
// invalid too; they are the error that comes beside a valid result. A writer that
// is revoked already is no error. Only the owner may.
func (r *Repo) RevokeWriter(ctx context.Context, prefix string) (info WriterInfo, accepted int, err error) {
	if err := r.ownerOnly("revoking a writer"); err != nil {
		return info, 0, err
	}
	list, damage := r.Writers(ctx)
	if len(list) == 0 && damage != nil {
		return info, 0, damage
	}
	var found []WriterInfo
	for _, w := range list {
		if prefix != "" && strings.HasPrefix(w.ID.String(), prefix) {
			found = append(found, w)
		}
	}
	switch {
	case len(found) == 0:
		return info, 0, fmt.Errorf("writer %q: %w; `cutbank writer list` shows them", prefix, fs.ErrNotExist)
	case len(found) > 1:
		return info, 0, fmt.Errorf("%q fits %d writers: give more digits", prefix, len(found))
	}
	info = found[0]
	if !info.Revoked.IsZero() && info.Newer == nil {
		return info, len(info.Accepted), nil
	}
	// What a listing misses yet would be invalid for ever.
	if err := r.wait(ctx, r.lag()); err != nil {
		return info, 0, err
	}
	w := info.Writer
	w.Revoked, w.Accepted = r.opt.Now().UTC(), map[ID][]byte{}
	snaps, damage := r.Snapshots(ctx)
	for _, s := range snaps {
		if s.Writer == info.ID.String() {
			w.Accepted[s.ID] = bytes.Clone(s.sum[:])
		}
	}
	if err := r.putWriter(ctx, info.ID.String(), w); err != nil {
		return info, 0, err
	}
	info.Writer = w
	return info, len(w.Accepted), damage
}
