package consul

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// Restore implements system.System.
func (s *System) Restore(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	if s.told {
		opt.Warnf("others on this machine can see what -token says: use CONSUL_HTTP_TOKEN or -token-file")
	}
	if s.opt.stale {
		return system.Result{}, fmt.Errorf("-stale is for reading: a restore needs a leader: %w", system.ErrRefused)
	}
	if opt.Path != "" {
		return s.restoreKeys(ctx, n, info, opt)
	}
	if opt.Mode != system.Full {
		return system.Result{}, fmt.Errorf("a %s snapshot has not everything: a full one can be restored: %w", opt.Mode, system.ErrRefused)
	}
	return s.restoreAll(ctx, n, info, opt)
}

// restoreAll replaces the state of the cluster.
func (s *System) restoreAll(ctx context.Context, n tree.Node, info system.Info, opt system.RestoreOptions) (system.Result, error) {
	var res system.Result
	state, err := n.Lookup(ctx, stateFile)
	if err != nil {
		return res, err
	}
	want, err := scan(stream(ctx, state), nil)
	if err != nil {
		return res, fmt.Errorf("the snapshot: %w", err)
	}
	have, err := s.look(ctx, opt)
	if err != nil {
		return res, err
	}
	now := system.Info{Kind: kindID, Version: have.version(), Cluster: have.identity()}
	if have.version() == "" || have.datacenter == "" {
		version, datacenter := s.agent(ctx)
		now.Version = cmp.Or(now.Version, version)
		if have.datacenter == "" { // the first leader has only just been elected
			have.datacenter = datacenter
			now.Cluster = have.identity()
		}
	}
	lost := have.holds()
	// A new cluster has an ID of its own until it is restored into; where nothing is
	// lost the name of the datacenter is what counts.
	if len(lost) == 0 && have.datacenter == want.datacenter {
		now.Cluster = ""
	}
	if err := info.Check(now, opt); err != nil {
		return res, err
	}
	for _, l := range lost {
		opt.Stepf("replaces %s", l)
	}
	refused := len(lost) > 0 && !opt.Force
	if opt.DryRun || !refused {
		opt.Stepf("restores %s of index %s", strings.Join(want.holds(), ", "), info.Facts["index"])
	}
	if refused {
		return res, fmt.Errorf("the cluster is not empty: it has %s, all of which would be replaced: --force does it: %w", strings.Join(lost, ", "), system.ErrRefused)
	}
	res.Items, res.Bytes = want.records(), uint64(state.Attr().Size)
	res.Notes = notes(want)
	if opt.DryRun {
		return res, nil
	}
	if err := s.put(ctx, n, state); err != nil {
		return res, err
	}
	return res, s.compare(ctx, want, opt)
}

// now is what can be known of the cluster by who may not take a snapshot of it. What
// cannot is not told, or told as the snapshot has it.
func (s *System) now(ctx context.Context, info system.Info) system.Info {
	now := system.Info{Kind: kindID}
	var servers []struct {
		Datacenter  string
		ServiceMeta map[string]string
	}
	versions := &summary{versions: map[string]int{"": 0}}
	datacenter := s.opt.datacenter
	if p, err := s.c.small(ctx, "/v1/catalog/service/consul", nil); err == nil && json.Unmarshal(p, &servers) == nil {
		for _, n := range servers {
			datacenter = n.Datacenter
			if v := n.ServiceMeta["version"]; v != "" {
				versions.versions[v]++
			}
		}
	}
	now.Version = versions.version()
	if datacenter == "" {
		_, datacenter = s.agent(ctx)
	}
	id := ""
	var roots struct{ TrustDomain string }
	if p, err := s.c.small(ctx, "/v1/connect/ca/roots", nil); err == nil && json.Unmarshal(p, &roots) == nil {
		id, _, _ = strings.Cut(roots.TrustDomain, ".")
	}
	wantDatacenter, wantID, _ := strings.Cut(info.Cluster, "/")
	if id == "" || wantID == "" {
		id = wantID
	}
	have := summary{datacenter: cmp.Or(datacenter, wantDatacenter), cluster: id}
	now.Cluster = have.identity()
	return now
}

func notes(want *summary) []string {
	list := []string{"restart the agents of new machines that say \"Node name ... is reserved\": consul leave, then start",
		"services of machines that are gone stay in the catalog until they are deregistered"}
	if want.count(kindToken) > 0 {
		list = append(list, "ACL tokens are those of the snapshot now: set the agents' tokens, and use a token of the snapshot from here on")
	}
	return list
}

