package postgresql

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
)

// restoreDump brings databases of a light or dataless snapshot into a server.
func (s *System) restoreDump(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	now, err := s.identity(ctx)
	if err != nil {
		return system.Result{}, err
	}
	if err := command.CheckRelease(info, now, 1, opt); err != nil {
		return system.Result{}, err
	}
	all, err := n.Lookup(ctx, "databases")
	if err != nil {
		return system.Result{}, err
	}
	var wanted []tree.Node
	for d, err := range all.Entries(ctx, 0) {
		if err != nil {
			return system.Result{}, err
		}
		if opt.Path == "" || opt.Path == "databases" || opt.Path == "databases/"+d.Attr().Name {
			wanted = append(wanted, d)
		}
	}
	if len(wanted) == 0 {
		return system.Result{}, fmt.Errorf("%s: %w: paths that can be restored are databases and databases/NAME", opt.Path, fs.ErrNotExist)
	}
	if opt.Mode == system.Dataless && (s.noOwner || s.noPrivileges || s.noTablespaces) {
		return system.Result{}, fmt.Errorf("--no-owner, --no-privileges and --no-tablespaces are for light snapshots: the schema of a dataless one is text, which can be changed (`cutbank cat SNAPSHOT:databases/NAME/schema.sql`): %w", system.ErrRefused)
	}
	targets := make([]target, len(wanted))
	for i, d := range wanted { // all are looked at before any is touched
		if targets[i], err = s.target(ctx, d); err != nil {
			return system.Result{}, err
		}
	}
	if err := s.mayReplace(ctx, all, targets, opt); err != nil {
		return system.Result{}, err
	}
	res := system.Result{}
	var bare []string
	for i, d := range wanted {
		t := targets[i]
		only := ""
		if !t.data {
			only, bare = ", structure only", append(bare, t.name)
		}
		opt.Stepf("database %s, which is %s%s", t.name, t.state, only)
		if !opt.DryRun {
			if err := s.restoreDatabase(ctx, d, t.name, t.state, opt); err != nil {
				return res, fmt.Errorf("database %s: %w%s", t.name, err, hint(err, opt.Mode))
			}
		}
		res.Items++
		if t, ok := d.(tree.Totaler); ok {
			res.Bytes += t.Totals().Bytes
		}
	}
	if len(bare) > 0 {
		res.Notes = append(res.Notes, "fill what has structure only, for the snapshot has no data of it: "+enumerate(bare))
	}
	return res, nil
}

// hint tells what to do about errors that are to be expected.
func hint(err error, mode system.Mode) string {
	text := err.Error()
	switch {
	case strings.Contains(text, `invalid command \restrict`):
		return " (this psql cannot be kept from doing what stands in a schema behind a backslash: use one of 13.22, 14.19, 15.14, 16.10, 17.6, or later)"
	case strings.Contains(text, "invalid locale name") || strings.Contains(text, "locale") && strings.Contains(text, "does not match"):
		return " (make the database yourself, empty, with a locale that this server has: then it is filled as it is)"
	case !strings.Contains(text, "role ") && !strings.Contains(text, "tablespace ") || !strings.Contains(text, "does not exist"):
		return ""
	case mode == system.Dataless:
		return " (globals.sql of the snapshot makes roles: `cutbank cat SNAPSHOT:globals.sql | psql`; tablespaces are to be made by hand)"
	}
	return " (globals.sql of the snapshot makes roles and tablespaces: `cutbank cat SNAPSHOT:globals.sql | psql`; --no-owner, --no-privileges and --no-tablespaces do without)"
}

