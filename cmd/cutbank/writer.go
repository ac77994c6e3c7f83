package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) writerCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "writer",
		Short: "Give nodes credentials that only add snapshots, and take them back",
		Long: `writer looks after nodes that add snapshots and read none. Each has a credential: a
file that is given to cutbank with --credential or CUTBANK_CREDENTIAL, instead of a
password. With it a node adds snapshots under its names and stores only what is
new; it can decrypt no contents, no name of a file and no record, not even its own.

A credential is a secret: who has it can add snapshots in the node's name. Only the
owner's key adds and revokes writers.`,
		Example: `  cutbank writer add -r /backup --name 'web-*' --expires 90d --out web.cred
  cutbank snapshot -r /backup --credential web.cred --name web-1 /srv
  cutbank writer list -r /backup
  cutbank writer revoke -r /backup 4f3a9c`,
		Args: subcommand("add, list or revoke"),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.writerAddCommand(), a.writerListCommand(), a.writerRevokeCommand())
	return c
}

func (a *app) writerAddCommand() *cobra.Command {
	var nw repo.NewWriter
	var expires, out string
	c := &cobra.Command{
		Use:   "add",
		Short: "Make a credential for a node that only adds snapshots",
		Long: `add registers a new writer and writes its credential to a new file, which only its
owner can read. It cannot be made again: bring it to the node on a safe way.

--name takes a pattern of the snapshot names that the writer may use, such as
web-1 or 'db-*'; it may be given several times. --expires takes a span from now or
a time; snapshots that are dated later do not count. Whoever has a stolen credential
can date back: revoke it.

Others lean on what a writer stored only after the owner read it whole, by
"cutbank verify --read-data": until then they store the same data again. With
--trusted they lean on it at once, and a writer that lies could then spoil their
snapshots.`,
		Example: `  cutbank writer add -r /backup --name 'web-*' --out web.cred
  cutbank writer add -r /backup --name db --name db-log --expires 90d --note 'rack 7' --out db.cred`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			if len(nw.Names) == 0 {
				return usagef("--name is needed: which snapshot names the writer may use; '*' is all")
			}
			if out == "" {
				return usagef("--out is needed: where to write the credential")
			}
			if expires != "" {
				t, err := timeAhead(expires, now())
				if err != nil {
					return usagef("--expires: %v", err)
				}
				nw.Expires = t
			}
			return a.addWriter(c.Context(), nw, out)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&nw.Names, "name", nil, "pattern of snapshot names that it may use; repeatable")
	f.StringVar(&expires, "expires", "", "until when, such as 90d or 2027-01-01 (default: for ever)")
	f.StringVar(&nw.Note, "note", "", "what it is, for people")
	f.BoolVar(&nw.Trusted, "trusted", false, "let others lean on what it stores before the owner verified it")
	f.StringVarP(&out, "out", "o", "", "the new file for the credential")
	return c
}

// timeAhead reads a span from now, or a time.
func timeAhead(s string, at time.Time) (time.Time, error) {
	if d, ok := parseAge(s); ok {
		return at.Add(d).UTC().Truncate(time.Second), nil
	}
	w, err := parseWhen(s, at)
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time: write it like 90d, 2027-01-01 or 2027-01-01T18:00:00Z", s)
	}
	if t := w.Time(); t.After(at) {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%s is past", s)
}

func (a *app) addWriter(ctx context.Context, nw repo.NewWriter, out string) error {
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	kept := false
	id, err := r.AddWriter(ctx, nw, func(cred []byte) error {
		err := writeSecret(out, cred)
		kept = err == nil
		return err
	})
	if err != nil {
		if kept { // it opens nothing
			err = errors.Join(err, os.Remove(out))
		}
		return err
	}
	a.sayf("added writer %s for snapshots named %s", id.String()[:8], strings.Join(nw.Names, ", "))
	a.sayf("  its credential is in %s: it is a secret, and there is no other copy", quote(out))
	o := object{"id": id.String(), "names": nw.Names, "note": nw.Note, "trusted": nw.Trusted}.setPath("credential", out)
	if !nw.Expires.IsZero() {
		o["expires"] = nw.Expires
	}
	return a.emit("writer-added", o)
}

