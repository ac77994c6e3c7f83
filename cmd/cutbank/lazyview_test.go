package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// TestLazyViews: a list of snapshots makes no view; of those that are looked into the
// last ones are kept, and one that was dropped has the same nodes when it is made again.
func TestLazyViews(t *testing.T) {
	ctx := context.Background()
	views := &viewCache{limit: 12}
	made := make([]int, 5)
	stored := system.NewDir("", tree.Time{})
	var list []*lazyView
	for i := range made {
		list = append(list, &lazyView{views: views, stored: stored, make: func(context.Context) (tree.Numbered, error) {
			made[i]++
			d := system.NewDir("", tree.Time{})
			for j := range 4 {
				d.Add(system.NewFile(fmt.Sprintf("f%d-%d", i, j), tree.Time{}, nil, 7, nil))
			}
			return d, d.Seal()
		}})
	}
	look := func(i int, want ...int) {
		t.Helper()
		n, err := list[i].ByNumber(ctx, 2)
		if err != nil || n.Attr().Name != fmt.Sprintf("f%d-1", i) {
			t.Fatal(n, err)
		}
		names := 0
		for c, err := range list[i].Entries(ctx, 0) {
			if err != nil || c.Attr().Name != fmt.Sprintf("f%d-%d", i, names) {
				t.Fatal(c, err)
			}
			names++
		}
		if c, err := list[i].Lookup(ctx, fmt.Sprintf("f%d-3", i)); err != nil || c.(tree.Numbered).Number() != 4 || names != 4 {
			t.Fatal(c, err, names)
		}
		if fmt.Sprint(made) != fmt.Sprint(want) || views.nodes > 12 {
			t.Errorf("made %v, want %v, keeps %d", made, want, views.nodes)
		}
	}
	for i, v := range list {
		n, err := v.ByNumber(ctx, 0)
		if err != nil || n != tree.Node(v) || n.Attr().Kind != tree.Dir {
			t.Fatal(n, err)
		}
		if xs, err := n.Xattrs(ctx); err != nil || len(xs) > 0 || made[i] != 0 {
			t.Fatal(xs, err, made)
		}
	}
	look(0, 1, 0, 0, 0, 0)
	look(1, 1, 1, 0, 0, 0)
	look(0, 1, 1, 0, 0, 0)
	look(2, 1, 1, 1, 0, 0) // and 1 is dropped
	look(0, 1, 1, 1, 0, 0)
	look(1, 1, 2, 1, 0, 0)
	views.limit = 1
	look(3, 1, 2, 1, 1, 0) // more than there may be, and alone
	look(3, 1, 2, 1, 1, 0)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := list[4].Lookup(ctx, "f4-0"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	look(4, 1, 2, 1, 1, 1)
}

// TestLazyViewFails: what fails is said, and tried again.
func TestLazyViewFails(t *testing.T) {
	gone := errors.New("gone")
	fail := true
	v := &lazyView{views: &viewCache{limit: 1}, make: func(context.Context) (tree.Numbered, error) {
		if fail {
			return nil, gone
		}
		d := system.NewDir("", tree.Time{})
		return d, d.Seal()
	}}
	_, err := v.Lookup(context.Background(), "x")
	_, err2 := v.ByNumber(context.Background(), 1)
	n := 0
	for _, err := range v.Entries(context.Background(), 0) {
		if n++; !errors.Is(err, gone) {
			t.Error(err)
		}
	}
	if !errors.Is(err, gone) || !errors.Is(err2, gone) || n != 1 {
		t.Error(err, err2, n)
	}
	fail = false
	for range v.Entries(context.Background(), 0) {
		t.Error("it is empty")
	}
}
