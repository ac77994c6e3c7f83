package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// root opens a snapshot as people see it: what is stored, or of a system that has a
// view, that. Everything that shows a snapshot's files comes through here.
func (a *app) root(ctx context.Context, pages *snapfs.Cache, rec *repo.Snapshot) (tree.Numbered, error) {
	n, err := pages.Open(ctx, rec.Tree.ID)
	if err != nil {
		return nil, err
	}
	k, info, err := a.viewOf(rec)
	if k == nil || err != nil {
		return n, err
	}
	v, err := k.View(ctx, n, info, system.ViewOptions{Secrets: a.secrets})
	if err != nil {
		return nil, fmt.Errorf("making the view of %s (--stored shows what it is made of): %w", k.Name, err)
	}
	return v, nil
}

// lazyRoot opens a snapshot as root does, but makes its view when that is looked into.
func (a *app) lazyRoot(ctx context.Context, pages *snapfs.Cache, views *viewCache, rec *repo.Snapshot) (tree.Numbered, error) {
	n, err := pages.Open(ctx, rec.Tree.ID)
	if err != nil {
		return nil, err
	}
	if k, _, err := a.viewOf(rec); k == nil || err != nil {
		return n, err
	}
	return &lazyView{views: views, stored: n, make: func(ctx context.Context) (tree.Numbered, error) { return a.root(ctx, pages, rec) }}, nil
}

// viewOf returns the kind of a snapshot's system if it has a view that is wanted;
// otherwise nil.
func (a *app) viewOf(rec *repo.Snapshot) (*system.Kind, system.Info, error) {
	if a.asStored || len(rec.System) == 0 {
		return nil, system.Info{}, nil
	}
	info, err := system.ParseInfo(rec.System)
	if err != nil {
		return nil, info, fmt.Errorf("%w (--stored shows its files)", err)
	}
	// What a newer cutbank knows more of is shown as it is stored.
	if k := findKind(info.Kind); k != nil && k.View != nil {
		return k, info, nil
	}
	return nil, info, nil
}

// storedFlag lets a command do without views.
func (a *app) storedFlag(c *cobra.Command) {
	c.Flags().BoolVar(&a.asStored, "stored", false, "take a system's snapshot as it is stored, not as it is shown")
	c.Flags().BoolVar(&a.secrets, "secrets", false, "show what the view of a system's snapshot masks")
}
