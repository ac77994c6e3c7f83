package etcd

import (
	"bytes"
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
	"time"

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
Passwords are taken from ETCDCTL_PASSWORD only.

  cutbank snapshot --system etcd -- --endpoints https://10.0.0.1:2379 --cacert ca.pem
  cutbank restore etcd/latest --system etcd -- --data-dir /var/lib/etcd --name m1 \
      --initial-cluster m1=http://10.0.0.1:2380 \
      --initial-advertise-peer-urls http://10.0.0.1:2380`,
	Modes:    []system.Mode{system.Full, system.Dataless},
	Restores: "a full snapshot into a new data directory, on each member in turn",
	Flags:    flags,
	Env: []system.Variable{
		{Name: "ETCDCTL_ENDPOINTS", Short: "as --endpoints, and so on for each option of etcdctl"},
		{Name: "ETCDCTL_USER, ETCDCTL_PASSWORD", Short: "who asks"},
	},
}

// System is an etcd cluster, or where one shall be.
type System struct {
	tools          command.Tools
	dataDir, owner string
	restore        []string // arguments of snapshot restore
}

// client are the options that etcdctl takes from its environment.
var client = []struct{ name, usage string }{
	{"endpoints", "members to ask, separated by commas (`HOST:PORT`,...; default 127.0.0.1:2379)"},
	{"cacert", "`file` with the certificates that members must have"},
	{"cert", "`file` with the client's certificate"},
	{"key", "`file` with the client's key"},
	{"user", "`name` of who asks; the password is in ETCDCTL_PASSWORD"},
	{"insecure-skip-tls-verify", "`true`: believe any certificate"},
	{"insecure-transport", "`false`: never without TLS"},
	{"dial-timeout", "`duration` to wait for a connection"},
	{"command-timeout", "`duration` to wait for short answers"},
}

// restoring are those of snapshot restore, beside --data-dir.
var restoring = []struct{ name, usage string }{
	{"name", "restore: the member's `name`"},
	{"initial-cluster", "restore: `name=url,...` of all members"},
	{"initial-cluster-token", "restore: `token` of the new cluster"},
	{"initial-advertise-peer-urls", "restore: this member's `urls` for its peers"},
	{"wal-dir", "restore: `directory` of the log, if not in the data directory"},
	{"bump-revision", "restore: add this `number` to the revision, so that watchers see a step ahead (etcdutl 3.6)"},
	{"mark-compacted", "restore: `true` with --bump-revision: no older revision can be asked for"},
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
	f.StringVar(&s.dataDir, "data-dir", "", "restore: the new data `directory`")
	f.StringVar(&s.owner, "owner", "", "restore: `user` or user:group that it shall belong to (default: who has the directory, if it is there)")
	bin := f.String("bindir", "", "`directory` of etcdctl and etcdutl (default: PATH)")
	return func(func(string) string) (system.System, error) {
		if strings.Contains(*given["user"], ":") {
			return nil, errors.New("--user: others can see a password on the command line: set ETCDCTL_PASSWORD")
		}
		s.tools.Env = []string{"ETCDCTL_API=3"}
		for _, o := range client {
			if v := *given[o.name]; v != "" {
				s.tools.Env = append(s.tools.Env, "ETCDCTL_"+strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))+"="+v)
			}
		}
		for _, o := range restoring {
			if v := *args[o.name]; v != "" {
				s.restore = append(s.restore, "--"+o.name+"="+v)
			}
		}
		if *bin != "" {
			s.tools.Dirs = []string{*bin}
		}
		return s, nil
	}
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
	return best, nil
}

