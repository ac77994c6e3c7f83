package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Files of a stored snapshot, beside the archive's members.
const (
	againFile   = "archive.json"
	archiveFile = "consul.snap"
	inspectFile = "inspect.txt"
	recordsFile = "records.bin"
)

const kindID = "consul"

// Kind is the kind "consul".
var Kind = system.Kind{
	Name:  kindID,
	Short: "a datacenter of Consul, through its HTTP API",
	Help: `The state of one datacenter, as "consul snapshot save" has it: keys, catalog,
sessions, ACLs with their secrets, prepared queries, config entries, the certificate
authority with its keys. Options and variables are those of Consul's own tools; the
token needs acl = "write". A snapshot is consistent, and needs a leader, unless -stale
says that one server may answer for itself.

  cutbank snapshot --system consul --name prod -- -http-addr https://10.0.0.1:8501
  cutbank restore prod/latest:kv/app --system consul --dry-run
  cutbank snapshot --system consul --mode light --data app/ --data web/`,
	Modes:     []system.Mode{system.Full, system.Light, system.Dataless},
	Restores:  "a full snapshot into a cluster that is empty, or with --force; keys below a path kv/... into a cluster in use",
	Selective: true,
	Flags: func(f *flag.FlagSet) system.Opener {
		s := &System{pauses: pauses}
		s.opt.flags(f)
		return func(getenv func(string) string) (system.System, error) {
			if s.opt.token != "" {
				s.told = true
			}
			var err error
			s.c, err = newClient(s.opt, getenv)
			return s, err
		}
	},
	Env:    environment(),
	View:   View,
	Import: Import,
}

func environment() []system.Variable {
	return []system.Variable{
		{Name: "CONSUL_HTTP_ADDR", Short: "as -http-addr"},
		{Name: "CONSUL_HTTP_TOKEN, CONSUL_HTTP_TOKEN_FILE", Short: "as -token, -token-file"},
		{Name: "CONSUL_HTTP_AUTH", Short: "USER:PASSWORD for HTTP basic authentication"},
		{Name: "CONSUL_HTTP_SSL, CONSUL_HTTP_SSL_VERIFY", Short: "true: use https; false: believe any certificate"},
		{Name: "CONSUL_CACERT, CONSUL_CAPATH", Short: "as -ca-file, -ca-path"},
		{Name: "CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY", Short: "as -client-cert, -client-key"},
		{Name: "CONSUL_TLS_SERVER_NAME", Short: "as -tls-server-name"},
		{Name: "CONSUL_NAMESPACE, CONSUL_PARTITION", Short: "as -namespace, -partition"},
	}
}

// System is a cluster, by one of its agents.
type System struct {
	opt  options
	c    *client
	told bool // the token stands on the command line

	pauses []time.Duration
}

// pauses are how long is waited before a snapshot is asked for again: a leader that
// went away is followed by another, with the timing that servers have by themselves in
// up to half a minute.
var pauses = []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second}

// taken is an archive that has been taken from a cluster, in files of scratch space.
type taken struct {
	*archive
	again   again
	raw     *os.File // the archive as it came
	state   *os.File
	stale   bool
	leader  bool
	contact time.Duration // since the server that answered last heard of a leader
}

func (t *taken) close() error {
	var err error
	for _, f := range []*os.File{t.raw, t.state} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	t.raw, t.state = nil, nil
	return err
}

