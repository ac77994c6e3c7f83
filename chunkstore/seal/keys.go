package seal

import (
	"crypto/ed25519"
	"crypto/hpke"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// ErrNoKey says that this ring lacks the secret that opens something: it is
// that of a write-only node, or the key epoch is newer than the ring.
var ErrNoKey = errors.New("this key does not open it")

// WriterID names who signed: the first 16 bytes of the BLAKE3 hash of the
// Ed25519 public key.
type WriterID [16]byte

func (w WriterID) String() string { return hex.EncodeToString(w[:]) }

// WriterOf returns the ID of a public key.
func WriterOf(pub ed25519.PublicKey) WriterID {
	d := chunk.Digest(pub)
	return WriterID(d[:16])
}

// Epoch is one generation of the key pair that wraps the keys of packs and
// records.
type Epoch struct {
	N       uint32 `json:"n"`
	Public  []byte `json:"public"`
	Private []byte `json:"private,omitempty"` // absent on write-only nodes

	Extra map[string]json.RawMessage `json:"-"`
}

// MarshalJSON writes the known fields and those of newer versions.
func (e *Epoch) MarshalJSON() ([]byte, error) {
	type plain Epoch
	return MergeJSON((*plain)(e), e.Extra)
}

// UnmarshalJSON reads an epoch and keeps what it does not know: a ring is
// written again under each new password.
func (e *Epoch) UnmarshalJSON(p []byte) error {
	type plain Epoch
	return SplitJSON(p, (*plain)(e), &e.Extra)
}

// Ring is the set of a repository's secrets, as it lies (wrapped by a
// password) in keys/<id>. Its JSON form is version 1; unknown fields of newer
// versions are kept by Extra.
type Ring struct {
	V      int     `json:"v"`
	Repo   string  `json:"repo"`            // ID of the repository, 32 hexadecimal digits
	Chunk  []byte  `json:"chunk"`           // hash key of data chunks, 32 bytes
	Tree   []byte  `json:"tree"`            // hash key of pages
	List   []byte  `json:"list"`            // seals what lists chunks, names no file
	Epochs []Epoch `json:"epochs"`          // oldest first
	Owner  []byte  `json:"owner"`           // the owner's public key
	Seed   []byte  `json:"seed,omitempty"`  // the owner's Ed25519 seed; absent on write-only nodes
	Write  []byte  `json:"write,omitempty"` // a writer's own Ed25519 seed, where it is not the owner

	Extra map[string]json.RawMessage `json:"-"`
}

var kem = hpke.MLKEM768X25519()

// NewRing makes the secrets of a new repository. Key pairs come from the
// system's randomness, all else from random.
func NewRing(repoID string, random io.Reader) (*Ring, error) {
	b := make([]byte, 4*32)
	if _, err := io.ReadFull(random, b); err != nil {
		return nil, fmt.Errorf("random bytes for new keys: %w", err)
	}
	r := &Ring{V: 1, Repo: repoID, Chunk: b[:32], Tree: b[32:64], List: b[64:96], Seed: b[96:128]}
	r.Owner = ed25519.NewKeyFromSeed(r.Seed).Public().(ed25519.PublicKey)
	return r, r.AddEpoch()
}

// AddEpoch appends a new key pair.
func (r *Ring) AddEpoch() error {
	n := uint32(1)
	if len(r.Epochs) > 0 {
		n = r.Epochs[len(r.Epochs)-1].N + 1
	}
	e, err := NewEpoch(n)
	if err != nil {
		return err
	}
	r.Epochs = append(r.Epochs, e)
	return nil
}

// NewEpoch makes the key pair of epoch n, out of the system's randomness.
func NewEpoch(n uint32) (Epoch, error) {
	priv, err := kem.GenerateKey()
	if err != nil {
		return Epoch{}, fmt.Errorf("new key epoch: %w", err)
	}
	pb, err := priv.Bytes()
	if err != nil {
		return Epoch{}, fmt.Errorf("new key epoch: %w", err)
	}
	return Epoch{N: n, Public: priv.PublicKey().Bytes(), Private: pb}, nil
}

// EpochOf returns epoch n with the public key that belongs to a private one. A
// key that is none is chunk.ErrCorrupt.
func EpochOf(n uint32, private []byte) (Epoch, error) {
	priv, err := kem.NewPrivateKey(private)
	if err != nil {
		return Epoch{}, fmt.Errorf("private key of epoch %d: %w", n, chunk.ErrCorrupt)
	}
	return Epoch{N: n, Public: priv.PublicKey().Bytes(), Private: private}, nil
}

// MarshalJSON writes the known fields and those of newer versions.
func (r *Ring) MarshalJSON() ([]byte, error) {
	type plain Ring
	return MergeJSON((*plain)(r), r.Extra)
}

// UnmarshalJSON reads a ring and keeps what it does not know.
func (r *Ring) UnmarshalJSON(p []byte) error {
	type plain Ring
	return SplitJSON(p, (*plain)(r), &r.Extra)
}

// Keys is a ring in use. It is safe for concurrent use.
type Keys struct {
	Data *chunk.Hasher // names data chunks
	Tree *chunk.Hasher // names pages

	repo   string
	owner  WriterID
	list   [32]byte
	signer ed25519.PrivateKey
	self   WriterID

	mu      sync.RWMutex
	ring    *Ring // immutable; replaced as epochs become known
	epochs  map[uint32]*epochKeys
	newest  uint32 // what is new is sealed for it
	unknown func(epoch uint32) bool
	writers map[WriterID]ed25519.PublicKey
}

// Open checks a ring and makes it usable. A ring of a newer program is
// ErrVersion, one that is not whole chunk.ErrCorrupt.
func (r *Ring) Open() (*Keys, error) {
	if r.V > 1 {
		return nil, fmt.Errorf("key ring of version %d: %w", r.V, ErrVersion)
	}
	if r.V != 1 || badSeed(r.Seed) || badSeed(r.Write) || len(r.Chunk) != 32 || len(r.Tree) != 32 || len(r.List) != 32 || len(r.Epochs) == 0 || len(r.Owner) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("key ring: %w", chunk.ErrCorrupt)
	}
	k := &Keys{
		Data: chunk.NewHasher([32]byte(r.Chunk)), Tree: chunk.NewHasher([32]byte(r.Tree)),
		repo: r.Repo, owner: WriterOf(r.Owner), ring: r, list: [32]byte(r.List), epochs: map[uint32]*epochKeys{}, writers: map[WriterID]ed25519.PublicKey{},
	}
	seed := r.Seed
	if len(r.Write) > 0 {
		seed = r.Write
	}
	if len(seed) > 0 {
		k.signer = ed25519.NewKeyFromSeed(seed)
		k.self = WriterOf(k.signer.Public().(ed25519.PublicKey))
		k.writers[k.self] = k.signer.Public().(ed25519.PublicKey)
	}
	k.writers[WriterOf(r.Owner)] = r.Owner
	for i := range r.Epochs {
		e := &r.Epochs[i]
		ek, err := e.open()
		if err != nil {
			return nil, fmt.Errorf("key ring, %w", err)
		}
		k.epochs[e.N] = ek
		k.newest = max(k.newest, e.N)
	}
	return k, nil
}

