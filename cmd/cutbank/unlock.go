package main

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) unlockCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "unlock [WRITER...]",
		Short: "Say that a writer is gone for good",
		Long: `unlock without arguments lists the writers that have announced a snapshot and not
signed off: those that are at work, and those that were killed.

With --yes it removes what the named ones have announced, so that prune waits for
them no longer. A WRITER is an ID's first digits. Prune itself gives a silent writer
up (--grace), but in a repository made with "init --no-fencing" it cannot, and waits.

Be sure that the process is gone, on every machine. Elsewhere than in a repository
without fencing a writer that lives after all fails, says so, and loses nothing; there
it may make a snapshot of which parts are gone, and so may a request of it that is
still under way: wait for an hour after it has ended.`,
		Example: `  cutbank unlock -r s3://bucket/backup
  cutbank unlock -r s3://bucket/backup 4f3a9c --yes`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.listWriters(c.Context())
			}
			return a.unlock(c.Context(), args, yes)
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "remove: the writers are gone for good")
	return c
}

func (a *app) listWriters(ctx context.Context) error {
	r, err := a.anyRepo(ctx)
	if err != nil {
		return err
	}
	all, err := r.AtWork(ctx)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		a.sayf("no writer is at work")
	}
	for _, w := range all {
		if err := a.emit("at-work", workObject(w)); err != nil {
			return err
		}
	}
	if len(all) == 0 {
		return nil
	}
	return a.table(func(tw *tabwriter.Writer) {
		fmt.Fprintln(tw, "ID\tHOST\tPROCESS\tSTARTED\tLAST SIGN OF LIFE")
		for _, w := range all {
			fmt.Fprintf(tw, "%s\t%s\t%d\t%s\t%s\n", w.Intent.ID.String()[:8], quote(w.Intent.Host), w.Intent.PID,
				w.Intent.Started.UTC().Format(time.DateTime)+"Z", w.Last.UTC().Format(time.DateTime)+"Z")
		}
	})
}

func workObject(w repo.Waiting) object {
	return object{"id": w.Intent.ID.String(), "host": w.Intent.Host, "pid": w.Intent.PID, "program": w.Intent.Program, "last": w.Last}
}

func (a *app) unlock(ctx context.Context, args []string, yes bool) error {
	r, err := a.anyRepo(ctx)
	if err != nil {
		return err
	}
	all, err := r.AtWork(ctx)
	if err != nil {
		return err
	}
	var chosen []repo.Waiting
	for _, arg := range args {
		w, err := oneAtWork(all, arg)
		if err != nil {
			return err
		}
		chosen = append(chosen, w)
	}
	if !yes {
		w := chosen[0]
		return fmt.Errorf("%wis process %d on %s gone for good, and every other of these? Then --yes says so", errRefused, w.Intent.PID, quote(w.Intent.Host))
	}
	for _, w := range chosen {
		committed, err := r.Unlock(ctx, w.Intent.ID)
		if err != nil {
			return err
		}
		did := "its snapshot will not come; the next run takes over what it had stored"
		if committed {
			did = "its snapshot is there, and stays"
		}
		a.sayf("unlocked writer %s of %s: %s", w.Intent.ID.String()[:8], quote(w.Intent.Host), did)
		if err := a.emit("unlocked", object{"id": w.Intent.ID.String(), "committed": committed}); err != nil {
			return err
		}
	}
	return nil
}

// oneAtWork finds the one whose ID begins so.
func oneAtWork(all []repo.Waiting, digits string) (repo.Waiting, error) {
	var found []repo.Waiting
	for _, w := range all {
		if strings.HasPrefix(w.Intent.ID.String(), strings.ToLower(digits)) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return repo.Waiting{}, fmt.Errorf("no writer %s is at work; `cutbank unlock` lists those that are: %w", quote(digits), fs.ErrNotExist)
	}
	return repo.Waiting{}, usagef("%s begins the IDs of %d writers: give more digits", quote(digits), len(found))
}
