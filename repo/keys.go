package repo

import (
	"bytes"
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// keyFile is the body of keys/<id>: the ring, wrapped by one password. The key
// is argon2id (RFC 9106) of the password; the ring is sealed by AES-256-GCM
// with a 12-byte nonce in front and "cutbank key" and the ID as additional data.
// KDF "none" holds the ring as it is, and a salt that counts for Public only.
//
// Public, younger than the rest, is an MLKEM768-X25519 public key (see
// seal.Recipient). The seed of its private half is BLAKE3-derived, for "cutbank
// v1 key recipient", from what argon2id returned; with KDF "none" from the salt
// and the ring. So the owner can give later key epochs to every password
// without knowing any: see keyGrant. A file with Public is signed by the owner
// in its envelope, and older ones are not; a write-only ring has none.
//
// Spare, as young, is another key that the password comes to, sealed for the
// owner: with it the owner can put another ring in this one's place. It is
// BLAKE3-derived, for "cutbank v1 spare key", from what argon2id returned. Unlike
// Public it is a secret, so who has only the storage cannot put a ring of his own
// there. It is sealed as a ring is, under the key that is derived from the
// owner's seed and the salt (seal.Keys.LocalKey, "spare key"). The owner's seed
// stays when keys are rotated, so who has an old ring opens it: a ring that is
// sealed by it has no private epoch key, and is given them all.
type keyFile struct {
	V       int       `json:"v"`
	ID      ID        `json:"id"`
	Created time.Time `json:"created"`
	Label   string    `json:"label,omitempty"`
	Role    string    `json:"role,omitempty"` // of the ring: owner (or empty), member (without the owner's seed), writer (write-only)
	KDF     string    `json:"kdf"`
	Salt    []byte    `json:"salt,omitempty"`
	Passes  uint32    `json:"passes,omitempty"`
	Memory  uint32    `json:"memory_kib,omitempty"`
	Threads uint8     `json:"threads,omitempty"`
	Ring    []byte    `json:"ring"`
	Epoch   uint32    `json:"epoch,omitempty"` // the newest in the ring
	Public  []byte    `json:"public,omitempty"`
	Spare   []byte    `json:"spare,omitempty"`

	object *seal.Object // that it was read from
}

// kdfGiven is argon2id too, but the ring is sealed by the spare key: the owner
// made the file without knowing the password, in the place of another one.
const kdfGiven = "argon2id-given"

// RFC 9106, section 4, second recommended option.
const (
	kdfPasses  = 3
	kdfMemory  = 64 << 10
	kdfThreads = 4
)

// stretch returns what argon2id makes of the password.
func (f *keyFile) stretch(password string) ([32]byte, error) {
	// The bounds keep a damaged or hostile file from taking all memory.
	if f.KDF != "argon2id" && f.KDF != kdfGiven || f.Passes == 0 || f.Passes > 64 || f.Memory > 2<<20 || f.Threads == 0 {
		return [32]byte{}, fmt.Errorf("%s: key derivation %q with %d passes, %d KiB: %w", keyName(f.ID), f.KDF, f.Passes, f.Memory, ErrFormat)
	}
	return [32]byte(argon2.IDKey([]byte(password), f.Salt, f.Passes, f.Memory, f.Threads, 32)), nil
}

// recipient returns the key pair that Public is, or would be, the public half
// of. stretched is not needed for KDF "none".
func (f *keyFile) recipient(stretched [32]byte) (*seal.Recipient, error) {
	const purpose = "cutbank v1 key recipient"
	if f.KDF == "none" {
		return seal.NewRecipient(chunk.Derive(purpose, f.Salt, f.Ring))
	}
	return seal.NewRecipient(chunk.Derive(purpose, stretched[:]))
}

// cost is in proportion to what trying a password takes.
func (f *keyFile) cost() uint64 {
	if f.KDF == "none" {
		return 0
	}
	return max(1, uint64(f.Passes)*uint64(f.Memory))
}

func keyGCM(key [32]byte) (cipher.AEAD, error) {
	b, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

func (f *keyFile) ad() []byte { return []byte("cutbank key" + f.ID.String()) }

// wrapRing returns the object keys/<id>, signed with the ring itself. An empty
// password leaves the ring open to who can read the object.
func wrapRing(r *seal.Ring, id ID, password, label string, now time.Time, random io.Reader) ([]byte, error) {
	k, err := r.Open()
	if err != nil {
		return nil, err
	}
	p, _, err := newKey(k, r, id, password, label, now, random)
	return p, err
}

// newKey is wrapRing signed by k, the owner's if the key is to be given later
// epochs; it returns the key opened, too.
func newKey(k *seal.Keys, r *seal.Ring, id ID, password, label string, now time.Time, random io.Reader) ([]byte, *unlocked, error) {
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, nil, err
	}
	f := keyFile{V: 1, ID: id, Created: now.UTC(), Label: label, KDF: "none", Salt: make([]byte, 32), Ring: plain, Epoch: k.Newest()}
	if _, err := io.ReadFull(random, f.Salt); err != nil {
		return nil, nil, err
	}
	var stretched [32]byte
	if password != "" {
		f.KDF, f.Passes, f.Memory, f.Threads = "argon2id", kdfPasses, kdfMemory, kdfThreads
		if stretched, err = f.stretch(password); err != nil {
			return nil, nil, err
		}
		if f.Ring, err = f.lock(stretched, plain, random); err != nil {
			return nil, nil, err
		}
	}
	u := &unlocked{id: id, ring: r, writes: roleOf(r) == roleWriter, open: password == ""}
	if u.recipient, err = f.recipient(stretched); err != nil {
		return nil, nil, err
	}
	if f.Role = roleOf(r); f.Role != roleWriter && k.Self() == k.Owner() {
		f.Public = u.recipient.Public()
		if password != "" {
			if err := f.setSpare(k, spareKey(stretched), random); err != nil {
				return nil, nil, err
			}
		}
	}
	body, err := json.Marshal(f)
	if err != nil {
		return nil, nil, err
	}
	if f.Public == nil {
		return seal.SealClear(seal.KindKey, body), u, nil
	}
	p, err := k.Seal(keyName(id), seal.KindKey, seal.Clear, body, random)
	return p, u, err
}

// lock seals a ring, or the spare key.
func (f *keyFile) lock(key [32]byte, plain []byte, random io.Reader) ([]byte, error) {
	nonce := make([]byte, 12)
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, err
	}
	g, err := keyGCM(key)
	if err != nil {
		return nil, err
	}
	return g.Seal(nonce, nonce, plain, f.ad()), nil
}