func badSeed(seed []byte) bool { return len(seed) != 0 && len(seed) != ed25519.SeedSize }

// Ring returns the secrets themselves, to wrap them under another password. It
// is not to be changed; what becomes known later is in another Ring.
func (k *Keys) Ring() *Ring {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.ring
}

// Self is who these keys sign as; zero if they cannot sign.
func (k *Keys) Self() WriterID { return k.self }

// Owner is who made the repository.
func (k *Keys) Owner() WriterID { return k.owner }

// Trust makes a writer's signatures count. What is no public key counts for
// nothing.
func (k *Keys) Trust(pub ed25519.PublicKey) {
	if len(pub) != ed25519.PublicKeySize {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.writers[WriterOf(pub)] = pub
}

// Sign signs msg.
func (k *Keys) Sign(msg []byte) ([]byte, error) {
	if k.signer == nil {
		return nil, fmt.Errorf("sign: %w", ErrNoKey)
	}
	return ed25519.Sign(k.signer, msg), nil
}

// Verify checks w's signature of msg. An unknown writer is ErrNoKey, a wrong
// signature chunk.ErrCorrupt.
func (k *Keys) Verify(w WriterID, msg, sig []byte) error {
	k.mu.RLock()
	pub := k.writers[w]
	k.mu.RUnlock()
	if pub == nil {
		return fmt.Errorf("signed by writer %s, whom this repository does not know: %w", w, ErrNoKey)
	}
	if len(sig) != ed25519.SignatureSize || !ed25519.Verify(pub, msg, sig) {
		return fmt.Errorf("signature of writer %s does not fit: %w", w, chunk.ErrCorrupt)
	}
	return nil
}

const wrapInfo = "cutbank v1 wrapped key "

// Wrap seals a key for the newest epoch (see Publish), bound to the name of what it opens.
func (k *Keys) Wrap(name string, key []byte) (epoch uint32, wrapped []byte, err error) {
	k.mu.RLock()
	epoch = k.newest
	e := k.epochs[epoch]
	k.mu.RUnlock()
	wrapped, err = hpke.Seal(e.pub, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(wrapInfo+name), key)
	return epoch, wrapped, err
}

// Unwrap opens what Wrap sealed. What is sealed for an epoch whose private key is
// not here is ErrNoKey.
func (k *Keys) Unwrap(name string, epoch uint32, wrapped []byte) ([]byte, error) {
	e, unknown := k.epoch(epoch)
	if !e.opens() && unknown != nil && unknown(epoch) {
		e, _ = k.epoch(epoch)
	}
	if !e.opens() {
		return nil, fmt.Errorf("%s: sealed for key epoch %d: %w", name, epoch, ErrNoKey)
	}
	key, err := hpke.Open(e.priv, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(wrapInfo+name), wrapped)
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("%s: its wrapped key does not open: %w", name, chunk.ErrCorrupt)
	}
	return key, nil
}

// ListKey derives the key that seals the object or trailer of that name.
func (k *Keys) ListKey(name string) []byte {
	d := chunk.Derive("cutbank v1 list key", k.list[:], []byte(name))
	return d[:]
}
