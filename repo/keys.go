package repo

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
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
// KDF "none" holds the ring as it is.
type keyFile struct {
	V       int       `json:"v"`
	ID      ID        `json:"id"`
	Created time.Time `json:"created"`
	Label   string    `json:"label,omitempty"`
	Role    string    `json:"role,omitempty"` // of the ring: owner (or empty), writer
	KDF     string    `json:"kdf"`
	Salt    []byte    `json:"salt,omitempty"`
	Passes  uint32    `json:"passes,omitempty"`
	Memory  uint32    `json:"memory_kib,omitempty"`
	Threads uint8     `json:"threads,omitempty"`
	Ring    []byte    `json:"ring"`
}

// RFC 9106, section 4, second recommended option.
const (
	kdfPasses  = 3
	kdfMemory  = 64 << 10
	kdfThreads = 4
)

// KeyInfo describes a key of the repository.
type KeyInfo struct {
	ID      ID
	Created time.Time
	Label   string
	KDF     string
	Current bool // the one that the repository was opened with
}

func (f *keyFile) aead(password string) (cipher.AEAD, error) {
	// The bounds keep a damaged or hostile file from taking all memory.
	if f.KDF != "argon2id" || f.Passes == 0 || f.Passes > 64 || f.Memory > 2<<20 || f.Threads == 0 {
		return nil, fmt.Errorf("key derivation %q with %d passes, %d KiB: %w", f.KDF, f.Passes, f.Memory, ErrFormat)
	}
	b, err := aes.NewCipher(argon2.IDKey([]byte(password), f.Salt, f.Passes, f.Memory, f.Threads, 32))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

func (f *keyFile) ad() []byte { return []byte("cutbank key" + f.ID.String()) }

// wrapRing returns the object keys/<id>. An empty password leaves the ring
// open to who can read the object.
func wrapRing(r *seal.Ring, id ID, password, label string, now time.Time, random io.Reader) ([]byte, error) {
	plain, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	f := keyFile{V: 1, ID: id, Created: now.UTC(), Label: label, KDF: "none", Ring: plain}
	if password != "" {
		f.KDF, f.Passes, f.Memory, f.Threads = "argon2id", kdfPasses, kdfMemory, kdfThreads
		f.Salt = make([]byte, 32)
		nonce := make([]byte, 12)
		if _, err := io.ReadFull(random, f.Salt); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(random, nonce); err != nil {
			return nil, err
		}
		g, err := f.aead(password)
		if err != nil {
			return nil, err
		}
		f.Ring = g.Seal(nonce, nonce, plain, f.ad())
	}
	body, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return seal.SealClear(seal.KindKey, body), nil
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
	return f, nil
}

func keyName(id ID) string { return "keys/" + id.String() }

// unwrap opens the ring; a wrong password is ErrKey.
func (f *keyFile) unwrap(password string) (*seal.Ring, error) {
	plain := f.Ring
	if f.KDF != "none" {
		g, err := f.aead(password)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", keyName(f.ID), err)
		}
		if len(f.Ring) < 12 {
			return nil, fmt.Errorf("%s: %w", keyName(f.ID), chunk.ErrCorrupt)
		}
		if plain, err = g.Open(nil, f.Ring[:12], f.Ring[12:], f.ad()); err != nil {
			return nil, ErrKey
		}
	}
	r := &seal.Ring{}
	if err := json.Unmarshal(plain, r); err != nil {
		return nil, fmt.Errorf("%s: %w", keyName(f.ID), chunk.ErrCorrupt)
	}
	return r, nil
}

// openRing tries all keys. Password is asked for once, and only if a key needs
// one. A damaged key is no obstacle as long as another opens. With noOpen a key
// that lies open is not taken: who has a password means a repository that is
// protected by it, and anybody who can write there could have put an open key
// of their own.
func openRing(ctx context.Context, b backend.Backend, password func() (string, error), noOpen bool) (*seal.Ring, ID, error) {
	files, damaged, err := readKeys(ctx, b)
	if err != nil {
		return nil, ID{}, err
	}
	if len(files) == 0 {
		if damaged != nil {
			return nil, ID{}, damaged
		}
		return nil, ID{}, noStart(ctx, b, "keys")
	}
	asked, secret, open := false, "", 0
	for _, f := range files {
		if f.KDF == "none" && noOpen {
			open++
			continue
		}
		if f.KDF != "none" && !asked {
			if password == nil {
				return nil, ID{}, fmt.Errorf("%s: a password is needed: %w", b, ErrKey)
			}
			if secret, err = password(); err != nil {
				return nil, ID{}, err
			}
			asked = true
		}
		r, err := f.unwrap(secret)
		if err == nil {
			return r, f.ID, nil
		}
		if !errors.Is(err, ErrKey) {
			damaged = errors.Join(damaged, err)
		}
	}
	if damaged != nil {
		return nil, ID{}, fmt.Errorf("%w; and %w", damaged, ErrKey)
	}
	if open == len(files) {
		return nil, ID{}, fmt.Errorf("%s has no key with a password, only one that lies open beside the data; if that is meant, give no password: %w", b, ErrKey)
	}
	return nil, ID{}, ErrKey
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

// readKeys returns the key files, those that need no password first, and what
// is damaged.
func readKeys(ctx context.Context, b backend.Backend) (files []*keyFile, damaged, err error) {
	for info, err := range b.List(ctx, "keys/") {
		if err != nil {
			return nil, nil, err
		}
		p, err := b.Get(ctx, info.Name, 0, -1)
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
	sort.Slice(files, func(i, j int) bool {
		if (files[i].KDF == "none") != (files[j].KDF == "none") {
			return files[i].KDF == "none"
		}
		return files[i].ID.String() < files[j].ID.String()
	})
	return files, damaged, nil
}

// Keys lists the keys, and what is damaged among them.
func (r *Repo) Keys(ctx context.Context) ([]KeyInfo, error) {
	files, damaged, err := readKeys(ctx, r.b)
	if err != nil {
		return nil, err
	}
	var infos []KeyInfo
	for _, f := range files {
		infos = append(infos, KeyInfo{f.ID, f.Created, f.Label, f.KDF, f.ID == r.key})
	}
	return infos, damaged
}

// AddKey adds a password.
func (r *Repo) AddKey(ctx context.Context, password, label string) (ID, error) {
	if password == "" {
		return ID{}, errors.New("an empty password protects nothing: give one")
	}
	id, err := r.newID()
	if err != nil {
		return id, err
	}
	p, err := wrapRing(r.k.Ring(), id, password, label, r.opt.Now(), r.opt.Random)
	if err != nil {
		return id, err
	}
	return id, r.b.Put(ctx, keyName(id), p)
}

// RemoveKey removes the key whose ID starts with prefix. The last key stays,
// for without it nothing could be read.
func (r *Repo) RemoveKey(ctx context.Context, prefix string) (ID, error) {
	infos, damaged := r.Keys(ctx)
	if len(infos) == 0 && damaged != nil {
		return ID{}, damaged
	}
	var found []KeyInfo
	for _, i := range infos {
		if prefix != "" && strings.HasPrefix(i.ID.String(), prefix) {
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 0:
		return ID{}, fmt.Errorf("no key %q: `cutbank key list` shows them", prefix)
	case len(found) > 1:
		return ID{}, fmt.Errorf("%q fits %d keys: give more digits", prefix, len(found))
	case len(infos) == 1:
		return ID{}, fmt.Errorf("%s is the only key that opens: without it nothing could be read; add another first", found[0].ID)
	}
	return found[0].ID, r.b.Remove(ctx, keyName(found[0].ID))
}
