package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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

// keyFlags say where a new password comes from.
type keyFlags struct{ label, file, generate string }

func (a *app) keyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "List, add, change or remove passwords, rotate keys",
		Long: `key looks after the passwords of a repository. Each one opens the same secrets, so
that adding or removing one touches no data. Who once had a password and the
repository can have kept the secrets: removing a password does not take them
back. If one has leaked, "key rotate --drop" keeps it from opening what is stored
from then on.`,
		Example: `  cutbank key list -r /backup
  cutbank key add -r /backup --label alice
  cutbank key add -r /backup --label server --generate /etc/cutbank.key
  cutbank key remove -r /backup 4f3a9c
  cutbank key rotate -r /backup`,
		Args: subcommand("list, add, passwd, remove or rotate"),
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.keyListCommand(), a.keyAddCommand(), a.keyPasswdCommand(), a.keyRemoveCommand(), a.keyRotateCommand())
	return c
}

const newPasswordHelp = `The new password comes from --new-password-file, from CUTBANK_NEW_PASSWORD, or
from a prompt. --generate FILE makes one up instead, which nobody can guess, and
writes it to a new file that only its owner can read: a key file, for machines.
It is used with CUTBANK_PASSWORD_FILE=FILE; who loses it has lost the key.`

func (s *keyFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&s.label, "label", "", "what to call it, for people")
	c.Flags().StringVar(&s.file, "new-password-file", "", "file whose first line is the new password")
	c.Flags().StringVar(&s.generate, "generate", "", "make up a password and write it to this new file")
	c.MarkFlagsMutuallyExclusive("new-password-file", "generate")
}

// generatePassword makes up 32 bytes and writes them, as hexadecimal digits, to a
// new file.
func generatePassword(path string) (string, error) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", err
	}
	text := hex.EncodeToString(secret)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("--generate: %w; nothing was written, choose another file", err)
	}
	if err != nil {
		return "", fmt.Errorf("--generate: %w", err)
	}
	_, err = f.WriteString(text + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("--generate: %w", err), os.Remove(path))
	}
	return text, nil
}

// newPassword takes the first source that is set.
func (a *app) newPassword(s *keyFlags) (string, error) {
	if s.generate != "" {
		return generatePassword(s.generate)
	}
	if s.file != "" {
		p, err := os.ReadFile(s.file)
		if err != nil {
			return "", fmt.Errorf("--new-password-file: %w", err)
		}
		return firstLine(p, "the file named by --new-password-file is empty")
	}
	if p := os.Getenv("CUTBANK_NEW_PASSWORD"); p != "" {
		return p, nil
	}
	p, err := a.promptPassword("new password: ", true)
	if errors.Is(err, repo.ErrKey) { // there is no terminal to ask on
		return "", usagef("a new password is needed: set CUTBANK_NEW_PASSWORD or --new-password-file")
	}
	return p, err
}

func (a *app) keyListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the passwords, without their secrets",
		Long: `list shows the keys of a repository; the one that was just used is marked. EPOCH is
the newest key epoch that a key opens: each "key rotate" adds one. Of keys that
older programs made it is not known; they open what was there when they were made.`,
		Example: `  cutbank key list -r /backup --json`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.repo(c.Context())
			if err != nil {
				return err
			}
			keys, damage := r.Keys(c.Context())
			for _, k := range keys {
				if err := a.emit("key", keyObject(&k)); err != nil {
					return err
				}
			}
			if err := a.table(func(w *tabwriter.Writer) { keyTable(w, keys, r.SecretKeys().Newest()) }); err != nil {
				return err
			}
			return damage
		},
	}
}

func keyObject(k *repo.KeyInfo) object {
	o := object{"id": k.ID.String(), "created": k.Created, "label": k.Label, "kdf": k.KDF, "current": k.Current, "epoch": k.Epoch}
	if !k.Granted.IsZero() {
		o["granted"] = k.Granted
	}
	return o
}

