package postgresql

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// dumped is what pg_dump has written, in scratch space.
type dumped struct {
	root tree.Node
	info system.Info
}

func (d *dumped) Root() tree.Node                             { return d.root }
func (d *dumped) Finish(context.Context) (system.Info, error) { return d.info, nil }
func (d *dumped) Close(context.Context, bool) error           { return nil }

// dirName is the name of a database as that of a directory, and back again.
func dirName(database string) string {
	name := strings.NewReplacer("%", "%25", "/", "%2F").Replace(database)
	if strings.HasPrefix(name, ".") {
		name = "%2E" + name[1:]
	}
	return name
}

func databaseName(dir string) string {
	return strings.NewReplacer("%25", "%", "%2F", "/", "%2E", ".").Replace(dir)
}

// dump captures databases one by one.
func (s *System) dump(ctx context.Context, info system.Info, opt system.CaptureOptions) (system.Capture, error) {
	rows, err := s.query(ctx, s.database, "select datname from pg_database where datallowconn and not datistemplate order by datname")
	if err != nil {
		return nil, err
	}
	chosen, err := choose(rows, opt)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(opt.Scratch, "dump")
	if err := os.MkdirAll(filepath.Join(dir, "databases"), 0o700); err != nil {
		return nil, err
	}
	for _, row := range rows {
		name := row[0]
		opt.Logf("dumping %s", name)
		to := filepath.Join(dir, "databases", dirName(name))
		if opt.Mode == system.Dataless {
			err = s.dumpSchema(ctx, name, to, opt.Scratch)
		} else {
			err = s.dumpDatabase(ctx, name, to, chosen[name])
		}
		if err != nil {
			return nil, fmt.Errorf("database %s: %w", name, err)
		}
	}
	if err := s.dumpRoles(ctx, dir, opt); err != nil {
		return nil, err
	}
	info.Facts["databases"] = strconv.Itoa(len(rows))
	root, err := source.Open(dir)
	return &dumped{root, info}, err
}

// choose returns the databases of which the data is wanted.
func choose(rows [][]string, opt system.CaptureOptions) (map[string]bool, error) {
	chosen := map[string]bool{}
	if opt.Mode == system.Light && len(opt.Data) == 0 {
		return nil, fmt.Errorf("--mode light: say with --data of which databases to keep the data: %w", system.ErrRefused)
	}
	for _, pattern := range opt.Data {
		fits := false
		for _, row := range rows {
			ok, err := path.Match(pattern, row[0])
			if err != nil {
				return nil, fmt.Errorf("--data %q: %w: %w", pattern, err, system.ErrRefused)
			}
			if ok || pattern == row[0] {
				chosen[row[0]], fits = true, true
			}
		}
		if !fits {
			return nil, fmt.Errorf("--data %q: the server has no database of this name: %w", pattern, system.ErrRefused)
		}
	}
	return chosen, nil
}

// dumpDatabase writes a directory that pg_restore takes: a file for each table, not
// compressed, so that what did not change is stored once.
func (s *System) dumpDatabase(ctx context.Context, name, to string, data bool) error {
	args := []string{"-w", "-Fd", "-Z0", "--no-sync", "-f", to, "-d", conninfo(name)}
	if data {
		args = append(args, "-j", strconv.Itoa(s.jobs))
	} else {
		args = append(args, "--schema-only")
	}
	return s.tools.Run(ctx, "pg_dump", args...)
}

// dumpSchema writes schema.sql, without what holds passwords: subscriptions, and the
// users of foreign servers.
func (s *System) dumpSchema(ctx context.Context, name, to, scratch string) error {
	tmp := filepath.Join(scratch, "schema")
	list := filepath.Join(scratch, "list")
	defer func() { _ = errors.Join(os.RemoveAll(tmp), os.Remove(list)) }() // with the scratch space at the latest
	if err := s.dumpDatabase(ctx, name, tmp, false); err != nil {
		return err
	}
	if err := s.list(ctx, tmp, list, noSecret); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return s.tools.To(ctx, filepath.Join(to, "schema.sql"), "pg_restore", "-L", list, "-f", "-", tmp)
}

// noSecret reports whether a part of a dump is kept where there shall be no password.
func noSecret(desc string) bool {
	for _, of := range []string{"USER MAPPING ", "SUBSCRIPTION ", "COMMENT - SUBSCRIPTION ", "SECURITY LABEL - SUBSCRIPTION "} {
		if strings.HasPrefix(desc, of) {
			return false
		}
	}
	return true
}

// list writes the list of what a dump holds, as far as it is wanted, into a new file.
func (s *System) list(ctx context.Context, dump, file string, want func(desc string) bool, args ...string) error {
	all := file + ".all"
	if err := s.tools.To(ctx, all, "pg_restore", append(args, "-l", dump)...); err != nil {
		return err
	}
	return errors.Join(filterList(all, file, want), os.Remove(all))
}

// filterList copies the lines of a list that are wanted. A line is
// "DUMPID; TABLEOID OID DESCRIPTION SCHEMA NAME OWNER".
func filterList(from, to string, want func(desc string) bool) error {
	return rewrite(from, to, func(line string) string {
		_, rest, ok := strings.Cut(line, "; ")
		if f := strings.SplitN(rest, " ", 3); ok && len(f) == 3 && !want(f[2]) {
			return ""
		}
		return line
	})
}

// rolesQuery has roles and who is in which, and nothing that people have set.
const rolesQuery = `select format('CREATE ROLE %I%s%s%s%s%s%s;', rolname, case when rolsuper then ' SUPERUSER' end, case when rolcreatedb then ' CREATEDB' end,
	case when rolcreaterole then ' CREATEROLE' end, case when rolcanlogin then ' LOGIN' end, case when rolreplication then ' REPLICATION' end, case when not rolinherit then ' NOINHERIT' end)
	from pg_roles where rolname !~ '^pg_' union all
	select format('GRANT %I TO %I%s;', r.rolname, m.rolname, case when a.admin_option then ' WITH ADMIN OPTION' end)
	from pg_auth_members a join pg_roles r on r.oid = a.roleid join pg_roles m on m.oid = a.member where m.rolname !~ '^pg_' order by 1`

// dumpRoles writes globals.sql: roles, tablespaces and settings; of a dataless
// snapshot roles alone.
func (s *System) dumpRoles(ctx context.Context, dir string, opt system.CaptureOptions) error {
	file := filepath.Join(dir, "globals.sql")
	if opt.Mode == system.Dataless {
		return s.tools.To(ctx, file, "psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-d", conninfo(s.database), "-c", rolesQuery)
	}
	args := []string{"-w", "--globals-only", "-l", s.database}
	err := s.tools.To(ctx, file, "pg_dumpall", args...)
	if err == nil || ctx.Err() != nil {
		return err
	}
	opt.Warnf("roles are kept without their passwords, which only a superuser may read: %v", err)
	if err := os.Remove(file); err != nil {
		return err
	}
	return s.tools.To(ctx, file, "pg_dumpall", append(args, "--no-role-passwords")...)
}
