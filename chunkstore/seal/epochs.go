package seal

import (
	"bytes"
	"cmp"
	"crypto/hpke"
	"fmt"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

type epochKeys struct {
	pub  hpke.PublicKey
	priv hpke.PrivateKey // nil on write-only nodes
}

func (e *epochKeys) opens() bool { return e != nil && e.priv != nil }

// open checks the key pair of an epoch.
func (e *Epoch) open() (*epochKeys, error) {
	pub, err := kem.NewPublicKey(e.Public)
	if err != nil {
		return nil, fmt.Errorf("epoch %d: %w", e.N, chunk.ErrCorrupt)
	}
	ek := &epochKeys{pub: pub}
	if len(e.Private) > 0 {
		if ek.priv, err = kem.NewPrivateKey(e.Private); err != nil {
			return nil, fmt.Errorf("epoch %d: %w", e.N, chunk.ErrCorrupt)
		}
	}
	return ek, nil
}

func (k *Keys) epoch(n uint32) (*epochKeys, func(uint32) bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.epochs[n], k.unknown
}

// Opens reports whether the private key of an epoch is here.
func (k *Keys) Opens(epoch uint32) bool {
	e, _ := k.epoch(epoch)
	return e.opens()
}

// Newest returns the epoch that what is new is sealed for.
func (k *Keys) Newest() uint32 {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.newest
}

// OnUnknownEpoch sets what Unwrap calls, without a lock, when it meets an epoch
// whose private key is not here: ask may add it and return true. It is called
// for every such key that is to be unwrapped, by any number of goroutines at
// once, and must not unwrap anything itself.
func (k *Keys) OnUnknownEpoch(ask func(epoch uint32) bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unknown = ask
}

// AddEpoch makes one more epoch usable, or adds the private key to one that was
// known without. What is new is not sealed for it before it is published. An
// epoch that is known with another public key is chunk.ErrCorrupt.
func (k *Keys) AddEpoch(e Epoch) error {
	ek, err := e.open()
	if err != nil {
		return err
	}
	if ek.priv != nil && !bytes.Equal(ek.priv.PublicKey().Bytes(), e.Public) {
		return fmt.Errorf("epoch %d: its two keys are no pair: %w", e.N, chunk.ErrCorrupt)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	old := k.epochs[e.N]
	if old != nil && !bytes.Equal(old.pub.Bytes(), e.Public) {
		return fmt.Errorf("epoch %d has another public key: %w", e.N, chunk.ErrCorrupt)
	}
	if old == nil || !old.opens() && ek.priv != nil {
		k.set(e, ek)
	}
	return nil
}

// Publish takes the epochs that the owner has published, of which only N and
// Public count: what is new is sealed for the newest of them, whatever the ring
// holds. Where the ring has another key pair for one of them, that one is
// dropped: it is of a rotation that was never completed.
func (k *Keys) Publish(epochs []Epoch) error {
	opened := make([]*epochKeys, len(epochs))
	newest := uint32(0)
	for i := range epochs {
		e := Epoch{N: epochs[i].N, Public: epochs[i].Public}
		var err error
		if opened[i], err = e.open(); err != nil {
			return err
		}
		newest = max(newest, e.N)
	}
	if len(epochs) == 0 {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, e := range epochs {
		if old := k.epochs[e.N]; old == nil || !bytes.Equal(old.pub.Bytes(), e.Public) {
			k.set(Epoch{N: e.N, Public: e.Public}, opened[i])
		}
	}
	k.newest = newest
	return nil
}

// set puts an epoch in its place, in a new ring. The caller holds k.mu.
func (k *Keys) set(e Epoch, ek *epochKeys) {
	ring := *k.ring
	ring.Epochs = slices.Clone(ring.Epochs)
	if i := slices.IndexFunc(ring.Epochs, func(x Epoch) bool { return x.N == e.N }); i >= 0 {
		if bytes.Equal(ring.Epochs[i].Public, e.Public) {
			e.Extra = ring.Epochs[i].Extra
		}
		ring.Epochs[i] = e
	} else {
		ring.Epochs = append(ring.Epochs, e)
	}
	slices.SortFunc(ring.Epochs, func(a, b Epoch) int { return cmp.Compare(a.N, b.N) })
	k.ring = &ring
	k.epochs[e.N] = ek
}
