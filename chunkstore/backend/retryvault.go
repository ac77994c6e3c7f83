package backend

import (
	"context"
	"fmt"
	"iter"
	"time"
)

// retryVault is retry for a Vault. All that it adds may be repeated: a lock only
// grows, and what PutOver stores twice is one more version of the same.
type retryVault struct {
	*retry
	v Vault
}

var _ Vault = (*retryVault)(nil)

func (r *retryVault) Lockable(ctx context.Context) error {
	return r.do(ctx, func(int) error { return r.v.Lockable(ctx) })
}

func (r *retryVault) PutLocked(ctx context.Context, name string, p []byte, until time.Time) error {
	return r.put(ctx, name, p, func(ctx context.Context, name string, p []byte) error { return r.v.PutLocked(ctx, name, p, until) })
}

func (r *retryVault) PutOver(ctx context.Context, name string, p []byte, until time.Time) error {
	return r.do(ctx, func(int) error { return r.v.PutOver(ctx, name, p, until) })
}

func (r *retryVault) Lock(ctx context.Context, name, id string, until time.Time) error {
	return r.do(ctx, func(int) error { return r.v.Lock(ctx, name, id, until) })
}

func (r *retryVault) LockedUntil(ctx context.Context, name, id string) (until time.Time, err error) {
	err = r.do(ctx, func(int) error {
		until, err = r.v.LockedUntil(ctx, name, id)
		return err
	})
	return until, err
}

func (r *retryVault) RemoveVersion(ctx context.Context, name, id string) error {
	return r.do(ctx, func(int) error { return r.v.RemoveVersion(ctx, name, id) })
}

func (r *retryVault) GetVersion(ctx context.Context, name, id string, off, n int64) (p []byte, err error) {
	err = r.do(ctx, func(int) error {
		p, err = r.v.GetVersion(ctx, name, id, off, n)
		return err
	})
	return p, err
}

// ListVersions begins again, after a failure, with the name that it had come to,
// and passes over what it has yielded of it. Marks of removal may come twice. Where
// names have not come in order it does not: some would be passed over.
func (r *retryVault) ListVersions(ctx context.Context, prefix, after string) iter.Seq2[Version, error] {
	return func(yield func(Version, error) bool) {
		var last Version
		sorted := true
		for n, err := 1, error(nil); ; n++ {
			again := last.ID
			for v, e := range r.v.ListVersions(ctx, prefix, after) {
				if err = e; e != nil {
					break
				}
				if again != "" && !v.Deleted {
					if v.Name == last.Name && v.ID == again {
						again = ""
					} else if v.Name != last.Name {
						yield(Version{}, fmt.Errorf("list the versions of %s: they have changed meanwhile, so that nobody knows which were listed; try again", last.Name))
						return
					}
					continue
				}
				if !yield(v, nil) {
					return
				}
				if v.Name != last.Name && last.Name != "" && !v.Deleted {
					after = last.Name
				}
				if !v.Deleted {
					sorted = sorted && v.Name >= last.Name
					last, n = v, 1
				}
			}
			if err == nil {
				return
			}
			wait, once := r.backoff(n, err)
			if !once || !sorted || !Transient(err) {
				yield(Version{}, err)
				return
			}
			if err = pause(ctx, wait, err); err != nil {
				yield(Version{}, err)
				return
			}
		}
	}
}
