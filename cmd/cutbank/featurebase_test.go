package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// fbBin is where featurebase is; empty if there is none.
func fbBin() string {
	if p := os.Getenv("CUTBANK_TEST_FEATUREBASE"); p != "" {
		return p
	}
	p, err := exec.LookPath("featurebase")
	if err != nil {
		return ""
	}
	return p
}

// fbServer is one node that a script has started.
type fbServer struct {
	args []string
	dir  string
	cmd  *exec.Cmd
	done chan struct{}
}

// fbServers are those of one script.
type fbServers struct {
	mu    sync.Mutex
	nodes map[string]*fbServer
	stop  chan struct{}
	ended chan int
}

func (s *fbServers) cmds() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"fbcluster": s.cluster, "fbkill": s.kill, "fbstart": s.start, "fbstate": s.state, "fbload": s.load, "fbcounts": s.counts, "fbwrite": s.write, "fbkeys": s.keys, "fbwhen": s.when, "fbowner": s.owner, "fbpause": s.pause, "fbmissed": s.missed,
		"certs": makeCerts, "fbidp": provideIdentity,
	}
}

// cluster starts a cluster and goes on when it is ready: fbcluster NAME NODES REPLICAS
// [OPTION...]. Its nodes are NAME1, NAME2, ..., which are variables with their
// addresses, too.
func (s *fbServers) cluster(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: fbcluster NAME NODES REPLICAS [OPTION...]")
	}
	count, err := strconv.Atoi(args[1])
	ts.Check(err)
	scheme := "http"
	if strings.Contains(strings.Join(args, " "), "--tls.certificate") {
		scheme = "https"
	}
	var initial []string
	for i := range count {
		name := args[0] + strconv.Itoa(i+1)
		freePort(ts, false, []string{name + "http", name + "grpc", name + "client", name + "peer"})
		initial = append(initial, name+"=http://127.0.0.1:"+ts.Getenv(name+"peer"))
	}
	for i := range count {
		name := args[0] + strconv.Itoa(i+1)
		addr := "127.0.0.1:" + ts.Getenv(name+"http")
		ts.Setenv(name, addr)
		n := &fbServer{dir: ts.MkAbs(name), args: append([]string{"server", "-d", ts.MkAbs(name), "-b", scheme + "://" + addr, "--bind-grpc", "127.0.0.1:" + ts.Getenv(name+"grpc"), "--name", name,
			"--etcd.listen-client-address", "http://127.0.0.1:" + ts.Getenv(name+"client"), "--etcd.listen-peer-address", "http://127.0.0.1:" + ts.Getenv(name+"peer"),
			"--etcd.initial-cluster", strings.Join(initial, ","), "--cluster.name", args[0], "--cluster.replicas", args[2], "--verchk-address", ""}, args[3:]...)}
		s.mu.Lock()
		if s.nodes == nil {
			s.nodes = map[string]*fbServer{}
		}
		s.nodes[name] = n
		s.mu.Unlock()
		s.start(ts, false, []string{name})
	}
	if scheme == "http" && !strings.Contains(strings.Join(args, " "), "--auth.enable") {
		for i := range count {
			s.state(ts, false, []string{args[0] + strconv.Itoa(i+1), "NORMAL"})
		}
	}
}

// start starts a node again: fbstart NODE.
func (s *fbServers) start(ts *testscript.TestScript, _ bool, args []string) {
	s.mu.Lock()
	n := s.nodes[args[0]]
	s.mu.Unlock()
	log, err := os.OpenFile(n.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	n.cmd = exec.Command(fbBin(), n.args...)
	n.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + ts.MkAbs(".home"), "TMPDIR=" + os.TempDir()}
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(n.cmd.Start())
	n.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // it is killed
		log.Close()
		close(done)
	}(n.cmd, n.done)
	ts.Defer(func() { n.end() })
}

func (n *fbServer) end() {
	_ = n.cmd.Process.Kill() // it may have ended
	<-n.done
}

// kill kills a node: fbkill NODE.
func (s *fbServers) kill(_ *testscript.TestScript, _ bool, args []string) {
	s.mu.Lock()
	n := s.nodes[args[0]]
	s.mu.Unlock()
	n.end()
}

// state waits until a node says that its cluster is in a state: fbstate NODE STATE.
func (s *fbServers) state(ts *testscript.TestScript, _ bool, args []string) {
	var last string
	for range 900 {
		var st struct{ State string }
		p, err := fbGet(ts.Getenv(args[0]), "/status")
		if err == nil {
			err = json.Unmarshal(p, &st)
		}
		if err == nil && st.State == args[1] {
			return
		}
		last = fmt.Sprint(st.State, err)
		select {
		case <-s.nodes[args[0]].done:
			text, _ := os.ReadFile(s.nodes[args[0]].dir + ".log")
			ts.Fatalf("featurebase %s has ended: %s", args[0], text)
		case <-time.After(100 * time.Millisecond):
		}
	}
	text, _ := os.ReadFile(s.nodes[args[0]].dir + ".log")
	ts.Fatalf("featurebase %s is %s, not %s\n%s", args[0], last, args[1], text)
}