// records counts all records.
func (s *summary) records() uint64 {
	n := 0
	for _, t := range s.kinds {
		n += t.count
	}
	return uint64(n)
}

// builtIn are how many records of a kind a cluster has that nobody has used: with
// access control two tokens and two policies, and always its own federation state.
var builtIn = map[uint8]int{kindToken: 2, kindPolicy: 2, kindFederation: 1}

// counted are the kinds whose records people make, and what they are called.
var counted = []struct {
	kind uint8
	name string
}{
	{kindKVS, "keys"}, {kindSession, "sessions"}, {kindQuery, "prepared queries"}, {kindConfig, "config entries"}, {kindIntention, "intentions"},
	{kindToken, "tokens"}, {kindPolicy, "policies"}, {kindRole, "roles"}, {kindBindingRule, "binding rules"}, {kindAuthMethod, "auth methods"},
	{kindPeering, "peerings"}, {kindFederation, "federation states"},
}

// holds lists what people have put into a cluster; empty if that is nothing.
func (s *summary) holds() []string {
	var list []string
	for _, c := range counted {
		if n := s.count(c.kind); n > builtIn[c.kind] {
			list = append(list, fmt.Sprintf("%d %s", n, c.name))
		}
	}
	if n := len(s.services); n > 0 {
		list = append(list, fmt.Sprintf("%d services", n))
	}
	if n := s.nodes - s.agents; n > 0 {
		list = append(list, fmt.Sprintf("%d nodes without an agent", n))
	}
	for k := range s.unknown {
		list = append(list, fmt.Sprintf("%d records of type %d", s.count(k), k))
	}
	slices.Sort(list)
	return list
}

// look takes a snapshot of the cluster, to see what is in it.
func (s *System) look(ctx context.Context, opt system.RestoreOptions) (*summary, error) {
	dir, err := os.MkdirTemp(opt.Scratch, "cluster-")
	if err != nil {
		return nil, fmt.Errorf("scratch space: %w", err)
	}
	t, err := s.take(ctx, dir, opt.Logf)
	if err != nil {
		return nil, fmt.Errorf("looking what the cluster has: %w", err)
	}
	sum, err := scan(io.NewSectionReader(t.state, 0, t.meta.Size), nil)
	err = errors.Join(err, t.close(), os.Remove(filepath.Join(dir, stateFile)), os.Remove(filepath.Join(dir, archiveFile)))
	return sum, err
}

// put sends the archive. Consul checks its sums before it changes anything.
func (s *System) put(ctx context.Context, n, state tree.Node) error {
	again, err := n.Lookup(ctx, againFile)
	if err != nil {
		return err
	}
	g, err := readAgain(ctx, again)
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	defer r.Close() // ends who writes
	if g.Regenerates {
		a, err := storedArchive(ctx, n, g)
		if err != nil {
			return err
		}
		go func() { w.CloseWithError(a.write(w, stream(ctx, state))) }()
	} else {
		raw, err := n.Lookup(ctx, archiveFile)
		if err != nil {
			return err
		}
		go func() {
			_, err := io.Copy(w, stream(ctx, raw))
			w.CloseWithError(err)
		}()
	}
	a, err := s.c.do(ctx, http.MethodPut, "/v1/snapshot", nil, r)
	if err != nil {
		return fmt.Errorf("the cluster has not said that it took the snapshot, look whether it did: %w", err)
	}
	return a.Body.Close()
}

// compare takes a snapshot again, and counts.
func (s *System) compare(ctx context.Context, want *summary, opt system.RestoreOptions) error {
	have, err := s.look(ctx, opt)
	if errors.Is(err, fs.ErrPermission) {
		opt.Warnf("restored; what the cluster has now was not counted, since the token is none of the snapshot's: %v", err)
		return nil
	}
	if err != nil {
		opt.Warnf("restored; what the cluster has now was not counted: %v", err)
		return nil
	}
	for _, c := range counted {
		// Servers make again what their configuration names: a token, for one.
		if w, h := want.count(c.kind), have.count(c.kind); h < w || h > w+builtIn[c.kind] {
			opt.Warnf("the snapshot has %d %s, the cluster has %d now: others are writing already, or something is wrong", w, c.name, h)
		}
	}
	return nil
}
