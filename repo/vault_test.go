package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

const (
	day      = 24 * time.Hour
	lockDays = 30
)

// vault is a place with a clock, which is also this machine's, and counts what is
// asked about locks.
type vault struct {
	backendtest.MemVault
	now         time.Time
	mu          sync.Mutex
	asked, grew []string
}

func newVault() *vault {
	v := &vault{MemVault: backendtest.MemVault{Archive: &backendtest.Archive{}}, now: start}
	v.Now = func() time.Time { return v.now }
	return v
}

func (v *vault) Lock(ctx context.Context, name, id string, until time.Time) error {
	v.mu.Lock()
	v.grew = append(v.grew, name)
	v.mu.Unlock()
	return v.MemVault.Lock(ctx, name, id, until)
}

func (v *vault) LockedUntil(ctx context.Context, name, id string) (time.Time, error) {
	v.mu.Lock()
	v.asked = append(v.asked, name)
	v.mu.Unlock()
	return v.MemVault.LockedUntil(ctx, name, id)
}

// calls returns how often since the last time locks were asked for and lengthened.
func (v *vault) calls() (asked, grew []string) {
	asked, grew = v.asked, v.grew
	v.asked, v.grew = nil, nil
	return asked, grew
}

func lockedOptions(t *testing.T, v *vault) Options {
	opt := testOptions(t)
	opt.Now = func() time.Time { return v.now }
	return opt
}

func lockedInit(t *testing.T, v *vault) *Repo {
	t.Helper()
	in := testParams(t)
	in.Lock, in.Probe = lockDays*day, true
	r, err := Init(t.Context(), v, in, lockedOptions(t, v))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func lockedOpen(t *testing.T, b backend.Backend, v *vault) *Repo {
	t.Helper()
	r, err := Open(t.Context(), b, lockedOptions(t, v))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

var errKilled = errors.New("killed")

// killed fails all changes after some of them.
type killed struct {
	*vault
	left int
}

func (k *killed) alive() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.left--; k.left < 0 {
		return fmt.Errorf("%w: %w", errKilled, fs.ErrPermission)
	}
	return nil
}

func lockedOpenKilled(t *testing.T, k *killed, v *vault) (PruneResult, error) {
	t.Helper()
	r, err := Open(t.Context(), k, lockedOptions(t, v))
	if err != nil {
		return PruneResult{}, err
	}
	defer r.Close()
	return r.Prune(t.Context(), PruneOptions{MaxRepack: -1})
}

func (k *killed) PutLocked(ctx context.Context, name string, p []byte, until time.Time) error {
	if err := k.alive(); err != nil {
		return err
	}
	return k.vault.PutLocked(ctx, name, p, until)
}

func (k *killed) Put(ctx context.Context, name string, p []byte) error {
	if err := k.alive(); err != nil {
		return err
	}
	return k.vault.Put(ctx, name, p)
}

func (k *killed) RemoveVersion(ctx context.Context, name, id string) error {
	if err := k.alive(); err != nil {
		return err
	}
	return k.vault.RemoveVersion(ctx, name, id)
}
