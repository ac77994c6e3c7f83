package postgresql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
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
		n := len(chosen)
		for _, row := range rows {
			ok, err := path.Match(pattern, row[0])
			if err != nil {
				return nil, fmt.Errorf("--data %q: %w: %w", pattern, err, system.ErrRefused)
			}
			if ok || pattern == row[0] {
				chosen[row[0]] = true
			}
		}
		if n == len(chosen) && !chosen[pattern] {
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
	toc, err := s.tools.Ask(ctx, "pg_restore", "-l", tmp)
	if err != nil {
		return err
	}
	if err := os.WriteFile(list, []byte(withoutSecrets(toc)), 0o600); err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return s.tools.To(ctx, filepath.Join(to, "schema.sql"), "pg_restore", "-L", list, "-f", "-", tmp)
}

// withoutSecrets takes lines out of the list of what a dump holds. A line is
// "DUMPID; TABLEOID OID DESCRIPTION SCHEMA NAME OWNER".
func withoutSecrets(toc string) string {
	var b strings.Builder
	for line := range strings.Lines(toc) {
		_, rest, ok := strings.Cut(line, "; ")
		if f := strings.SplitN(rest, " ", 3); ok && len(f) == 3 && (strings.HasPrefix(f[2], "USER MAPPING ") || strings.HasPrefix(f[2], "SUBSCRIPTION ")) {
			continue
		}
		b.WriteString(line)
	}
	return b.String()
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
	res := system.Result{}
	states := make([]string, len(wanted))
	for i, d := range wanted { // all are looked at before any is touched
		if states[i], err = s.state(ctx, databaseName(d.Attr().Name), opt); err != nil {
			return res, err
		}
	}
	for i, d := range wanted {
		name := databaseName(d.Attr().Name)
		opt.Stepf("database %s, which is %s", name, states[i])
		if !opt.DryRun {
			if err := s.restoreDatabase(ctx, d, name, states[i], opt); err != nil {
				return res, fmt.Errorf("database %s: %w%s", name, err, hint(err))
			}
		}
		res.Items++
		if t, ok := d.(tree.Totaler); ok {
			res.Bytes += t.Totals().Bytes
		}
	}
	return res, nil
}

// hint tells what to do about errors that are to be expected.
func hint(err error) string {
	if text := err.Error(); (strings.Contains(text, "role ") || strings.Contains(text, "tablespace ")) && strings.Contains(text, "does not exist") {
		return " (globals.sql of the snapshot makes roles and tablespaces: `cutbank cat SNAPSHOT:globals.sql | psql`; --no-owner, --no-privileges and --no-tablespaces do without)"
	}
	return ""
}

// The states of a database that is to be restored.
const (
	missing = "not there yet"
	empty   = "there and empty"
	full    = "replaced"
)

// state refuses a database that holds something, unless that may be replaced.
func (s *System) state(ctx context.Context, name string, opt system.RestoreOptions) (string, error) {
	rows, err := s.query(ctx, s.database, "select 1 from pg_database where datname = "+literal(name))
	if err != nil || len(rows) == 0 {
		return missing, err
	}
	rows, err = s.query(ctx, name, `select (select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
		+ (select count(*) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
		+ (select count(*) from pg_namespace where nspname !~ '^pg_' and nspname not in ('public', 'information_schema'))`)
	switch {
	case err != nil:
		return "", err
	case len(rows) == 1 && slices.Equal(rows[0], []string{"0"}):
		return empty, nil
	case !opt.Force:
		return "", fmt.Errorf("database %s is not empty: --force drops it first: %w", name, system.ErrRefused)
	case name == s.database:
		return "", fmt.Errorf("database %s is in use by this restore itself: name another with -d: %w", name, system.ErrRefused)
	}
	return full, nil
}

// restoreDatabase brings one back, in one transaction.
func (s *System) restoreDatabase(ctx context.Context, d tree.Node, name, state string, opt system.RestoreOptions) error {
	tmp := filepath.Join(opt.Scratch, "restore")
	if err := opt.Unpack(ctx, d, tmp); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }() // with the scratch space at the latest
	if state == full {
		if err := s.tools.Run(ctx, "dropdb", "-w", "--maintenance-db="+s.database, "--", name); err != nil {
			return err
		}
	}
	if state != empty {
		if err := s.tools.Run(ctx, "createdb", "-w", "-T", "template0", "--maintenance-db="+s.database, "--", name); err != nil {
			return err
		}
	}
	if opt.Mode == system.Dataless {
		return s.tools.Run(ctx, "psql", "-Xqw", "-v", "ON_ERROR_STOP=1", "-1", "-o", "/dev/null", "-d", conninfo(name), "-f", filepath.Join(tmp, "schema.sql"))
	}
	args := []string{"-w", "-e", "-d", conninfo(name)}
	if s.jobs > 1 {
		args = append(args, "-j", strconv.Itoa(s.jobs)) // which has no one transaction
	} else {
		args = append(args, "-1")
	}
	if s.noOwner {
		args = append(args, "-O")
	}
	if s.noPrivileges {
		args = append(args, "-x")
	}
	if s.noTablespaces {
		args = append(args, "--no-tablespaces")
	}
	return s.tools.Run(ctx, "pg_restore", append(args, tmp)...)
}