func parseKey(name string, p []byte) (*keyFile, error) {
	o, err := seal.Parse(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, formatError(err))
	}
	f := &keyFile{}
	if o.Kind != seal.KindKey {
		return nil, fmt.Errorf("%s: is no key: %w", name, chunk.ErrCorrupt)
	}
	if err := decode(name, o.Body, f); err != nil {
		return nil, err
	}
	if keyName(f.ID) != name {
		return nil, fmt.Errorf("%s: is no key of that name: %w", name, chunk.ErrCorrupt)
	}
	f.object = o
	return f, nil
}

func keyName(id ID) string { return "keys/" + id.String() }

// unlocked is a key that was opened, and what is needed to open what is given to
// it later: never the password.
type unlocked struct {
	id        ID
	ring      *seal.Ring
	recipient *seal.Recipient
	writes    bool // it is a write-only node's: nobody gives it anything
	open      bool // it needs no password: its ring lies beside the data
}

// unwrap opens the ring; a wrong password is ErrKey.
func (f *keyFile) unwrap(password string) (*seal.Ring, error) {
	u, err := f.unlock(func() ([32]byte, error) { return f.stretch(password) })
	if err != nil {
		return nil, err
	}
	return u.ring, nil
}

// unlock opens the key with what its password comes to; a wrong one is ErrKey.
func (f *keyFile) unlock(stretch func() ([32]byte, error)) (*unlocked, error) {
	plain, stretched := f.Ring, [32]byte{}
	if f.KDF != "none" {
		var err error
		if stretched, err = stretch(); err != nil {
			return nil, err
		}
		if plain, err = f.open(stretched); err != nil {
			return nil, err
		}
	}
	u := &unlocked{id: f.ID, ring: &seal.Ring{}, open: f.KDF == "none"}
	if err := json.Unmarshal(plain, u.ring); err != nil {
		return nil, fmt.Errorf("%s: %w", keyName(f.ID), chunk.ErrCorrupt)
	}
	// The role is not proven. Where a ring is given its epochs later, believing
	// it would make a repository look empty.
	u.writes = f.Role == roleWriter && f.KDF != kdfGiven && writeOnly(u.ring)
	var err error
	u.recipient, err = f.recipient(stretched)
	return u, err
}

// open returns the ring.
func (f *keyFile) open(stretched [32]byte) ([]byte, error) {
	if f.KDF == kdfGiven {
		stretched = spareKey(stretched)
	}
	return f.openBox(stretched, f.Ring)
}

func spareKey(stretched [32]byte) [32]byte { return chunk.Derive("cutbank v1 spare key", stretched[:]) }

// openBox opens what lock sealed; another key is ErrKey.
func (f *keyFile) openBox(key [32]byte, sealed []byte) ([]byte, error) {
	g, err := keyGCM(key)
	if err != nil {
		return nil, err
	}
	if len(sealed) < 12 {
		return nil, fmt.Errorf("%s: %w", keyName(f.ID), chunk.ErrCorrupt)
	}
	plain, err := g.Open(nil, sealed[:12], sealed[12:], f.ad())
	if err != nil {
		return nil, ErrKey
	}
	return plain, nil
}

// setSpare keeps the spare key for the owner, whose keys k are.
func (f *keyFile) setSpare(k *seal.Keys, spare [32]byte, random io.Reader) error {
	key, err := k.LocalKey("spare key", f.Salt)
	if err != nil {
		return err
	}
	f.Spare, err = f.lock([32]byte(key), spare[:], random)
	return err
}

