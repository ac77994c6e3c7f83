package seal

import (
	"crypto/hpke"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// Recipient is a key pair that is computed from a secret, such as what a
// password comes to: whoever knows its public half can give something to who
// knows the secret. It is safe for concurrent use.
type Recipient struct{ priv hpke.PrivateKey }

// NewRecipient returns the key pair of a secret, always the same.
func NewRecipient(secret [32]byte) (*Recipient, error) {
	// The private key's stored form is a seed of 32 bytes, of which any will do.
	priv, err := kem.NewPrivateKey(secret[:])
	if err != nil {
		return nil, fmt.Errorf("key pair of a secret: %w", err)
	}
	return &Recipient{priv}, nil
}

// Public returns the public half.
func (r *Recipient) Public() []byte { return r.priv.PublicKey().Bytes() }

// Open opens what SealTo sealed for this recipient under that name. Anything
// else is chunk.ErrCorrupt.
func (r *Recipient) Open(name string, sealed []byte) ([]byte, error) {
	plain, err := hpke.Open(r.priv, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(grantInfo+name), sealed)
	if err != nil {
		return nil, fmt.Errorf("%s: it does not open: %w", name, chunk.ErrCorrupt)
	}
	return plain, nil
}

const grantInfo = "cutbank v1 granted "

// SealTo seals plain for the recipient with that public half, bound to a name.
// It does not tell who sealed it. A public half that is none is chunk.ErrCorrupt.
func SealTo(public []byte, name string, plain []byte) ([]byte, error) {
	pub, err := kem.NewPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("%s: public key of the recipient: %w", name, chunk.ErrCorrupt)
	}
	return hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(grantInfo+name), plain)
}