// writeSecret writes a new file that only its owner can read. What is there
// already is fs.ErrExist, and stays.
func writeSecret(path string, p []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already, and may be a secret that is needed: name another file: %w", quote(path), fs.ErrExist)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func (a *app) writerListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the writers",
		Long: `list shows who may add snapshots besides the owner: the names, until when, whether
it was revoked, and the last snapshot of each that counts.`,
		Example: `  cutbank writer list -r /backup --json`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.repo(c.Context())
			if err != nil {
				return err
			}
			list, damage := r.Writers(c.Context())
			for _, w := range list {
				if err := a.emit("writer", writerObject(&w)); err != nil {
					return err
				}
				if w.Newer != nil {
					a.warnf("a newer word about writer %s cannot be read: %v", w.ID, w.Newer)
				}
			}
			if err := a.table(func(w *tabwriter.Writer) { writerTable(w, list) }); err != nil {
				return err
			}
			if len(list) == 0 && damage == nil {
				a.sayf("no writers but the owner: `cutbank writer add` makes one")
			}
			return damage
		},
	}
}

func writerObject(w *repo.WriterInfo) object {
	rights := w.Rights
	if len(rights) == 0 {
		rights = []string{repo.RightWrite}
	}
	o := object{"id": w.ID.String(), "names": w.Names, "rights": rights, "note": w.Note, "snapshots": w.Snapshots}
	if !w.Expires.IsZero() {
		o["expires"] = w.Expires
	}
	if !w.Revoked.IsZero() {
		o["revoked"] = w.Revoked
	}
	if w.Last != nil {
		o["last"], o["last_name"], o["last_dir"] = w.Last.ID.String(), w.Last.Name, w.Last.Dir
	}
	return o
}

func writerTable(tw *tabwriter.Writer, list []repo.WriterInfo) {
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(tw, "ID\tNAMES\tRIGHTS\tUNTIL\tSNAPSHOTS\tLAST\tNOTE")
	for _, w := range list {
		until, last := "", ""
		switch {
		case !w.Revoked.IsZero():
			until = "revoked " + w.Revoked.UTC().Format(repo.TimeLayout)
		case !w.Expires.IsZero():
			until = w.Expires.UTC().Format(repo.TimeLayout)
		}
		if w.Last != nil {
			last = w.Last.Name + "/" + w.Last.Dir
		}
		rights := strings.Join(w.Rights, ",")
		if rights == "" {
			rights = repo.RightWrite
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", w.ID.String()[:8], quote(strings.Join(w.Names, " ")), quote(rights), until, countText(uint64(w.Snapshots)), last, quote(w.Note))
	}
}

func (a *app) writerRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a writer's right, now",
		Long: `revoke ends the right of the writer whose ID starts with ID. Its snapshots that are
there now stay; nothing that it signs from now on counts, however it is dated.`,
		Example: `  cutbank writer revoke -r /backup 4f3a9c`,
		Args:    exactly(1, "one ID (`cutbank writer list` shows them)"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.repo(c.Context())
			if err != nil {
				return err
			}
			w, accepted, err := r.RevokeWriter(c.Context(), args[0])
			if w.Revoked.IsZero() {
				return err
			}
			if err != nil {
				a.warnf("what cannot be read now counts no longer, if it is that writer's: %v", err)
			}
			a.sayf("writer %s is revoked; %s of its snapshots stay", w.ID.String()[:8], countText(uint64(accepted)))
			return a.emit("writer-revoked", object{"id": w.ID.String(), "revoked": w.Revoked, "accepted": accepted})
		},
	}
}
