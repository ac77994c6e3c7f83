package backendtest

import (
	"bytes"
	"cmp"
	"context"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// MemVault is an Archive without a server in between.
type MemVault struct{ *Archive }

var _ backend.Vault = MemVault{}

func notThere(verb, name string) error {
	return &fs.PathError{Op: verb, Path: name, Err: fs.ErrNotExist}
}

// store puts a version.
func (m MemVault) store(ctx context.Context, name string, p []byte, create bool, until time.Time) error {
	if !backend.ValidName(name) {
		return backend.InvalidName("put", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.find(name, ""); create && v != nil && !v.mark {
		return &fs.PathError{Op: "put", Path: name, Err: fs.ErrExist}
	}
	if ctx.Err() == nil {
		m.add(name, archived{p: bytes.Clone(p), locked: until})
	}
	return ctx.Err()
}

// Put implements backend.Backend.
func (m MemVault) Put(ctx context.Context, name string, p []byte) error {
	return m.store(ctx, name, p, true, time.Time{})
}

// PutLocked implements backend.Vault.
func (m MemVault) PutLocked(ctx context.Context, name string, p []byte, until time.Time) error {
	return m.store(ctx, name, p, true, until)
}

// PutOver implements backend.Vault.
func (m MemVault) PutOver(ctx context.Context, name string, p []byte, until time.Time) error {
	return m.store(ctx, name, p, false, until)
}

// Get implements backend.Backend.
func (m MemVault) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	return m.GetVersion(ctx, name, "", off, n)
}

// GetVersion implements backend.Versions.
func (m MemVault) GetVersion(ctx context.Context, name, id string, off, n int64) ([]byte, error) {
	if !backend.ValidName(name) {
		return nil, backend.InvalidName("get", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.find(name, id)
	if v == nil || v.mark {
		return nil, notThere("get", name)
	}
	n, err := backend.Range(name, int64(len(v.p)), off, n)
	if err != nil || ctx.Err() != nil {
		return nil, cmp.Or(ctx.Err(), err)
	}
	return append([]byte{}, v.p[off:off+n]...), nil
}

// List implements backend.Backend.
func (m MemVault) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		for v, err := range m.ListVersions(ctx, prefix, "") {
			if (err != nil || v.Latest && !v.Deleted) && !yield(v.Info, err) {
				return
			}
		}
	}
}

// ListVersions implements backend.Versions.
func (m MemVault) ListVersions(ctx context.Context, prefix, after string) iter.Seq2[backend.Version, error] {
	return func(yield func(backend.Version, error) bool) {
		m.mu.Lock()
		var all []backend.Version
		for _, name := range slices.Sorted(maps.Keys(m.keys)) {
			if strings.HasPrefix(name, prefix) && name > after {
				for i, v := range slices.Backward(m.keys[name]) {
					all = append(all, backend.Version{Info: backend.Info{Name: name, Size: int64(len(v.p)), ModTime: v.time}, ID: v.id, Latest: i == len(m.keys[name])-1, Deleted: v.mark})
				}
			}
		}
		m.mu.Unlock()
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(backend.Version{}, err)
		}
	}
}

// Remove implements backend.Backend: it only puts a mark.
func (m MemVault) Remove(ctx context.Context, name string) error {
	if !backend.ValidName(name) {
		return backend.InvalidName("remove", name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() == nil && m.find(name, "") != nil {
		m.add(name, archived{mark: true})
	}
	return ctx.Err()
}

// Lag implements backend.Backend.
func (m MemVault) Lag() time.Duration { return 0 }

// String implements backend.Backend.
func (m MemVault) String() string { return "vault in memory" }

// Lockable implements backend.Vault.
func (m MemVault) Lockable(context.Context) error { return nil }

// Lock implements backend.Vault.
func (m MemVault) Lock(ctx context.Context, name, id string, until time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.find(name, id)
	if v == nil || v.mark {
		return notThere("lock", name)
	}
	if until.After(v.locked) && ctx.Err() == nil {
		v.locked = until
	}
	return ctx.Err()
}

// LockedUntil implements backend.Vault.
func (m MemVault) LockedUntil(ctx context.Context, name, id string) (time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.find(name, id)
	if v == nil || v.mark {
		return time.Time{}, notThere("ask for the lock of", name)
	}
	return v.locked, ctx.Err()
}

// RemoveVersion implements backend.Vault.
func (m MemVault) RemoveVersion(ctx context.Context, name, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.find(name, id)
	if v != nil && v.locked.After(m.now()) {
		return &backend.LockedError{Name: name, Until: v.locked}
	}
	if v != nil && ctx.Err() == nil {
		m.keys[name] = slices.DeleteFunc(m.keys[name], func(x *archived) bool { return x == v })
	}
	return ctx.Err()
}
