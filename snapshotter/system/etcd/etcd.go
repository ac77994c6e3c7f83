package etcd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
	"github.com/cutbankfs/cutbank/snapshotter/system/command"
)

// Kind is the kind "etcd".
var Kind = system.Kind{
	Name:  "etcd",
	Short: "etcd 3, through etcdctl and etcdutl",
	Help: `The snapshot of one member is that of the whole cluster: of the endpoints that
answer the one is asked that is furthest ahead. Options and variables are those of
etcdctl. With -cert-auth, or with authentication, the user needs the role root.
Passwords are taken from ETCDCTL_PASSWORD only. --mode light has the names of all keys
and the values of those that begin with what --data says, --mode dataless names alone.
Of a full or light snapshot, keys can be put back into a running cluster by --prefix.

  cutbank snapshot --system etcd --name etcd -- --endpoints https://m1:2379 \
      --cacert ca.pem
  cutbank snapshot --system etcd --name etcd --mode light --data /registry/configmaps/
  cutbank restore etcd/latest --system etcd --dry-run -- --prefix /registry/configmaps/
  cutbank restore etcd/latest --system etcd -- --data-dir /var/lib/etcd --name m1 \
      --initial-cluster m1=http://10.0.0.1:2380 \
      --initial-advertise-peer-urls http://10.0.0.1:2380`,
	Modes:    []system.Mode{system.Full, system.Light, system.Dataless},
	Restores: "a full snapshot into a new data directory, on each member in turn; with --prefix the keys that begin with it, and a light snapshot, into a running cluster",
	Flags:    flags,
	Env: []system.Variable{
		{Name: "ETCDCTL_ENDPOINTS", Short: "as --endpoints, and so on for each option of etcdctl"},
		{Name: "ETCDCTL_USER, ETCDCTL_PASSWORD", Short: "who asks"},
	},
}

// System is an etcd cluster, or where one shall be.
type System struct {
	tools           command.Tools
	dataDir, walDir string
	owner           string
	restore         []string // arguments of snapshot restore
	prefixes        texts    // of keys that are put back
}

// client are the options that etcdctl takes from its environment.
var client = []struct{ name, usage string }{
	{"endpoints", "members to ask, separated by commas (`HOST:PORT`,...; default 127.0.0.1:2379)"},
	{"cacert", "`file` with the certificates that members must have"},
	{"cert", "`file` with the client's certificate"},
	{"key", "`file` with the client's key"},
	{"user", "`name` of who asks; the password is in ETCDCTL_PASSWORD"},
	{"discovery-srv", "`domain` whose SRV records name the members"},
	{"discovery-srv-name", "`name` of the service in these"},
	{"dial-timeout", "`duration` to wait for a connection"},
	{"command-timeout", "`duration` to wait for short answers"},
	{"keepalive-time", "`duration` after which a connection is tried"},
	{"keepalive-timeout", "`duration` to wait for an answer to that"},
}

// switches are those that are on or off.
var switches = []struct {
	name, usage string
	def         bool
}{
	{"insecure-skip-tls-verify", "believe any certificate", false},
	{"insecure-transport", "=false: never without TLS", true},
	{"insecure-discovery", "=false: believe no SRV records that are insecure", true},
}

// restoring are those of snapshot restore, beside --data-dir.
var restoring = []struct{ name, usage string }{
	{"name", "restore: the member's `name`"},
	{"initial-cluster", "restore: `name=url,...` of all members"},
	{"initial-cluster-token", "restore: `token` of the new cluster"},
	{"initial-advertise-peer-urls", "restore: this member's `urls` for its peers"},
	{"bump-revision", "restore: add this `number` to the revision, so that watchers see a step ahead (etcdutl 3.6)"},
}

// texts is an option that can be given several times.
type texts []string

func (t *texts) String() string { return "" }

// Set implements flag.Value.
func (t *texts) Set(text string) error {
	*t = append(*t, text)
	return nil
}