var fbClient = &http.Client{Timeout: time.Minute}

func fbAnswer(resp *http.Response, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", resp.Status, p)
	}
	return p, err
}

func fbGet(host, path string) ([]byte, error) {
	return fbAnswer(fbClient.Get("http://" + host + path))
}

func fbPost(host, path, body string) ([]byte, error) {
	return fbAnswer(fbClient.Post("http://"+host+path, "application/json", strings.NewReader(body)))
}

// load makes indexes with and without keys, in several shards: fbload NODE.
func (s *fbServers) load(ts *testscript.TestScript, _ bool, args []string) {
	host := ts.Getenv(args[0])
	for _, p := range [][2]string{
		{"/index/seg", `{"options":{"keys":true,"trackExistence":true}}`},
		{"/index/seg/field/tag", `{"options":{"type":"set","keys":true}}`},
		{"/index/seg/field/age", `{"options":{"type":"int","min":0,"max":200}}`},
		{"/index/num", `{"options":{"keys":false,"trackExistence":true}}`},
		{"/index/num/field/f", `{"options":{"type":"set"}}`},
		{"/index/num/field/when", `{"options":{"type":"time","timeQuantum":"YMD"}}`},
		{"/index/num/field/at", `{"options":{"type":"timestamp","timeUnit":"s","epoch":"2020-01-01T00:00:00Z"}}`},
		{"/index/num/field/who", `{"options":{"type":"int","foreignIndex":"seg"}}`},
		{"/index/void", `{"options":{"keys":true}}`},
	} {
		_, err := fbPost(host, p[0], p[1])
		ts.Check(err)
	}
	var seg, num strings.Builder
	for i := range 300 {
		fmt.Fprintf(&seg, `Set("user%d", tag="t%d") Set("user%d", tag="top") Set("user%d", age=%d) `, i, i%7, i, i, i%90)
		// Shards are 1<<20 columns.
		fmt.Fprintf(&num, `Set(%d, f=%d) Set(%[1]d, f=99) Set(%[3]d, when=%[4]d, 2024-0%[5]d-01T00:00) Set(%[6]d, at='2024-05-0%[7]dT00:00:00Z') Set(%[6]d, who="user%[8]d") `, i%12<<20+i, i%11, i%12<<20+i, i%3, i%9+1, i%12<<20+i, i%9+1, i)
	}
	_, err := fbPost(host, "/index/seg/query", seg.String())
	ts.Check(err)
	_, err = fbPost(host, "/index/num/query", num.String())
	ts.Check(err)
	// IDs that an ingester has.
	var st struct {
		Nodes []struct {
			URI       struct{ Port int }
			IsPrimary bool
		}
	}
	p, err := fbGet(host, "/status")
	ts.Check(err)
	ts.Check(json.Unmarshal(p, &st))
	for _, n := range st.Nodes {
		if n.IsPrimary {
			_, err = fbPost(fmt.Sprintf("127.0.0.1:%d", n.URI.Port), "/internal/idalloc/reserve", `{"key":{"index":"num","key":"src"},"session":[`+strings.TrimSuffix(strings.Repeat("7,", 32), ",")+`],"offset":0,"count":10}`)
			ts.Check(err)
		}
	}
}

// fbDates are what no restore brings back of a schema.
var fbDates = regexp.MustCompile(`"(createdAt|updatedAt)":\d+,?`)

// counts prints what a node answers to some questions, and its schema: fbcounts NODE FILE.
func (s *fbServers) counts(ts *testscript.TestScript, _ bool, args []string) {
	var b strings.Builder
	for _, q := range [][2]string{
		{"seg", `Count(All())`}, {"seg", `Count(Row(tag="t3"))`}, {"seg", `Row(tag="t5")`}, {"seg", `Sum(field=age)`}, {"seg", `Rows(tag)`}, {"seg", `TopN(tag, n=1)`}, {"seg", `Count(Row(age>30))`},
		{"num", `Count(All())`}, {"num", `Row(f=4)`}, {"num", `TopN(f, n=1)`}, {"num", `Count(Row(when=1, from='2024-01-01T00:00', to='2024-06-01T00:00'))`}, {"num", `Count(Row(at>'2024-05-04T00:00:00Z'))`},
		{"num", `Min(field=at)`}, {"num", `Count(Row(who=="user7"))`},
		{"void", `Count(All())`},
	} {
		p, err := fbPost(ts.Getenv(args[0]), "/index/"+q[0]+"/query", q[1])
		ts.Check(err)
		fmt.Fprintf(&b, "%s %s", q[1], p)
	}
	p, err := fbGet(ts.Getenv(args[0]), "/schema")
	ts.Check(err)
	b.Write(fbDates.ReplaceAll(p, nil))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(b.String()), 0o644))
}

