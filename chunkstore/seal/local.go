package seal

import (
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// LocalKey derives a 32-byte key for what a node keeps on its own machine, from
// the seed that it signs with: nobody else's ring gives it. use tells what for,
// a constant of the program; salt is used once for each thing that is sealed.
// Keys that cannot sign give ErrNoKey.
func (k *Keys) LocalKey(use string, salt []byte) ([]byte, error) {
	if k.signer == nil {
		return nil, fmt.Errorf("local state: %w", ErrNoKey)
	}
	d := chunk.Derive("cutbank v1 local "+use, k.signer.Seed(), salt)
	return d[:], nil
}
