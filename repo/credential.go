package repo

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// A credential is a key that lies in a file of its own instead of in the
// repository: what a write-only node has, and what the owner keeps elsewhere in
// append-only mode. The file is one PEM block (RFC 7468):
//
//	-----BEGIN CUTBANK CREDENTIAL-----
//	Opens: what it is for
//	Repository: ID
//	Writer: ID
//
//	base64 of an object of kind 'K', as it would lie at keys/<id>
//	-----END CUTBANK CREDENTIAL-----
//
// The lines in front are for people, nothing relies on them. Version and closing
// hash are those of the object; its ring, wrapped by a password or not, holds no
// more than the credential is to open.
const credentialType = "CUTBANK CREDENTIAL"

// maxCredential bounds a credential's file in bytes.
const maxCredential = 1 << 20

// Roles of a ring, as keyFile has them.
const (
	roleMember = "member"
	roleWriter = "writer"
)

// roleOf is what a keyFile says of a ring; empty for the owner's.
func roleOf(ring *seal.Ring) string {
	switch {
	case writeOnly(ring):
		return roleWriter
	case len(ring.Seed) == 0:
		return roleMember
	}
	return ""
}

// writeOnlyRing returns what a write-only node may know: how chunks are named
// and listed, whom to seal for and whom to believe, and its own seed. What a
// newer program may have added is left out, for nobody knows what it opens.
func writeOnlyRing(full *seal.Ring, seed []byte) *seal.Ring {
	ring := &seal.Ring{V: full.V, Repo: full.Repo, Chunk: full.Chunk, Tree: full.Tree, List: full.List, Owner: full.Owner, Write: seed}
	for _, e := range full.Epochs {
		ring.Epochs = append(ring.Epochs, seal.Epoch{N: e.N, Public: e.Public})
	}
	return ring
}

// newCredential wraps a ring for a file; an empty password leaves it open.
func newCredential(ring *seal.Ring, password, label string, now time.Time, random io.Reader) ([]byte, error) {
	k, err := ring.Open()
	if err != nil {
		return nil, err
	}
	id, err := newID(random)
	if err != nil {
		return nil, err
	}
	p, err := wrapRing(ring, id, password, label, now, random)
	if err != nil {
		return nil, err
	}
	opens := "everything, as the owner; keep it apart from the repository"
	if writeOnly(ring) {
		opens = "nothing; it adds snapshots"
	}
	return pem.EncodeToMemory(&pem.Block{Type: credentialType, Bytes: p,
		Headers: map[string]string{"Opens": opens, "Repository": ring.Repo, "Writer": k.Self().String()}}), nil
}

// openCredential opens a credential. A wrong password, and what is
// no credential, is ErrKey; damage chunk.ErrCorrupt.
func openCredential(p []byte, password func() (string, error)) (*unlocked, error) {
	if len(p) > maxCredential {
		return nil, fmt.Errorf("the credential has %d bytes, which none has: %w", len(p), ErrKey)
	}
	block, _ := pem.Decode(p)
	if block == nil || block.Type != credentialType {
		return nil, fmt.Errorf("the credential is none: `cutbank writer add` makes one: %w", ErrKey)
	}
	o, err := seal.Parse(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the credential: %w", formatError(err))
	}
	f := &keyFile{}
	if o.Kind != seal.KindKey {
		return nil, fmt.Errorf("the credential holds no key: %w", chunk.ErrCorrupt)
	}
	if err := decode("the credential", o.Body, f); err != nil {
		return nil, err
	}
	secret := ""
	if f.KDF != "none" {
		if password == nil {
			return nil, fmt.Errorf("the credential needs a password: %w", ErrKey)
		}
		if secret, err = password(); err != nil {
			return nil, err
		}
	}
	u, err := f.unlock(func() ([32]byte, error) { return f.stretch(secret) })
	if err != nil {
		return nil, fmt.Errorf("the credential: %w", err)
	}
	return u, nil
}

// openWith opens a repository with a credential.
func openWith(ctx context.Context, b backend.Backend, opt Options) (*Repo, error) {
	u, err := openCredential(opt.Credential, opt.Password)
	if err != nil {
		return nil, err
	}
	k, err := u.ring.Open()
	if err != nil {
		return nil, fmt.Errorf("the credential: %w", formatError(err))
	}
	r, err := open(ctx, b, k, u.id, opt)
	if err != nil {
		return nil, foreign(ctx, b, u.ring.Repo, err)
	}
	r.use(ctx, u)
	return r, nil
}

// foreign tells a credential of another repository from damage: err is what
// opening with it came to. The objects of one repository prove themselves whole
// without a key, and yet do not open with another's.
func foreign(ctx context.Context, b backend.Backend, repo string, err error) error {
	if errors.Is(err, ErrFormat) || !errors.Is(err, seal.ErrNoKey) && !errors.Is(err, chunk.ErrCorrupt) {
		return err
	}
	for info, lerr := range b.List(ctx, "config/") {
		if lerr != nil {
			return err
		}
		p, gerr := b.Get(ctx, info.Name, 0, -1)
		if gerr != nil || !strings.HasPrefix(info.Name, "config/") {
			return err
		}
		if _, perr := seal.Parse(p); perr != nil {
			return err
		}
	}
	return fmt.Errorf("the credential is for repository %s, and %s is another one: %w", repo, b, ErrKey)
}

// writeOnly reports whether a ring opens nothing that names files or holds their
// bytes.
func writeOnly(ring *seal.Ring) bool {
	for _, e := range ring.Epochs {
		if len(e.Private) > 0 {
			return false
		}
	}
	return true
}

// WriteOnly reports whether the repository was opened with a credential that
// adds snapshots and reads none: Snapshots then returns none, and what reads
// contents fails with seal.ErrNoKey.
func (r *Repo) WriteOnly() bool {
	// A password whose key epochs cannot be read opens as little, but not on
	// purpose: there all that does not open is an error.
	return writeOnly(r.k.Ring()) && (r.me == nil || r.me.writes)
}

// Readable is the error for what reads snapshots where the keys cannot; nil if
// they can.
func (r *Repo) Readable() error {
	if !r.WriteOnly() {
		return nil
	}
	return fmt.Errorf("this credential only adds snapshots and can read none: use a password or the owner's credential: %w", seal.ErrNoKey)
}