// write writes to the keyed index until "fbwrite stop": fbwrite NODE.
func (s *fbServers) write(ts *testscript.TestScript, _ bool, args []string) {
	if args[0] == "stop" {
		close(s.stop)
		if n := <-s.ended; n == 0 {
			ts.Fatalf("nothing was written meanwhile")
		}
		return
	}
	host := ts.Getenv(args[0])
	s.stop, s.ended = make(chan struct{}), make(chan int, 1)
	go func(stop chan struct{}, ended chan int) {
		n := 0
		defer func() { ended <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := fbPost(host, "/index/seg/query", fmt.Sprintf(`Set("load%d", tag="l%d")`, n, n)); err == nil {
				n++
			}
		}
	}(s.stop, s.ended)
}

// keys fails if a record of the keyed index has no key, or none of its tags: fbkeys NODE.
func (s *fbServers) keys(ts *testscript.TestScript, _ bool, args []string) {
	host := ts.Getenv(args[0])
	var all struct {
		Results []struct{ Keys []string }
	}
	var count struct{ Results []int }
	for q, v := range map[string]any{`All()`: &all, `Count(All())`: &count} {
		p, err := fbPost(host, "/index/seg/query", q)
		ts.Check(err)
		ts.Check(json.Unmarshal(p, v))
	}
	if len(all.Results[0].Keys) != count.Results[0] || count.Results[0] < 300 {
		ts.Fatalf("%d records, %d keys", count.Results[0], len(all.Results[0].Keys))
	}
	for _, k := range all.Results[0].Keys {
		if k == "" {
			ts.Fatalf("a record has no key")
		}
	}
	p, err := fbPost(host, "/index/seg/query", `Rows(tag)`)
	ts.Check(err)
	ts.Check(json.Unmarshal(p, &all))
	for _, k := range all.Results[0].Keys {
		if p, err := fbPost(host, "/index/seg/query", fmt.Sprintf("Count(Row(tag=%q))", k)); k == "" || err != nil {
			ts.Fatalf("tag %q: %s %v", k, p, err)
		}
	}
}

// when waits until a node has an index: fbwhen NODE INDEX.
func (s *fbServers) when(ts *testscript.TestScript, _ bool, args []string) {
	for range 3000 {
		if p, err := fbGet(ts.Getenv(args[0]), "/schema"); err == nil && strings.Contains(string(p), fmt.Sprintf("%q", args[1])) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s has no index %s", args[0], args[1])
}

// owner sets a variable to a node that is asked first for a shard of an index, and is
// not the one that is named, and VARIABLEADDR to its address: fbowner NODE INDEX VARIABLE.
func (s *fbServers) owner(ts *testscript.TestScript, _ bool, args []string) {
	for shard := range 12 {
		p, err := fbGet(ts.Getenv(args[0]), fmt.Sprintf("/internal/fragment/nodes?index=%s&shard=%d", args[1], shard))
		ts.Check(err)
		var nodes []struct{ URI struct{ Port int } }
		ts.Check(json.Unmarshal(p, &nodes))
		s.mu.Lock()
		names := slices.Collect(maps.Keys(s.nodes))
		s.mu.Unlock()
		for _, name := range names {
			if name != args[0] && ts.Getenv(name) == fmt.Sprintf("127.0.0.1:%d", nodes[0].URI.Port) {
				ts.Setenv(args[2], name)
				ts.Setenv(args[2]+"ADDR", ts.Getenv(name))
				return
			}
		}
	}
	ts.Fatalf("%s is first for all shards", args[0])
}

// pause stops a node, or has it go on: it answers nothing, and ends no connection:
// fbpause NODE [off].
func (s *fbServers) pause(ts *testscript.TestScript, _ bool, args []string) {
	s.mu.Lock()
	n := s.nodes[args[0]]
	s.mu.Unlock()
	sig := syscall.SIGSTOP
	if len(args) > 1 {
		sig = syscall.SIGCONT
	}
	ts.Check(n.cmd.Process.Signal(sig))
}

// missed makes a shard of an index while a node that does not own it is stopped, and
// dies of it: when it is back it does not know of the shard, mostly. The shard is in a
// variable: fbmissed NODE OTHER INDEX VARIABLE.
func (s *fbServers) missed(ts *testscript.TestScript, _ bool, args []string) {
	for shard := 40; shard < 80; shard++ {
		p, err := fbGet(ts.Getenv(args[1]), fmt.Sprintf("/internal/fragment/nodes?index=%s&shard=%d", args[2], shard))
		ts.Check(err)
		if strings.Contains(string(p), `"port":`+strings.Split(ts.Getenv(args[0]), ":")[1]) {
			continue
		}
		s.pause(ts, false, args[:1])
		_, err = fbPost(ts.Getenv(args[1]), "/index/"+args[2]+"/query", fmt.Sprintf("Set(%d, f=1)", shard<<20))
		s.kill(ts, false, args[:1])
		ts.Check(err)
		s.start(ts, false, args[:1])
		s.state(ts, false, []string{args[0], "NORMAL"})
		ts.Setenv(args[3], fmt.Sprintf("%04d", shard))
		p, err = fbGet(ts.Getenv(args[0]), "/internal/index/"+args[2]+"/shards")
		ts.Check(err)
		ts.Logf("%s made while %s was away, which knows %s", ts.Getenv(args[3]), args[0], p)
		return
	}
	ts.Fatalf("%s owns all shards", args[0])
}