// restoreDatabase brings one back. One that was there and empty is filled; any other is
// made under a name of its own first, and has its own when it is whole: until then the
// one that it replaces is as it was.
func (s *System) restoreDatabase(ctx context.Context, d tree.Node, name, state string, opt system.RestoreOptions) error {
	dump := filepath.Join(opt.Scratch, "restore")
	defer func() { _ = os.RemoveAll(dump) }() // with the scratch space at the latest
	if err := opt.Unpack(ctx, d, dump); err != nil {
		return err
	}
	if state == empty {
		return s.load(ctx, dump, name, opt)
	}
	define, after, err := s.definition(ctx, dump, opt)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(after) }()
	fresh, old := aside("new", name), aside("old", name)
	for _, db := range []string{fresh, old} { // of a run that was killed
		if err := s.drop(ctx, db); err != nil {
			return err
		}
	}
	if err = s.sql(ctx, "create database "+ident(fresh)+" "+define); err == nil {
		err = s.load(ctx, dump, fresh, opt)
	}
	if err == nil {
		err = s.swap(ctx, name, fresh, old, state)
	}
	if err != nil {
		return errors.Join(err, s.drop(context.WithoutCancel(ctx), fresh))
	}
	if after != "" {
		if err := s.psql(ctx, name, after); err != nil {
			return fmt.Errorf("its data is restored, but not its owner, privileges and settings: %w", err)
		}
	}
	if err := s.drop(ctx, old); err != nil {
		return fmt.Errorf("it is restored, but the one that it replaces, now called %s, is still there: %w", old, err)
	}
	return nil
}

// aside is what a database is called before it has its name, or when it no more has it.
func aside(what, name string) string {
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("cutbank-%s-%x", what, sum[:8])
}

// swap gives a database the place of another, which it may have or not, at once.
func (s *System) swap(ctx context.Context, name, fresh, old, state string) error {
	rename := "alter database " + ident(fresh) + " rename to " + ident(name)
	if state == full {
		rename = "alter database " + ident(name) + " rename to " + ident(old) + "; " + rename
	}
	return s.sql(ctx, rename)
}

func (s *System) drop(ctx context.Context, name string) error {
	return s.tools.Run(ctx, "dropdb", "-w", "--if-exists", "--maintenance-db="+s.database, "--", name)
}

// load fills an empty database, in one transaction where that is possible.
func (s *System) load(ctx context.Context, dump, name string, opt system.RestoreOptions) error {
	if opt.Mode == system.Dataless {
		return s.psql(ctx, name, filepath.Join(dump, "schema.sql"))
	}
	args := []string{"-w", "-e", "-d", conninfo(name)}
	if s.jobs > 1 {
		args = append(args, "-j", strconv.Itoa(s.jobs)) // which has no one transaction
	} else {
		args = append(args, "-1")
	}
	return s.tools.Run(ctx, "pg_restore", append(s.less(args), dump)...)
}

// less adds what is not to be restored.
func (s *System) less(args []string) []string {
	if s.noOwner {
		args = append(args, "-O")
	}
	if s.noPrivileges {
		args = append(args, "-x")
	}
	if s.noTablespaces {
		args = append(args, "--no-tablespaces")
	}
	return args
}

// ofDatabase reports whether a part of a dump is of the database itself.
func ofDatabase(desc string) bool {
	for _, of := range []string{"DATABASE ", "COMMENT - DATABASE ", "ACL - DATABASE ", "SECURITY LABEL - DATABASE "} {
		if strings.HasPrefix(desc, of) {
			return true
		}
	}
	return false
}

// definition returns what a dump says of its database: what follows the name where it
// is made, such as its encoding, and a file with what is to be done once it is there.
func (s *System) definition(ctx context.Context, dump string, opt system.RestoreOptions) (define, after string, err error) {
	define = "template template0"
	if opt.Mode == system.Dataless {
		return define, "", nil
	}
	list, all := filepath.Join(opt.Scratch, "database.list"), filepath.Join(opt.Scratch, "database.all")
	defer func() { _ = errors.Join(os.Remove(list), os.Remove(all)) }()
	if err := s.list(ctx, dump, list, ofDatabase, "-C"); err != nil {
		return "", "", err
	}
	if err := s.tools.To(ctx, all, "pg_restore", append(s.less([]string{"-C", "-s", "-L", list, "-f", "-"}), dump)...); err != nil {
		return "", "", err
	}
	after = filepath.Join(opt.Scratch, "database.sql")
	made := false
	err = rewrite(all, after, func(line string) string {
		_, with, ok := strings.Cut(line, " WITH TEMPLATE = template0 ")
		switch {
		case !made && ok && strings.HasPrefix(line, "CREATE DATABASE ") && strings.HasSuffix(with, ";\n"):
			with = strings.TrimSuffix(with, ";\n")
			if at := strings.LastIndex(with, " TABLESPACE = "); at >= 0 && s.noTablespaces {
				with = with[:at]
			}
			define, made = define+" "+with, true
			return ""
		case strings.HasPrefix(line, `\`): // to connect to it, and what is between
			return ""
		}
		return line
	})
	return define, after, err
}