func keyTable(w *tabwriter.Writer, keys []repo.KeyInfo, newest uint32) {
	fmt.Fprintln(w, "ID\tCREATED\tPROTECTED BY\tEPOCH\tLABEL\tUSED NOW")
	for _, k := range keys {
		kdf, _, _ := strings.Cut(k.KDF, "-") // how its secrets came to it is of no interest here
		how, used := "password ("+kdf+")", ""
		switch k.KDF {
		case "none":
			how = "nothing"
		case "":
			how = "a credential elsewhere"
		}
		if k.Current {
			used = "yes"
		}
		epoch := fmt.Sprintf("%d of %d", k.Epoch, newest)
		if k.Epoch == 0 {
			epoch = "unknown"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID.String()[:8], k.Created.UTC().Format(time.DateTime)+"Z", how, epoch, quote(k.Label), used)
	}
}

func (a *app) keyAddCommand() *cobra.Command {
	var s keyFlags
	c := &cobra.Command{
		Use:   "add",
		Short: "Add a password",
		Long:  "add makes one more password that opens the repository.\n\n" + newPasswordHelp,
		Example: `  CUTBANK_NEW_PASSWORD=... cutbank key add -r /backup --label alice
  cutbank key add -r /backup --label server --generate /etc/cutbank.key
  CUTBANK_PASSWORD_FILE=/etc/cutbank.key cutbank snapshots -r /backup`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			id, err := a.addKey(c.Context(), &s)
			if err != nil {
				return err
			}
			a.sayf("added key %s", id.String()[:8])
			return a.emit("key-added", object{"id": id.String(), "label": s.label})
		},
	}
	s.add(c)
	return c
}

func (a *app) addKey(ctx context.Context, s *keyFlags) (repo.ID, error) {
	r, err := a.repo(ctx)
	if err != nil {
		return repo.ID{}, err
	}
	p, err := a.newPassword(s)
	if err != nil {
		return repo.ID{}, err
	}
	id, err := r.AddKey(ctx, p, s.label)
	if err != nil && s.generate != "" {
		err = errors.Join(err, os.Remove(s.generate))
	}
	return id, err
}

func (a *app) keyPasswdCommand() *cobra.Command {
	var s keyFlags
	c := &cobra.Command{
		Use:   "passwd",
		Short: "Change the password that is being used",
		Long: `passwd adds a new password, and then removes the one that the repository was just
opened with. If it is interrupted between the two, both open.

` + newPasswordHelp,
		Example: `  cutbank key passwd -r /backup`,
		Args:    exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.repo(c.Context())
			if err != nil {
				return err
			}
			keys, err := r.Keys(c.Context())
			var old repo.KeyInfo
			for _, k := range keys {
				if k.Current {
					old = k
				}
			}
			if old.ID == (repo.ID{}) {
				return errors.Join(errors.New("the key that was just used is gone; nothing was changed"), err)
			}
			if s.label == "" {
				s.label = old.Label
			}
			id, err := a.addKey(c.Context(), &s)
			if err != nil {
				return err
			}
			if _, err := r.RemoveKey(c.Context(), old.ID.String()); err != nil {
				return fmt.Errorf("the new password is key %s, but the old one still opens: %w", id.String()[:8], err)
			}
			a.sayf("changed the password: key %s instead of %s", id.String()[:8], old.ID.String()[:8])
			return a.emit("key-changed", object{"id": id.String(), "removed": old.ID.String(), "label": s.label})
		},
	}
	s.add(c)
	return c
}

func (a *app) keyRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "Remove a password",
		Long: `remove removes the password whose ID starts with ID. The last one stays. Who had
the password may have kept the secrets that it opened, and reads with them what is
stored now and later: if the password has leaked, use "key rotate --drop" instead.`,
		Example: `  cutbank key remove -r /backup 4f3a9c`,
		Args:    exactly(1, "one ID (`cutbank key list` shows them)"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.repo(c.Context())
			if err != nil {
				return err
			}
			id, err := r.RemoveKey(c.Context(), args[0])
			if err != nil {
				return err
			}
			a.sayf("removed key %s", id.String()[:8])
			return a.emit("key-removed", object{"id": id.String()})
		},
	}
}
