package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) appendOnlyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "append-only",
		Short: "Keep the right to remove apart from the passwords",
		Long: `append-only begins and ends a mode in which the passwords of the repository read
everything and add snapshots, and remove nothing. What only the owner may do, to
forget, tag, prune, and change keys and writers, then needs --credential with the
owner's file, which is kept on another machine or offline.

Readers ignore what a password alone says about removal. The storage itself obeys
whoever has its own access rights: where nodes may delete files of the repository,
only the storage's rights keep them from that.`,
		Example: `  cutbank append-only on -r /backup --owner-key /media/safe/owner.cred
  cutbank prune -r /backup --credential /media/safe/owner.cred
  cutbank append-only status -r /backup
  cutbank append-only off -r /backup --credential /media/safe/owner.cred`,
		Args: subcommand("on, off or status"),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.appendOnlyOnCommand(), a.appendOnlyOffCommand(), a.appendOnlyStatusCommand())
	return c
}

type appendOnlyFlags struct {
	ownerKey                  string
	protect, dropKeys, dryRun bool
	password                  keyFlags
}

func (s *appendOnlyFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&s.dropKeys, "drop-keys", false, "remove keys that cannot be changed without their passwords")
	f.BoolVarP(&s.dryRun, "dry-run", "n", false, "tell what would become of each key, and change nothing")
}

func (a *app) appendOnlyOnCommand() *cobra.Command {
	var s appendOnlyFlags
	c := &cobra.Command{
		Use:   "on",
		Short: "Begin append-only mode",
		Long: `on writes the owner's secrets to a new file, which only its owner can read, and
then puts keys without them in the place of those in the repository: the same
passwords open, and may remove nothing any more. With --protect the file is sealed
by a password of its own, from --new-password-file, CUTBANK_NEW_PASSWORD or a
prompt. Without the file nobody can ever forget or prune: keep two copies of it.

Who knew a password before, and has a copy of the repository from before, can have
kept the owner's secrets. Interrupted, it is gone on with by the same command and
--credential with that file.`,
		Example: `  cutbank append-only on -r /backup --owner-key /media/safe/owner.cred
  cutbank append-only on -r /backup --owner-key owner.cred --protect`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if s.ownerKey == "" && a.credential == "" && !s.dryRun {
				return usagef("--owner-key is needed: where to write the owner's credential")
			}
			r, err := a.repo(c.Context())
			if err != nil {
				return err
			}
			return a.appendOnlyOn(c.Context(), r, &s)
		},
	}
	s.add(c)
	c.Flags().StringVar(&s.ownerKey, "owner-key", "", "the new file for the owner's credential")
	c.Flags().BoolVar(&s.protect, "protect", false, "seal that file by a new password")
	c.Flags().StringVar(&s.password.file, "new-password-file", "", "file whose first line is that password")
	return c
}

// appendOnlyOn begins append-only mode in an open repository.
func (a *app) appendOnlyOn(ctx context.Context, r *repo.Repo, s *appendOnlyFlags) error {
	opt := repo.AppendOnlyOptions{DropKeys: s.dropKeys, DryRun: s.dryRun}
	if s.protect && !s.dryRun {
		p, err := a.newPassword(&s.password)
		if err != nil {
			return err
		}
		opt.Password = p
	}
	saved := false
	if s.ownerKey != "" {
		opt.Save = func(cred []byte) error {
			err := writeSecret(s.ownerKey, cred)
			saved = err == nil
			return err
		}
	}
	changes, err := r.SetAppendOnly(ctx, true, opt)
	if err != nil && saved {
		return fmt.Errorf("%w; the owner's credential is in %s: with --credential it goes on", err, quote(s.ownerKey))
	}
	if err := a.keyChanges(changes, s.dryRun, err); err != nil {
		return err
	}
	if s.dryRun {
		return nil
	}
	a.sayf("append-only mode is on: passwords read and add, and remove nothing")
	if saved {
		a.sayf("  the owner's credential is in %s: without it nobody can forget or prune; keep two copies", quote(s.ownerKey))
	}
	return a.emit("append-only", object{"on": true}.setPath("credential", s.ownerKey))
}

// keyChanges prints what became of the keys, unless there was an error.
func (a *app) keyChanges(changes []repo.KeyChange, dry bool, err error) error {
	if err != nil {
		return err
	}
	would := ""
	if dry {
		would = "would be "
	}
	for _, k := range changes {
		what := "replaced"
		if k.Dropped {
			what = "removed"
		}
		a.sayf("key %s %s%s", k.ID.String()[:8], would, what)
		o := object{"id": k.ID.String(), "label": k.Label, "dropped": k.Dropped, "dry_run": dry}
		if !k.Locked.IsZero() {
			o["locked_until"] = k.Locked.UTC().Format(time.RFC3339)
			a.warnf("key %s is locked until %s: until then it opens what it has opened so far, for who knows its password; a later prune removes it", k.ID.String()[:8], lockText(k.Locked))
		}
		if k.New != (repo.ID{}) {
			o["new"] = k.New.String()
		}
		if err := a.emit("key-replaced", o); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) appendOnlyOffCommand() *cobra.Command {
	var s appendOnlyFlags
	c := &cobra.Command{
		Use:   "off",
		Short: "End append-only mode",
		Long: `off gives every password of the repository the owner's rights again. It needs
--credential with the owner's file.`,
		Example: `  cutbank append-only off -r /backup --credential /media/safe/owner.cred`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.repo(c.Context())
			if err != nil {
				return err
			}
			changes, err := r.SetAppendOnly(c.Context(), false, repo.AppendOnlyOptions{DropKeys: s.dropKeys, DryRun: s.dryRun})
			if err := a.keyChanges(changes, s.dryRun, err); err != nil || s.dryRun {
				return err
			}
			a.sayf("append-only mode is off: every password has the owner's rights")
			return a.emit("append-only", object{"on": false})
		},
	}
	s.add(c)
	return c
}

func (a *app) appendOnlyStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Tell whether append-only mode is on",
		Long:    `status tells whether append-only mode is on, and whether the key in use is the owner's.`,
		Example: `  cutbank append-only status -r /backup --json`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.repo(c.Context())
			if err != nil {
				return err
			}
			k := r.SecretKeys()
			on, owner := r.Config().AppendOnly, k.Self() == k.Owner()
			mode, who := "off", "is the owner's"
			if on {
				mode = "on"
			}
			if !owner {
				who = "reads and adds, and removes nothing"
			}
			a.sayf("append-only mode is %s; the key in use %s", mode, who)
			return a.emit("append-only", object{"on": on, "owner": owner})
		},
	}
}

// initAppendOnly is what init does with --append-only.
func (a *app) initAppendOnly(ctx context.Context, r *repo.Repo, ownerKey string) error {
	if err := a.appendOnlyOn(ctx, r, &appendOnlyFlags{ownerKey: ownerKey}); err != nil {
		return fmt.Errorf("the repository is made, but append-only mode is not on: %w", err)
	}
	return nil
}

// checkNew is for a file that is to be written later.
func checkNew(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s is there already: name another file: %w", quote(path), os.ErrExist)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