// capture is a file in scratch space.
type capture struct {
	root *system.Node
	info system.Info
	file *os.File
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
	if opt.Mode == system.Dataless {
		err = s.keys(ctx, c, m, mtime)
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
	env := []string{"ETCDCTL_ENDPOINTS=" + m.Endpoint}
	for _, e := range s.tools.Env {
		if !strings.HasPrefix(e, "ETCDCTL_ENDPOINTS=") {
			env = append(env, e)
		}
	}
	s.tools.Env = env
}

func (c *capture) add(name, text string, mtime tree.Time) {
	c.root.Add(system.NewFile(name, mtime, strings.NewReader(text), int64(len(text)), nil))
}

// keys keeps the names of keys, and when they were changed.
func (s *System) keys(ctx context.Context, c *capture, m *member, mtime tree.Time) error {
	p, err := s.tools.Proc([]string{"get", "", "--prefix", "--keys-only", "-w", "json", "--rev", strconv.FormatInt(m.Status.Header.Revision, 10)}, "etcdctl")
	if err != nil {
		return err
	}
	var out bytes.Buffer
	p.Stdout = &out
	if err := p.Run(ctx); err != nil {
		return err
	}
	var got struct {
		Header struct {
			Revision int64 `json:"revision"`
		} `json:"header"`
		Count int `json:"count"`
		Kvs   []struct {
			Key     []byte `json:"key"`
			Value   []byte `json:"value"`
			Created int64  `json:"create_revision"`
			Changed int64  `json:"mod_revision"`
			Version int64  `json:"version"`
		} `json:"kvs"`
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || len(got.Kvs) != got.Count {
		return fmt.Errorf("etcdctl get: %d keys of %d: %w", len(got.Kvs), got.Count, errors.Join(err, system.ErrIncomplete))
	}
	var b strings.Builder
	for _, kv := range got.Kvs {
		if len(kv.Value) > 0 {
			return errors.New("etcdctl get --keys-only gives values: nothing is kept of what shall have none")
		}
		fmt.Fprintf(&b, "%q create_revision=%d mod_revision=%d version=%d\n", kv.Key, kv.Created, kv.Changed, kv.Version)
	}
	c.add("keys.txt", b.String(), mtime)
	c.info.Facts["keys"], c.info.Facts["revision"] = strconv.Itoa(got.Count), strconv.FormatInt(m.Status.Header.Revision, 10)
	return nil
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
	if status.Revision < m.Status.Header.Revision {
		return fmt.Errorf("the snapshot is of revision %d, but %s had %d before: %w", status.Revision, m.Endpoint, m.Status.Header.Revision, system.ErrIncomplete)
	}
	if c.file, err = os.Open(file); err != nil {
		return err
	}
	st, err := c.file.Stat()
	if err != nil {
		return err
	}
	page, err := checkFile(c.file, st.Size())
	if err != nil {
		return fmt.Errorf("what etcdctl snapshot save has written: %w", err)
	}
	c.root.Add(system.NewPaged("snapshot.db", mtime, c.file, st.Size(), page))
	c.info.Facts["hash"], c.info.Facts["revision"], c.info.Facts["entries"] = strconv.FormatUint(status.Hash, 16), strconv.FormatInt(status.Revision, 10), strconv.FormatInt(status.Keys, 10)
	return nil
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
	if c.file == nil {
		return nil
	}
	f := c.file
	c.file = nil
	return f.Close()
}

// Restore implements system.System.
func (s *System) Restore(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	s.tools.Logf = opt.Logf
	if opt.Mode != system.Full {
		return system.Result{}, fmt.Errorf("a %s snapshot has no values: a full one can be restored: %w", opt.Mode, system.ErrRefused)
	}
	if s.dataDir == "" {
		return system.Result{}, fmt.Errorf("say with --data-dir where the new member's data goes: %w", system.ErrRefused)
	}
	dir, err := filepath.Abs(s.dataDir)
	if err != nil {
		return system.Result{}, err
	}
	now, err := s.release(ctx)
	if err != nil {
		return system.Result{}, err
	}
	if err := command.CheckRelease(info, now, 2, opt); err != nil {
		return system.Result{}, err
	}
	if err := command.MayFill(dir, opt); err != nil {
		return system.Result{}, err
	}
	f, err := n.Lookup(ctx, "snapshot.db")
	if err != nil {
		return system.Result{}, err
	}
	res := system.Result{Items: 1, Bytes: uint64(f.Attr().Size), Notes: []string{
		"restore the same snapshot on every other member, each with its own --name and --initial-advertise-peer-urls, before any is started",
		"start etcd with the same --name, --initial-cluster and --data-dir"}}
	opt.Stepf("snapshot.db, %d bytes, revision %s, %s entries, into %s", f.Attr().Size, info.Facts["revision"], info.Facts["entries"], dir)
	if opt.DryRun {
		return res, nil
	}
	return res, s.fill(ctx, command.Reader(ctx, f), dir, info, opt)
}

// fill makes a data directory of a stored snapshot. What is there goes when the new one
// is whole.
func (s *System) fill(ctx context.Context, f *command.Stored, dir string, info system.Info, opt system.RestoreOptions) error {
	file := filepath.Join(opt.Scratch, "snapshot.db")
	if err := command.Unstore(ctx, f, file); err != nil {
		return err
	}
	status, err := s.status(ctx, file)
	if err != nil {
		return err
	}
	if hash := strconv.FormatUint(status.Hash, 16); hash != info.Facts["hash"] {
		return fmt.Errorf("the hash of the database is %s, and was %s when it was captured: %w", hash, info.Facts["hash"], system.ErrIncomplete)
	}
	uid, gid, given, err := command.Owner(s.owner, dir)
	if err != nil {
		return err
	}
	// Below the directory, which may be a mount of its own.
	tmp := filepath.Join(dir, "restoring")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.RemoveAll(tmp)); err != nil {
		return err
	}
	p, err := s.tools.Proc(append([]string{"snapshot", "restore", file, "--data-dir", tmp}, s.restore...), "etcdutl", "etcdctl")
	if err != nil {
		return err
	}
	if err := p.Run(ctx); err != nil {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	if err := replace(dir, tmp); err != nil {
		return err
	}
	if given {
		return command.Chown(dir, uid, gid)
	}
	return nil
}

// replace puts what is in tmp, a directory within dir, in the place of all else there.
func replace(dir, tmp string) error {
	old, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range old {
		if e.Name() != filepath.Base(tmp) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	fresh, rerr := os.ReadDir(tmp)
	if err = errors.Join(err, rerr); err != nil {
		return err
	}
	for _, e := range fresh {
		err = errors.Join(err, os.Rename(filepath.Join(tmp, e.Name()), filepath.Join(dir, e.Name())))
	}
	return errors.Join(err, os.Remove(tmp))
}

// release is what the tools on this machine are.
func (s *System) release(ctx context.Context) (system.Info, error) {
	p, err := s.tools.Proc([]string{"version"}, "etcdutl", "etcdctl")
	if err != nil {
		return system.Info{}, err
	}
	p.Timeout = time.Minute
	out, err := p.Output(ctx)
	if err != nil {
		return system.Info{}, err
	}
	i := system.Info{Kind: Kind.Name}
	for line := range strings.Lines(out) {
		if _, v, ok := strings.Cut(line, " version: "); ok && i.Version == "" {
			i.Version = strings.TrimSpace(v)
		}
	}
	return i, nil
}
