package postgresql

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// The states of a database that is to be restored.
const (
	missing = "not there yet"
	empty   = "there and empty"
	full    = "replaced"
)

// target is a database that is to be restored.
type target struct {
	name, state string
	data        bool // the snapshot has its data, and not its structure alone
}

// target looks at a stored database, and at what the server has of that name.
func (s *System) target(ctx context.Context, d tree.Node) (target, error) {
	t := target{name: databaseName(d.Attr().Name)}
	var err error
	if t.data, err = hasData(ctx, d); err == nil {
		t.state, err = s.state(ctx, t.name)
	}
	return t, err
}

// hasData reports whether a stored database has the data of a table, if it has but one
// row or none, or a large object: pg_dump makes a file of each, and nothing but files.
// A link would have pg_restore read what is on this machine.
func hasData(ctx context.Context, d tree.Node) (has bool, err error) {
	for f, err := range d.Entries(ctx, 0) {
		if err != nil {
			return false, err
		}
		a := f.Attr()
		if a.Kind != tree.File {
			return false, fmt.Errorf("%q in databases/%s is no file, and pg_dump writes nothing else: %w", a.Name, d.Attr().Name, system.ErrRefused)
		}
		has = has || a.Name != "toc.dat" && strings.HasSuffix(a.Name, ".dat")
	}
	return has, nil
}

// state says what the server has of a database.
func (s *System) state(ctx context.Context, name string) (string, error) {
	rows, err := s.query(ctx, s.database, "select 1 from pg_database where datname = "+literal(name))
	if err != nil || len(rows) == 0 {
		return missing, err
	}
	rows, err = s.query(ctx, name, `select (select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
		+ (select count(*) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
		+ (select count(*) from pg_namespace where nspname !~ '^pg_' and nspname not in ('public', 'information_schema'))`)
	if err != nil {
		return "", err
	}
	if len(rows) == 1 && slices.Equal(rows[0], []string{"0"}) {
		return empty, nil
	}
	return full, nil
}

// mayReplace refuses databases that hold something, unless they may be replaced. By
// structure alone none ever is: its rows would be gone.
func (s *System) mayReplace(ctx context.Context, all tree.Node, targets []target, opt system.RestoreOptions) error {
	var lost []string
	for _, t := range targets {
		if t.state == full && !t.data {
			lost = append(lost, t.name)
		}
	}
	if len(lost) > 0 {
		return noData(ctx, all, lost, opt)
	}
	for _, t := range targets {
		switch {
		case t.state != full:
			continue
		case !opt.Force:
			return fmt.Errorf("database %s is not empty: --force drops it first: %w", t.name, system.ErrRefused)
		case t.name == s.database:
			return fmt.Errorf("database %s is in use by this restore itself: name another with -d: %w", t.name, system.ErrRefused)
		}
		if err := s.alone(ctx, t.name); err != nil {
			return err
		}
	}
	return nil
}

// noData is the refusal of databases that are there, and of which the snapshot has
// structure alone.
func noData(ctx context.Context, all tree.Node, lost []string, opt system.RestoreOptions) error {
	var have []string
	for d, err := range all.Entries(ctx, 0) {
		if err != nil {
			return err
		}
		data, err := hasData(ctx, d)
		if err != nil {
			return err
		}
		if data {
			have = append(have, databaseName(d.Attr().Name))
		}
	}
	which := "database " + lost[0] + ", which is"
	if len(lost) > 1 {
		which = "databases " + enumerate(lost) + ", which are"
	}
	has := "this one has data of none"
	if len(have) > 0 {
		has = "this one has data of " + enumerate(have) + ", and databases/NAME restores one of them"
	}
	return fmt.Errorf("of %s not empty, this %s snapshot has structure only, and --force does not replace what is there by nothing: restore a full snapshot, or a light one whose --data has it (%s), or drop it yourself first: %w",
		which, opt.Mode, has, system.ErrRefused)
}

// enumerate lists names of databases, not too many of them.
func enumerate(names []string) string {
	const most = 20
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// alone refuses a database to which others are connected: it cannot be replaced. What
// the server does there by itself, as autovacuum, is nobody's session, and the server
// ends it where the database is renamed.
func (s *System) alone(ctx context.Context, name string) error {
	rows, err := s.query(ctx, s.database, "select count(*) from pg_stat_activity where usesysid is not null and pid <> pg_backend_pid() and datname = "+literal(name))
	if err == nil && (len(rows) != 1 || len(rows[0]) != 1 || rows[0][0] != "0") {
		err = fmt.Errorf("database %s is in use by %s others, and cannot be replaced: stop what is connected to it (pg_stat_activity names it): %w", name, rows[0][0], system.ErrRefused)
	}
	return err
}