// spare opens what setSpare kept.
func (f *keyFile) spare(k *seal.Keys) (spare [32]byte, err error) {
	key, err := k.LocalKey("spare key", f.Salt)
	if err != nil {
		return spare, err
	}
	p, err := f.openBox([32]byte(key), f.Spare)
	if err != nil || len(p) != len(spare) {
		return spare, fmt.Errorf("%s: its spare key does not open: %w", keyName(f.ID), chunk.ErrCorrupt)
	}
	return [32]byte(p), nil
}

// unlocker tries the keys of a repository one by one. The password is asked for
// once, and only if a key needs one. A damaged key is no obstacle as long as
// another opens. With noOpen a key that lies open is not taken: who has a
// password means a repository that is protected by it, and anybody who can write
// there could have put an open key of their own.
type unlocker struct {
	b         backend.Backend
	files     []*keyFile // still to be tried
	damaged   error
	password  func() (string, error)
	asked     bool
	secret    string
	noOpen    bool
	open, all int // keys that lie open and were passed over, and all
}

func newUnlocker(ctx context.Context, b backend.Backend, password func() (string, error), noOpen bool) (*unlocker, error) {
	files, damaged, err := readKeys(ctx, b)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		if damaged != nil {
			return nil, damaged
		}
		return nil, noStart(ctx, b, "keys")
	}
	return &unlocker{b: b, files: files, damaged: damaged, password: password, noOpen: noOpen, all: len(files)}, nil
}

// next opens one more key. When none is left that opens it is ErrKey. It costs
// an argon2id for each password that it tries.
func (u *unlocker) next() (*unlocked, error) {
	for len(u.files) > 0 {
		f := u.files[0]
		u.files = u.files[1:]
		if f.KDF == "none" && u.noOpen {
			u.open++
			continue
		}
		if f.KDF != "none" && !u.asked {
			if u.password == nil {
				return nil, fmt.Errorf("%s: a password is needed: %w", u.b, ErrKey)
			}
			var err error
			if u.secret, err = u.password(); err != nil {
				return nil, err
			}
			u.asked = true
		}
		got, err := f.unlock(func() ([32]byte, error) { return f.stretch(u.secret) })
		if err == nil {
			return got, nil
		}
		if !errors.Is(err, ErrKey) {
			u.damaged = errors.Join(u.damaged, err)
		}
	}
	if u.damaged != nil {
		return nil, fmt.Errorf("%w; and %w", u.damaged, ErrKey)
	}
	if u.open == u.all {
		return nil, fmt.Errorf("%s has no key with a password, only one that lies open beside the data; if that is meant, give no password: %w", u.b, ErrKey)
	}
	return nil, ErrKey
}

// noStart tells a repository that has lost what it begins with from a folder
// that is none, or in which an init did not come far.
func noStart(ctx context.Context, b backend.Backend, lost string) error {
	for info, err := range b.List(ctx, "") {
		if err != nil {
			return err
		}
		prefix, _, ok := strings.Cut(info.Name, "/")
		if ok && kinds[prefix] != 0 && prefix != "keys" {
			return fmt.Errorf("%s holds %s but has lost %s/: %w", b, info.Name, lost, errIncomplete)
		}
	}
	return fmt.Errorf("%s: %w", b, ErrNoRepo)
}

// readKeys returns the key files, and what is damaged. Those that need no password
// come first, then those that cost least to try: nobody can put one there that
// keeps the others waiting for long.
func readKeys(ctx context.Context, b backend.Backend) (files []*keyFile, damaged, err error) {
	for info, err := range b.List(ctx, "keys/") {
		if err != nil {
			return nil, nil, err
		}
		if _, _, grant := grantID(info.Name); grant {
			continue
		}
		if err := keySize(info); err != nil {
			damaged = errors.Join(damaged, err)
			continue
		}
		p, err := b.Get(ctx, info.Name, 0, -1)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, nil, err
		}
		f, err := parseKey(info.Name, p)
		if err != nil {
			damaged = errors.Join(damaged, err)
			continue
		}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *keyFile) int {
		return cmp.Or(cmp.Compare(a.cost(), b.cost()), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return files, damaged, nil
}

// keySize refuses what is too large for a key or a grant.
func keySize(info backend.Info) error {
	if info.Size <= maxCredential {
		return nil
	}
	return fmt.Errorf("%s: %d bytes are too much for a key: %w", info.Name, info.Size, chunk.ErrCorrupt)
}

// ownerOnly refuses what only the owner's key may do.
func (r *Repo) ownerOnly(what string) error {
	if r.readOnly != nil {
		return r.readOnly
	}
	if r.k.Self() == r.k.Owner() {
		return nil
	}
	return fmt.Errorf("%s needs the owner's key, and this one is writer %s's: %w", what, r.k.Self(), seal.ErrNoKey)
}
