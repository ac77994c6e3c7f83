package postgresql

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
)

// Kind is the kind "postgresql".
var Kind = system.Kind{
	Name:  "postgresql",
	Short: "a PostgreSQL server, through pg_basebackup, or its databases, through pg_dump",
	Help: `--mode full is the whole server, by pg_basebackup, with the log that makes it
consistent: the user needs REPLICATION and must be let in for it by pg_hba.conf, and
to connect to -d. --mode light has the schema of every database, and the data of
those that --data names (globs fit too); --mode dataless has schemas alone. Both are
made by pg_dump, and need a user who may read what they dump. Passwords come from
~/.pgpass, PGPASSFILE or PGPASSWORD, and are never asked for.

  cutbank snapshot --system postgresql --name db1 -- -h db1 -U backup
  cutbank restore db1/latest --system postgresql -- \
      -D /var/lib/postgresql/15/main --owner postgres
  cutbank snapshot --system postgresql --name db1-light --mode light --data 'app*'
  cutbank restore db1-light/latest:databases/app --system postgresql -- -h test1`,
	Modes:     []system.Mode{system.Full, system.Light, system.Dataless},
	Restores:  "a full snapshot into an empty data directory, checked by pg_verifybackup; databases of a light or dataless one into a running server",
	Selective: true,
	Flags:     flags,
	Env: []system.Variable{
		{Name: "PGHOST, PGPORT, PGUSER, PGDATABASE", Short: "as -h, -p, -U, -d"},
		{Name: "PGPASSWORD, PGPASSFILE", Short: "the password"},
		{Name: "PGSERVICE, PGSSLMODE, PGSSLROOTCERT, PGSSLCERT, PGSSLKEY, ...", Short: "and all else that libpq knows"},
		{Name: "PGDATA", Short: "as -D"},
	},
}

// System is a PostgreSQL server, or where one shall be.
type System struct {
	tools                                command.Tools
	bindir, database                     string
	checkpoint, maxRate                  string
	dataDir, owner                       string
	jobs                                 int
	noOwner, noPrivileges, noTablespaces bool
	mappings                             mappings
}

// mappings say where tablespaces go: old directory to new one.
type mappings map[string]string

func (m mappings) String() string { return "" }

// Set implements flag.Value.
func (m mappings) Set(text string) error {
	from, to, ok := strings.Cut(text, "=")
	if !ok || !strings.HasPrefix(from, "/") || !strings.HasPrefix(to, "/") {
		return errors.New("want OLDDIR=NEWDIR, both absolute")
	}
	m[from] = to
	return nil
}

func flags(f *flag.FlagSet) system.Opener {
	s := &System{mappings: mappings{}}
	var host, port, user string
	two := func(at *string, short, long, value, usage string) {
		f.StringVar(at, short, value, usage)
		f.StringVar(at, long, value, "as -"+short)
	}
	two(&host, "h", "host", "", "`host`, or directory of the socket")
	two(&port, "p", "port", "", "`port`")
	two(&user, "U", "username", "", "`user`")
	two(&s.database, "d", "dbname", "", "`database` to ask (default postgres)")
	f.Bool("w", true, "no password is asked for, ever")
	f.Bool("no-password", true, "as -w")
	two(&s.checkpoint, "c", "checkpoint", "fast", "`fast` or spread: how soon a full snapshot begins")
	two(&s.maxRate, "r", "max-rate", "", "`rate` at which a full snapshot is read at most, as pg_basebackup takes it")
	two(&s.dataDir, "D", "pgdata", "", "restore: the new data `directory`")
	f.Var(s.mappings, "T", "restore: `OLDDIR=NEWDIR`: where a tablespace goes; repeatable")
	f.Var(s.mappings, "tablespace-mapping", "as -T")
	f.StringVar(&s.owner, "owner", "", "restore: `user` or user:group that the data directory shall belong to (default: who has it, if it is there; else as captured)")
	f.IntVar(&s.jobs, "j", 1, "`number` of tables that are dumped or restored at once")
	f.IntVar(&s.jobs, "jobs", 1, "as -j")
	f.BoolVar(&s.noOwner, "no-owner", false, "restore: do not set who owns what, in databases")
	f.BoolVar(&s.noPrivileges, "no-privileges", false, "restore: do not set who may do what, in databases")
	f.BoolVar(&s.noTablespaces, "no-tablespaces", false, "restore: all into the default tablespace, in databases")
	f.StringVar(&s.bindir, "bindir", "", "`directory` of the server's programs (default: that of its version, then PATH)")
	return func(getenv func(string) string) (system.System, error) {
		for name, v := range map[string]string{"PGHOST": host, "PGPORT": port, "PGUSER": user} {
			if v != "" {
				s.tools.Env = append(s.tools.Env, name+"="+v)
			}
		}
		s.tools.Env = append(s.tools.Env, "PGAPPNAME=cutbank")
		if strings.ContainsAny(s.database, "= ") || strings.Contains(s.database, "://") {
			return nil, errors.New("-d is the name of a database: others can see what a connection string says; PGSERVICE names one in a file")
		}
		for _, v := range []*string{&s.database, &s.dataDir} {
			if *v == "" {
				*v = getenv(map[*string]string{&s.database: "PGDATABASE", &s.dataDir: "PGDATA"}[v])
			}
		}
		if s.database == "" {
			s.database = "postgres"
		}
		if s.jobs < 1 {
			return nil, fmt.Errorf("-j %d: want 1 or more", s.jobs)
		}
		s.use("*")
		return s, nil
	}
}

// use has the programs of a major version used, where there are any.
func (s *System) use(major string) {
	s.tools.Dirs = []string{"/usr/lib/postgresql/" + major + "/bin", "/usr/pgsql-" + major + "/bin"}
	if s.bindir != "" {
		s.tools.Dirs = []string{s.bindir}
	}
}

// identity is what the server says of itself.
func (s *System) identity(ctx context.Context) (system.Info, error) {
	rows, err := s.query(ctx, s.database, `select current_setting('server_version'), (select system_identifier from pg_control_system()),
		current_setting('block_size'), current_setting('data_checksums'), pg_is_in_recovery()`)
	if err != nil {
		return system.Info{}, err
	}
	if len(rows) != 1 || len(rows[0]) != 5 {
		return system.Info{}, fmt.Errorf("psql printed %d rows, and not what was asked for", len(rows))
	}
	version, _, _ := strings.Cut(rows[0][0], " ")
	s.use(command.Major(version, 1))
	return system.Info{Kind: Kind.Name, Version: version, Cluster: rows[0][1],
		Facts: map[string]string{"block_size": rows[0][2], "data_checksums": rows[0][3], "standby": map[string]string{"t": "yes", "f": "no"}[rows[0][4]]}}, nil
}

// Capture implements system.System.
func (s *System) Capture(ctx context.Context, opt system.CaptureOptions) (system.Capture, error) {
	s.tools.Logf = opt.Logf
	info, err := s.identity(ctx)
	if err != nil {
		return nil, err
	}
	if opt.Mode == system.Full {
		return s.base(ctx, info, opt)
	}
	return s.dump(ctx, info, opt)
}

// Restore implements system.System.
func (s *System) Restore(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	s.tools.Logf = opt.Logf
	s.use(command.Major(info.Version, 1))
	if opt.Mode == system.Full {
		return s.restoreBase(ctx, n, info, opt)
	}
	return s.restoreDump(ctx, n, info, opt)
}
