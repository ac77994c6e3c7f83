package repo

import (
	"context"
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// Without fencing nobody is declared dead, however silent, but by a person.
func TestPruneWithoutFencing(t *testing.T) {
	b, now := clocked()
	in := testParams(t)
	in.NoFencing = true
	r, err := Init(t.Context(), b, in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	forget(t, b, snap(t, r, texts(1, 2, 3)))
	w := testOpen(t, b)
	if !w.Config().NoFencing {
		t.Fatal("the config forgot that there is no fencing")
	}
	s := testBegin(t, w)
	*now = now.Add(1000 * time.Hour)
	res := prune(t, b, everything)
	if len(res.Dead) != 0 || res.Removed.Packs != 0 || len(res.Waiting) != 1 {
		t.Fatalf("beside a silent writer: %+v", res)
	}
	o := testOpen(t, b)
	all, err := o.AtWork(t.Context())
	if err != nil || len(all) != 1 || all[0].Intent.ID != s.ID || all[0].Intent.PID == 0 {
		t.Fatalf("at work: %+v, %v", all, err)
	}
	if _, err := o.Unlock(t.Context(), ID{1}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unlocking nobody: %v", err)
	}
	if committed, err := o.Unlock(t.Context(), s.ID); err != nil || committed {
		t.Fatalf("unlock: %v, %v", committed, err)
	}
	if res = prune(t, b, everything); len(res.Waiting) != 0 || res.Removed.Packs == 0 {
		t.Errorf("after it was unlocked: %+v", res)
	}
	// It lives after all, and finds its name taken: the store looks first.
	store(t, w, s, texts(1)...)
	rec := &Snapshot{Name: "host", Time: start, Tree: treeOf(t, w, s, texts(1))}
	if err := s.Commit(t.Context(), rec); !errors.Is(err, ErrDead) {
		t.Errorf("an unlocked writer's commit: %v", err)
	}
	snap(t, w, texts(1))
	healthy(t, b, 1)
}

// The snapshot of a writer that has committed stays when it is unlocked.
func TestUnlockCommitted(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	s := testBegin(t, r)
	name := intentName(s.ID)
	intent, err := b.Get(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	finish(t, r, s, texts(1, 2))
	if err := b.Put(t.Context(), name, intent); err != nil { // its removal was lost
		t.Fatal(err)
	}
	if committed, err := testOpen(t, b).Unlock(t.Context(), s.ID); err != nil || !committed {
		t.Errorf("unlock: %v, %v", committed, err)
	}
	if _, err := b.Get(t.Context(), name, 0, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the intent: %v", err)
	}
	healthy(t, b, 1)
}

func TestOverdue(t *testing.T) {
	for _, tt := range []struct {
		silent time.Duration
		fenced bool
		want   bool
	}{{time.Hour, true, false}, {time.Hour + 1, true, true}, {time.Hour + 1, false, false}, {1 << 62, false, false}} {
		if got := overdue(tt.silent, time.Hour, tt.fenced); got != tt.want {
			t.Errorf("silent for %s, fenced %v: got %v", tt.silent, tt.fenced, got)
		}
	}
}

// careless is a Mem that lets a name be put again, as some stores do.
type careless struct{ *backend.Mem }

func (c careless) Put(ctx context.Context, name string, p []byte) error {
	err := c.Mem.Put(ctx, name, p)
	for errors.Is(err, fs.ErrExist) {
		if err = c.Mem.Remove(ctx, name); err == nil {
			err = c.Mem.Put(ctx, name, p)
		}
	}
	return err
}

func TestInitProbes(t *testing.T) {
	in := testParams(t)
	in.Probe = true
	b := careless{backend.NewMem()}
	if _, err := Init(t.Context(), b, in, testOptions(t)); !errors.Is(err, backend.ErrUnfenced) {
		t.Errorf("a careless store: %v", err)
	}
	for info := range b.List(t.Context(), "") {
		t.Errorf("%s is left", info.Name)
	}
	// What a killed probe leaves is tidied away.
	if err := b.Put(t.Context(), probeDir+"fence-1", nil); err != nil {
		t.Fatal(err)
	}
	in.NoFencing = true
	r, err := Init(t.Context(), b, in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	snap(t, r, texts(1))
	for info := range b.List(t.Context(), probeDir) {
		t.Errorf("%s is left", info.Name)
	}
	in.NoFencing = false
	r, err = Init(t.Context(), backend.NewMem(), in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Config().NoFencing {
		t.Error("a store that keeps the promise is taken for one that does not")
	}
}