func flags(f *flag.FlagSet) system.Opener {
	s := &System{}
	given := map[string]*string{}
	for _, o := range client {
		given[o.name] = f.String(o.name, "", o.usage)
	}
	args := map[string]*string{}
	for _, o := range restoring {
		args[o.name] = f.String(o.name, "", o.usage)
	}
	on := map[string]*bool{}
	for _, o := range switches {
		on[o.name] = f.Bool(o.name, o.def, o.usage)
	}
	compacted := f.Bool("mark-compacted", false, "restore: with --bump-revision: no older revision can be asked for")
	password := f.String("password", "", "not here, where others can see it: set ETCDCTL_PASSWORD")
	f.Var(&s.prefixes, "prefix", "restore: put the keys that begin with `text` into the cluster that runs at --endpoints; repeatable")
	f.StringVar(&s.walDir, "wal-dir", "", "restore: `directory` of the log, if not in the data directory")
	f.StringVar(&s.dataDir, "data-dir", "", "restore: the new data `directory`")
	f.StringVar(&s.owner, "owner", "", "restore: `user` or user:group that it shall belong to (default: who has the directory, if it is there)")
	bin := f.String("bindir", "", "`directory` of etcdctl and etcdutl (default: PATH)")
	return func(getenv func(string) string) (system.System, error) {
		if strings.Contains(*given["user"], ":") {
			return nil, errors.New("--user: others can see a password on the command line: set ETCDCTL_PASSWORD")
		}
		if cmp.Or(*given["user"], getenv("ETCDCTL_USER")) != "" && !strings.Contains(getenv("ETCDCTL_USER"), ":") && getenv("ETCDCTL_PASSWORD") == "" {
			return nil, errors.New("--user: there is no password for it: set ETCDCTL_PASSWORD, for nobody is asked")
		}
		if *password != "" {
			return nil, errors.New("--password: others can see a password on the command line: set ETCDCTL_PASSWORD")
		}
		if len(s.prefixes) > 0 && s.dataDir+s.walDir != "" {
			return nil, errors.New("--prefix puts keys into a running cluster, --data-dir and --wal-dir make a member of a new one: give one or the other")
		}
		s.tools.Env = []string{"ETCDCTL_API=3"}
		for _, o := range client {
			if v := *given[o.name]; v != "" {
				s.tools.Env = append(s.tools.Env, variable(o.name)+"="+v)
			}
		}
		for _, o := range switches {
			if v := *on[o.name]; v != o.def {
				s.tools.Env = append(s.tools.Env, variable(o.name)+"="+strconv.FormatBool(v))
			}
		}
		for _, o := range restoring {
			if v := *args[o.name]; v != "" {
				s.restore = append(s.restore, "--"+o.name+"="+v)
			}
		}
		if *compacted {
			s.restore = append(s.restore, "--mark-compacted")
		}
		if *bin != "" {
			s.tools.Dirs = []string{*bin}
		}
		return s, nil
	}
}

// variable is the one that etcdctl takes an option from.
func variable(option string) string {
	return "ETCDCTL_" + strings.ToUpper(strings.ReplaceAll(option, "-", "_"))
}

// member is one that answers.
type member struct {
	Endpoint string
	Status   struct {
		Header struct {
			Cluster  uint64 `json:"cluster_id"`
			Member   uint64 `json:"member_id"`
			Revision int64  `json:"revision"`
		} `json:"header"`
		Version string `json:"version"`
		Leader  uint64 `json:"leader"`
		Applied uint64 `json:"raftAppliedIndex"`
		Index   uint64 `json:"raftIndex"` // before 3.4 told what was applied
		Learner bool   `json:"isLearner"`

		Errors []string `json:"errors"` // alarms
	}
}

// ahead asks all endpoints, and returns the member that has applied most.
func (s *System) ahead(ctx context.Context, warnf func(string, ...any)) (*member, error) {
	out, err := s.tools.Ask(ctx, "etcdctl", "endpoint", "status", "-w", "json")
	var all []member
	if jerr := json.Unmarshal([]byte(out), &all); jerr != nil || len(all) == 0 {
		if err == nil {
			err = fmt.Errorf("etcdctl endpoint status printed no member: %w", jerr)
		}
		return nil, err
	}
	if err != nil {
		warnf("some members do not answer: %v", err)
	}
	var best *member
	for i := range all {
		m := &all[i]
		if m.Status.Applied == 0 {
			m.Status.Applied = m.Status.Index
		}
		if m.Status.Learner {
			continue
		}
		if best == nil || m.Status.Applied > best.Status.Applied || m.Status.Applied == best.Status.Applied && m.Status.Leader == m.Status.Header.Member {
			best = m
		}
	}
	if best == nil {
		return nil, fmt.Errorf("only learners answer, which may be far behind: %w", system.ErrRefused)
	}
	if best.Status.Leader == 0 {
		warnf("the cluster has no leader: what %s has may not be the newest", best.Endpoint)
	}
	for _, e := range best.Status.Errors {
		warnf("%s says: %s", best.Endpoint, e)
	}
	return best, nil
}

// capture is files in scratch space.
type capture struct {
	root  *system.Node
	info  system.Info
	files []*os.File
}

// Capture implements system.System.
func (s *System) Capture(ctx context.Context, opt system.CaptureOptions) (system.Capture, error) {
	s.tools.Logf = opt.Logf
	m, err := s.ahead(ctx, opt.Warnf)
	if err != nil {
		return nil, err
	}
	s.pin(m)
	mtime := tree.TimeOf(opt.Now())
	c := &capture{root: system.NewDir("", mtime)}
	c.info = system.Info{Kind: Kind.Name, Version: m.Status.Version, Cluster: strconv.FormatUint(m.Status.Header.Cluster, 16),
		Facts: map[string]string{"member": strconv.FormatUint(m.Status.Header.Member, 16), "leader": strconv.FormatUint(m.Status.Leader, 16)}}
	members, err := s.tools.Ask(ctx, "etcdctl", "member", "list", "-w", "json")
	if err != nil {
		opt.Warnf("the members are not listed in the snapshot: %v", err)
	} else {
		c.add("members.json", members, mtime)
	}
	if opt.Mode != system.Full {
		err = s.keys(ctx, c, m, opt, mtime)
	} else {
		err = s.save(ctx, c, m, filepath.Join(opt.Scratch, "snapshot.db"), mtime)
	}
	if err == nil {
		err = c.root.Seal()
	}
	if err != nil {
		return nil, errors.Join(err, c.Close(ctx, false))
	}
	return c, nil
}

