package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/repo"
)

type rotateFlags struct {
	drop                               []string
	rewrite, rewriteOnly, dryRun, wait bool
	grace                              spanFlag
}

func (a *app) keyRotateCommand() *cobra.Command {
	s := rotateFlags{grace: spanFlag(repo.DefaultGrace)}
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Seal what is stored from now on with new keys",
		Long: `rotate adds a key epoch: a new pair of keys that everything stored from now on is
sealed for. All passwords go on as they are and open it too, without being typed
in: it is given to each of them by the public key that belongs to it. Passwords
that were added by an older cutbank have none; they are named, open what was there
before, and are to be added again with "key add". Snapshots, mounts and write-only
nodes that are running learn of it by themselves.

If a password has leaked: --drop ID removes it, in the same step. Be clear about
what that does. Who had the password and the storage can have kept the secrets of
that time, and
  - opens what was stored until then, as long as it is there: --rewrite stores all
    contents anew, sealed for the new epoch, and removes the old ones;
  - opens the records of those snapshots, that is names, times, paths and totals,
    until they are forgotten: records are never rewritten;
  - knows which chunks are stored, now and later, by their IDs, and what lists
    them, but not their contents: these keys never change;
  - can sign as the owner, where the password opened the owner's key: who may also
    write to the storage can pass changes off as yours. Only a new repository helps
    then.
What was copied away before stays readable to who has it. Mounts and other processes
that were opened with a dropped password cannot read what is stored from then on.

A rewrite reads and writes all data, as a prune that repacks everything: beside
anything that is running, and leaving to the next run what a snapshot that is being
made may lean on. It can be interrupted; --rewrite-only goes on with it, and adds
no further epoch. At the end rotate tells what is still sealed for which epoch.`,
		Example: `  cutbank key rotate -r /backup
  cutbank key rotate -r /backup --drop 4f3a9c --rewrite   # a password has leaked
  cutbank key rotate -r /backup --rewrite-only            # go on`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.keyRotate(c.Context(), &s) },
	}
	f := c.Flags()
	f.StringArrayVar(&s.drop, "drop", nil, "remove the key whose ID starts so; may be repeated")
	f.BoolVar(&s.rewrite, "rewrite", false, "then store all contents of older epochs anew")
	f.BoolVar(&s.rewriteOnly, "rewrite-only", false, "add no epoch, only store contents of older ones anew")
	f.BoolVarP(&s.dryRun, "dry-run", "n", false, "tell what would be done, and change nothing")
	f.BoolVar(&s.wait, "wait", false, "with a rewrite: stay until writers at work are done")
	f.Var(&s.grace, "grace", "with a rewrite: declare a writer dead that was silent for so long, such as 2h or 1d")
	c.MarkFlagsMutuallyExclusive("drop", "rewrite-only")
	c.MarkFlagsMutuallyExclusive("rewrite", "rewrite-only")
	return c
}

func (a *app) keyRotate(ctx context.Context, s *rotateFlags) error {
	if s.rewrite || s.rewriteOnly {
		a.warnGrace(time.Duration(s.grace))
	}
	r, err := a.synced(ctx)
	if err != nil {
		return err
	}
	if !s.rewriteOnly {
		res, err := r.RotateKeys(ctx, repo.RotateOptions{Drop: s.drop, DryRun: s.dryRun})
		if err != nil {
			return err
		}
		if err := a.rotated(&res, s.dryRun); err != nil {
			return err
		}
	}
	if s.rewrite || s.rewriteOnly {
		if err := a.rewriteEpochs(ctx, r, s); err != nil {
			return err
		}
	}
	if s.dryRun {
		return nil
	}
	return a.epochUses(ctx, r, s)
}

