package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

type copyFlags struct {
	to, passwordFile, passwordCommand, credential string

	names, tags           []string
	newest, workers       int
	interval              time.Duration
	dryRun, verify        bool
	follow, forget, marks bool
}

func (a *app) copyCommand() *cobra.Command {
	var f copyFlags
	c := &cobra.Command{
		Use:   "copy --to DST [SNAPSHOT...]",
		Short: "Copy snapshots into another repository",
		Long: `copy copies snapshots of the repository (--repo) into another one (--to): all, or the
chosen ones, oldest first. What has a copy there is passed over, and so is what came
from there: copying back and forth makes nothing twice. After an interruption the
next run goes on; what was stored is not stored again.

A copy has an ID of its own and is signed by whoever copies. It says of itself what
the original says, and holds the original's record (` + "`cutbank inspect`" + `); it has the
tags that the original has when it is copied, and is pinned and expires as that.
Every file is as it is there: attributes, holes, hard links, and what is marked as
lost or left out. The original's host can go on from it: if it makes snapshots into
DST, files that did not change since are not read.

Into a repository that was made with ` + "`init --like`" + ` packs are copied frame by frame as
they are, without cutting or compressing anew, into packs of other names. Into
others files are cut anew, with the secrets and sizes of DST; of a snapshot that
resembles one that has a copy, only what changed is read.

The password of DST comes from --to-password-command, --to-password-file,
CUTBANK_TO_PASSWORD, or a prompt; with --to-credential FILE it is opened with that,
as by its owner's file if it is append-only.

With --follow copy stays, and copies new snapshots as they appear, until it is
interrupted; then it ends with exit code 0, or with that of the last round if it had
failed. A round that fails is told of and tried again, with growing pauses.

With --forget what was forgotten here is forgotten there too: copies of snapshots
that were made here and are gone, but none that is pinned there, and never the last
ones of a name (exit code 9). With --marks the tags, pins and expiries of all copies
are made those of their originals again. Both need the owner's key of DST.`,
		Example: `  cutbank copy -r /backup --to /mnt/offsite
  cutbank copy -r /backup --to /mnt/offsite --name db --newest 3 --dry-run
  cutbank copy -r /backup --to /mnt/offsite db/latest --verify
  cutbank copy -r /backup --to /mnt/offsite --follow --interval 5m --forget`,
		RunE: func(c *cobra.Command, args []string) error { return a.copy(c.Context(), &f, args) },
	}
	fl := c.Flags()
	fl.StringVar(&f.to, "to", "", "the repository to copy into")
	fl.StringVar(&f.passwordFile, "to-password-file", "", "file whose first line is the password of --to")
	fl.StringVar(&f.credential, "to-credential", os.Getenv("CUTBANK_TO_CREDENTIAL"), "file with a credential to open --to with (CUTBANK_TO_CREDENTIAL)")
	fl.StringVar(&f.passwordCommand, "to-password-command", "", "command whose first line of output is the password of --to")
	fl.StringSliceVar(&f.names, "name", nil, "only snapshots of this name; repeatable")
	fl.StringSliceVar(&f.tags, "tag", nil, "only snapshots with this tag; repeatable")
	fl.IntVar(&f.newest, "newest", 0, "only the newest so many of each name")
	fl.BoolVarP(&f.dryRun, "dry-run", "n", false, "tell what would be copied, and write nothing")
	fl.BoolVar(&f.verify, "verify", false, "compare each new copy with its original")
	fl.BoolVar(&f.follow, "follow", false, "stay, and copy new snapshots as they appear")
	f.interval = time.Minute
	fl.Var((*spanFlag)(&f.interval), "interval", "with --follow: how often to look")
	fl.BoolVar(&f.forget, "forget", false, "forget copies whose originals are forgotten")
	fl.BoolVar(&f.marks, "marks", false, "make tags, pins and expiries of copies those of the originals")
	fl.IntVar(&f.workers, "workers", 0, "files cut at once (default: one for each core)")
	return c
}

func (f *copyFlags) check(args []string) error {
	switch {
	case f.to == "":
		return usagef("--to names no repository to copy into; see `cutbank copy --help`")
	case f.newest < 0:
		return usagef("--newest %d: want 1 or more", f.newest)
	case f.workers < 0:
		return usagef("--workers %d: want 1 or more", f.workers)
	case f.interval < time.Second:
		return usagef("--interval %s: want 1s or more", spanText(f.interval))
	case f.follow && f.dryRun:
		return usagef("--follow and --dry-run exclude each other")
	case f.follow && len(args) > 0:
		return usagef("--follow takes no SNAPSHOTs: choose by --name and --tag")
	case f.passwordFile != "" && f.passwordCommand != "":
		return usagef("give only one of --to-password-file and --to-password-command")
	case len(args) > 0 && (f.newest > 0 || len(f.names) > 0 || len(f.tags) > 0):
		return usagef("name SNAPSHOTs, or choose by --name, --tag and --newest, not both")
	}
	return nil
}

func (a *app) copy(ctx context.Context, f *copyFlags, args []string) error {
	if err := f.check(args); err != nil {
		return err
	}
	src, err := a.repo(ctx)
	if err != nil {
		return err
	}
	dst, err := a.openTo(ctx, f)
	if err != nil {
		return err
	}
	defer dst.Close()
	if src.Config().Repo == dst.Config().Repo {
		return usagef("--to %s is the repository itself", quote(f.to))
	}
	k := newCopying(a, f, src, dst, args)
	if f.follow {
		return k.follow(ctx)
	}
	return k.round(ctx)
}

// openTo opens the repository to copy into.
func (a *app) openTo(ctx context.Context, f *copyFlags) (*repo.Repo, error) {
	b, err := a.backendAt(f.to)
	if err != nil {
		return nil, fmt.Errorf("--to: %w", err)
	}
	opt, err := a.options()
	if err != nil {
		return nil, err
	}
	env := os.Getenv("CUTBANK_TO_PASSWORD")
	if opt.Credential, err = a.credentialIn("--to-credential", f.credential); err != nil {
		return nil, err
	}
	opt.NoOpenKeys = f.passwordFile != "" || f.passwordCommand != "" || env != ""
	opt.Password = func() (string, error) {
		switch {
		case f.passwordCommand != "":
			return a.commandPassword("--to-password-command", f.passwordCommand)
		case f.passwordFile != "":
			p, err := os.ReadFile(f.passwordFile)
			if err != nil {
				return "", fmt.Errorf("--to-password-file: %w", err)
			}
			return firstLine(p, "the file named by --to-password-file is empty")
		case env != "":
			return env, nil
		}
		return a.promptPassword("password of "+f.to+": ", false)
	}
	dst, err := repo.Open(ctx, b, opt)
	if err != nil {
		return nil, a.otherError("to", f.to, err)
	}
	if err := dst.Readable(); err != nil {
		dst.Close()
		return nil, fmt.Errorf("--to %s: %w", quote(f.to), err)
	}
	return dst, nil
}