// take has the cluster make a snapshot. It asks again where a leader went away.
func (s *System) take(ctx context.Context, dir string, logf func(string, ...any)) (*taken, error) {
	for i := 0; ; i++ {
		t, err := s.takeOnce(ctx, dir)
		if err == nil {
			return t, nil
		}
		again := errors.Is(err, errNoLeader) || errors.Is(err, errBroken) || errors.Is(err, system.ErrIncomplete)
		if !again || i == len(s.pauses) || ctx.Err() != nil {
			return nil, err
		}
		logf("asking again in %v: %v", s.pauses[i], err)
		timer := time.NewTimer(s.pauses[i])
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}

func (s *System) takeOnce(ctx context.Context, dir string) (*taken, error) {
	query := url.Values{}
	if s.opt.stale {
		query.Set("stale", "")
	}
	a, err := s.c.do(ctx, http.MethodGet, "/v1/snapshot", query, nil)
	if err != nil {
		return nil, err
	}
	defer a.Body.Close()
	t := &taken{stale: s.opt.stale}
	if err := t.freshness(a.Header, s.opt.maxStale); err != nil {
		return nil, err
	}
	if err := t.fill(a.body, dir); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

// freshness reads from the headers how old the answer can be.
func (t *taken) freshness(h http.Header, limit time.Duration) error {
	t.leader = h.Get("X-Consul-Knownleader") == "true"
	ms, err := strconv.ParseInt(h.Get("X-Consul-Lastcontact"), 10, 64)
	if err != nil || ms < 0 || ms > int64(1<<62/time.Millisecond) {
		ms = int64(1 << 62 / time.Millisecond) // never since it runs
	}
	t.contact = time.Duration(ms) * time.Millisecond
	if !t.stale || t.contact <= limit {
		return nil
	}
	since := "for " + t.contact.String()
	if t.contact > 24*365*10*time.Hour {
		since = "since it was started"
	}
	return fmt.Errorf("the server that answered has heard of no leader %s, -max-stale is %v: %w", since, limit, system.ErrRefused)
}

// fill reads and checks an archive, and finds out whether it can be written again.
func (t *taken) fill(r io.Reader, dir string) error {
	var err error
	if t.raw, err = scratchFile(dir, archiveFile); err != nil {
		return err
	}
	if t.state, err = scratchFile(dir, stateFile); err != nil {
		return err
	}
	came := newDigest()
	broke := &source{r: r}
	if t.archive, err = readArchive(io.TeeReader(broke, io.MultiWriter(t.raw, came)), t.state); err != nil {
		if broke.err != nil {
			err = fmt.Errorf("reading the snapshot: %w: %w", errBroken, broke.err)
		}
		return err
	}
	t.again = again{Version: 1, Size: came.size, SHA256: came.hex(), Mode: t.mode, Mtimes: t.mtimes}
	d := newDigest()
	if err := t.write(d, io.NewSectionReader(t.state, 0, t.meta.Size)); err != nil {
		return err
	}
	t.again.Regenerates = d.size == came.size && d.hex() == came.hex()
	return nil
}

// source remembers what went wrong below those who read it.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// scratchFile makes a file in scratch space, or empties it.
func scratchFile(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("scratch space: %w", err)
	}
	return f, nil
}

// capture is a snapshot in scratch space.
type capture struct {
	root    *system.Node
	info    system.Info
	taken   *taken
	reduced *os.File
}

// Capture implements system.System.
func (s *System) Capture(ctx context.Context, opt system.CaptureOptions) (system.Capture, error) {
	if s.told {
		opt.Warnf("others on this machine can see what -token says: use CONSUL_HTTP_TOKEN or -token-file")
	}
	t, err := s.take(ctx, opt.Scratch, opt.Logf)
	if errors.Is(err, errNoLeader) {
		err = fmt.Errorf("%w; -stale takes what one server has, which may not be the newest", err)
	}
	if err != nil {
		return nil, err
	}
	if t.stale && !t.leader {
		opt.Warnf("the cluster has no leader: this is what one server has, which last heard of a leader %v ago", t.contact)
	}
	version, _ := s.agent(ctx)
	return newCapture(t, version, opt)
}

// agent is what the agent that is asked runs, and where; empty if it does not say.
func (s *System) agent(ctx context.Context) (version, datacenter string) {
	if s.opt.datacenter != "" {
		return "", s.opt.datacenter // it need not be in that datacenter
	}
	p, err := s.c.small(ctx, "/v1/agent/self", nil)
	if err != nil {
		return "", ""
	}
	var self struct {
		Config struct{ Version, Datacenter string }
	}
	if json.Unmarshal(p, &self) != nil {
		return "", ""
	}
	return self.Config.Version, self.Config.Datacenter
}

// newCapture makes the tree of an archive; it closes t if it fails.
func newCapture(t *taken, version string, opt system.CaptureOptions) (_ *capture, err error) {
	c := &capture{taken: t}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close(context.Background(), false))
		}
	}()
	sum, err := scan(io.NewSectionReader(t.state, 0, t.meta.Size), nil)
	if err != nil {
		return nil, err
	}
	if sum.total != t.meta.Size {
		return nil, damaged("the records of the state have %d bytes of %d", sum.total, t.meta.Size)
	}
	if u := sum.unknownKinds(); len(u) > 0 {
		opt.Warnf("the state has records of types that this cutbank has no names for: %v; they are kept as they are", u)
	}
	c.info = t.info(sum, version)
	if opt.Mode == system.Full {
		c.info.Facts["sha256"] = t.again.SHA256 // of the archive
	}
	made, ok := t.meta.time()
	if !ok {
		made = opt.Now()
	}
	mtime := tree.TimeOf(made)
	c.root = system.NewDir("", mtime)
	c.add(metaFile, t.metaJSON, mtime)
	c.add(inspectFile, sum.inspect(t.meta), mtime)
	if opt.Mode == system.Full {
		err = c.whole(sum, mtime, opt.Warnf)
	} else {
		err = c.part(opt, mtime)
	}
	if err != nil {
		return nil, err
	}
	return c, c.root.Seal()
}