// rotated tells what became of the keys.
func (a *app) rotated(res *repo.RotateResult, dry bool) error {
	verb, opens, dropped := "rotated the keys: what is stored from now on is sealed for", "open", "dropped"
	if dry {
		verb, opens, dropped = "would rotate the keys: what is stored afterwards would be sealed for", "would open", "would be dropped"
	}
	a.sayf("%s key epoch %d", verb, res.Epoch)
	a.sayf("keys that %s it: %s", opens, keyNames(res.Granted))
	if !res.Locked.IsZero() {
		a.warnf("of the keys removed some are locked, the last until %s: until then they open what they have opened so far; a later prune removes them", lockText(res.Locked))
	}
	if len(res.Dropped) > 0 {
		a.sayf("%s: %s", dropped, keyNames(res.Dropped))
	}
	if len(res.Left) > 0 {
		a.warnf("left as they are, and without what is stored from now on: %s; they were not signed by the owner, or removed before: `cutbank key add` adds such a password again, `cutbank key remove` removes what you do not know", keyNames(res.Left))
	}
	if res.Damaged != nil {
		a.warnf("%v", res.Damaged)
	}
	return a.emit("key-rotated", object{"dry_run": dry, "epoch": res.Epoch, "granted": keyObjects(res.Granted), "left": keyObjects(res.Left), "dropped": keyObjects(res.Dropped)})
}

func keyNames(keys []repo.KeyInfo) string {
	var list []string
	for _, k := range keys {
		name := k.ID.String()[:8]
		if k.Label != "" {
			name += " (" + quote(k.Label) + ")"
		}
		list = append(list, name)
	}
	return strings.Join(list, ", ")
}

func keyObjects(keys []repo.KeyInfo) []object {
	list := []object{}
	for _, k := range keys {
		list = append(list, object{"id": k.ID.String(), "label": k.Label})
	}
	return list
}

func (a *app) rewriteEpochs(ctx context.Context, r *repo.Repo, s *rotateFlags) error {
	opt := repo.PruneOptions{DryRun: s.dryRun, Wait: s.wait, Grace: time.Duration(s.grace), Warnf: a.warnf, Progress: &repo.PruneProgress{}}
	stop := a.showCount("rewrite", func() status { return pruneStatus(opt.Progress) }, func() object { return pruneFields(opt.Progress) })
	start := now()
	var res repo.PruneResult
	var err error
	if s.dryRun && s.rewrite { // the epoch is not there yet, all others will be older
		opt.MaxRepack, opt.Rewrite = -1, func(chunkstore.PackInfo) bool { return true }
		res, err = r.Prune(ctx, opt)
	} else {
		res, err = r.RewriteEpochs(ctx, opt)
	}
	stop()
	if err != nil && res.Total.Packs == 0 {
		return err
	}
	if perr := a.pruned(&res, s.dryRun, now().Sub(start)); perr != nil || err != nil {
		return errors.Join(perr, err)
	}
	if res.Left.Packs > 0 && !s.dryRun {
		a.warnf("%s packs of older epochs are left: run `cutbank key rotate --rewrite-only` when the snapshots that are being made are done", countText(res.Left.Packs))
	}
	return nil
}

// epochUses tells what is sealed for which epoch.
func (a *app) epochUses(ctx context.Context, r *repo.Repo, s *rotateFlags) error {
	uses, err := r.EpochUses(ctx)
	old := uint64(0)
	for _, u := range uses {
		if err := a.emit("epoch", object{"epoch": u.Epoch, "newest": u.Newest, "packs": u.Packs.Packs, "bytes": u.Packs.Bytes, "records": u.Records}); err != nil {
			return err
		}
		if !u.Newest {
			old += u.Packs.Packs
		}
	}
	if !a.quiet {
		if err := a.table(func(w *tabwriter.Writer) {
			fmt.Fprintln(w, "EPOCH\tPACKS\tBYTES\tRECORDS")
			for _, u := range uses {
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\n", u.Epoch, countText(u.Packs.Packs), bytesText(u.Packs.Bytes), countText(uint64(u.Records)))
			}
		}); err != nil {
			return err
		}
	}
	switch rewriting := s.rewrite || s.rewriteOnly; {
	case old > 0 && !rewriting:
		a.sayf("what was stored before opens with the keys of before; `cutbank key rotate --rewrite-only` stores it anew")
	case old == 0 && rewriting:
		a.sayf("no contents are sealed for an older epoch; records of older snapshots are, until they are forgotten")
	}
	return err
}