// pin has all that follows asked of one member.
func (s *System) pin(m *member) {
	// Where others are to be discovered that counts more than who is named.
	env := []string{"ETCDCTL_ENDPOINTS=" + m.Endpoint, "ETCDCTL_DISCOVERY_SRV="}
	for _, e := range s.tools.Env {
		if !strings.HasPrefix(e, "ETCDCTL_ENDPOINTS=") && !strings.HasPrefix(e, "ETCDCTL_DISCOVERY_SRV=") {
			env = append(env, e)
		}
	}
	s.tools.Env = env
}

func (c *capture) add(name, text string, mtime tree.Time) {
	c.root.Add(system.NewFile(name, mtime, strings.NewReader(text), int64(len(text)), nil))
}

// save has etcdctl save the member's snapshot.
func (s *System) save(ctx context.Context, c *capture, m *member, file string, mtime tree.Time) error {
	if err := s.tools.Run(ctx, "etcdctl", "snapshot", "save", file); err != nil {
		return err
	}
	status, err := s.status(ctx, file)
	if err != nil {
		return err
	}
	// One that never had a key is at revision 1, and its file says 0.
	if max(status.Revision, 1) < m.Status.Header.Revision {
		return fmt.Errorf("the snapshot is of revision %d, but %s had %d before: %w", status.Revision, m.Endpoint, m.Status.Header.Revision, system.ErrIncomplete)
	}
	f, size, err := c.open(file)
	if err != nil {
		return err
	}
	page, err := checkFile(f, size)
	if err != nil {
		return fmt.Errorf("what etcdctl snapshot save has written: %w", err)
	}
	c.root.Add(system.NewPaged("snapshot.db", mtime, f, size, page))
	c.info.Facts["hash"], c.info.Facts["revision"], c.info.Facts["entries"] = strconv.FormatUint(status.Hash, 16), strconv.FormatInt(status.Revision, 10), strconv.FormatInt(status.Keys, 10)
	return nil
}

// open opens a file for as long as the capture lasts.
func (c *capture) open(name string) (*os.File, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	c.files = append(c.files, f)
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// fileStatus is what etcdutl says of a snapshot's file.
type fileStatus struct {
	Hash     uint64 `json:"hash"`
	Revision int64  `json:"revision"`
	Keys     int64  `json:"totalKey"`
}

func (s *System) status(ctx context.Context, file string) (fileStatus, error) {
	var st fileStatus
	p, err := s.tools.Proc([]string{"snapshot", "status", file, "-w", "json"}, "etcdutl", "etcdctl")
	if err != nil {
		return st, err
	}
	out, err := p.Output(ctx)
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("%s snapshot status: %w", p.What, err)
	}
	return st, nil
}

// checkFile checks the hash that the server puts behind the database, and returns
// the size of the database's pages.
func checkFile(f io.ReaderAt, size int64) (page int64, err error) {
	if size < 4096+sha256.Size || size%512 != sha256.Size {
		return 0, fmt.Errorf("%d bytes are no database with its hash behind it: %w", size, system.ErrIncomplete)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, size-sha256.Size)); err != nil {
		return 0, err
	}
	var want [sha256.Size]byte
	if _, err := f.ReadAt(want[:], size-sha256.Size); err != nil && err != io.EOF {
		return 0, err
	}
	if !bytes.Equal(h.Sum(nil), want[:]) {
		return 0, fmt.Errorf("the hash behind the database is another: %w", system.ErrIncomplete)
	}
	// The first page of bbolt: a header of 16 bytes, magic, version, page size.
	var meta [12]byte
	if _, err := f.ReadAt(meta[:], 16); err != nil {
		return 0, err
	}
	page = int64(binary.LittleEndian.Uint32(meta[8:]))
	if binary.LittleEndian.Uint32(meta[:]) != 0xED0CDAED || page < 512 || page > 1<<20 || page&(page-1) != 0 {
		return 4096, nil // another kind of database: cut all the same
	}
	return page, nil
}

// Root implements system.Capture.
func (c *capture) Root() tree.Node { return c.root }

// Finish implements system.Capture.
func (c *capture) Finish(context.Context) (system.Info, error) { return c.info, nil }

// Close implements system.Capture.
func (c *capture) Close(context.Context, bool) error {
	var err error
	for _, f := range c.files {
		err = errors.Join(err, f.Close())
	}
	c.files = nil
	return err
}