// info says what the record of the snapshot tells.
func (t *taken) info(sum *summary, version string) system.Info {
	i := system.Info{Kind: kindID, Version: sum.version(), Cluster: sum.identity(), Facts: sum.counts()}
	if i.Version == "" {
		i.Version = version
	}
	i.Facts["id"], i.Facts["datacenter"] = t.meta.ID, sum.datacenter
	i.Facts["index"], i.Facts["term"] = strconv.FormatUint(t.meta.Index, 10), strconv.FormatUint(t.meta.Term, 10)
	if t.stale {
		i.Facts["stale"] = "true"
		i.Facts["known-leader"] = strconv.FormatBool(t.leader)
		i.Facts["last-contact"] = t.contact.String()
	}
	return i
}

func (c *capture) add(name string, p []byte, mtime tree.Time) {
	c.root.Add(system.NewFile(name, mtime, bytes.NewReader(p), int64(len(p)), nil))
}

// whole adds the files of a full snapshot.
func (c *capture) whole(sum *summary, mtime tree.Time, warnf func(string, ...any)) error {
	t := c.taken
	p, err := json.Marshal(t.again)
	if err != nil {
		return err
	}
	c.add(againFile, append(p, '\n'), mtime)
	c.add(sumsFile, t.sums, mtime)
	c.root.Add(system.NewFile(stateFile, mtime, t.state, t.meta.Size, sum.cuts))
	if !t.again.Regenerates {
		warnf("the archive cannot be written again as it is, so it is stored beside its state: that costs its %d bytes each time", t.again.Size)
		c.root.Add(system.NewFile(archiveFile, mtime, t.raw, t.again.Size, nil))
	}
	return nil
}

// until reads until ctx ends.
type until struct {
	ctx context.Context
	r   io.Reader
}

func (u until) Read(p []byte) (int, error) {
	if err := context.Cause(u.ctx); err != nil {
		return 0, err
	}
	return u.r.Read(p)
}

// Import makes a capture of an archive that "consul snapshot save" has written, and says
// when that was.
func Import(ctx context.Context, file string, opt system.CaptureOptions) (system.Capture, time.Time, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	t := &taken{leader: true}
	if err := t.fill(until{ctx, f}, opt.Scratch); err != nil {
		return nil, time.Time{}, errors.Join(err, t.close())
	}
	// What is to come would be the latest snapshot for ever.
	made, ok := t.meta.time()
	if !ok || made.After(opt.Now()) {
		made = st.ModTime()
	}
	if made.After(opt.Now()) {
		made = opt.Now()
	}
	c, err := newCapture(t, "", opt)
	if err != nil {
		return nil, time.Time{}, err
	}
	return c, made, nil
}

// Root implements system.Capture.
func (c *capture) Root() tree.Node { return c.root }

// Finish implements system.Capture.
func (c *capture) Finish(context.Context) (system.Info, error) { return c.info, nil }

// Close implements system.Capture.
func (c *capture) Close(context.Context, bool) error {
	err := c.taken.close()
	if c.reduced != nil {
		err = errors.Join(err, c.reduced.Close())
		c.reduced = nil
	}
	return err
}
