package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// consulBin is Consul's program, which test/systems/run.sh builds.
func consulBin() string { return os.Getenv("CUTBANK_TEST_CONSUL") }

// consulServers are the servers that a script has started, by the address of their API.
var consulServers sync.Map

type consulServer struct {
	script *testscript.TestScript
	cmd    *exec.Cmd
	port   string // for other servers
	killed bool
}

// consulStart starts a cluster of servers on loopback, and goes on when it has a leader.
// NAME1, NAME2... become the addresses of their APIs. What FILE has, JSON, is added to
// the configuration of each; where it has "tls", NAMEs1, NAMEs2... become those of HTTPS.
func consulStart(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: consulstart NAME SERVERS [FILE]")
	}
	name := args[0]
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ports := ports(ts, 4*n)
	secure := len(args) == 3 && strings.Contains(ts.ReadFile(args[2]), `"tls"`)
	var join []string
	for i := range n {
		join = append(join, "127.0.0.1:"+ports[4*i+1])
	}
	var addrs []string
	for i := range n {
		id := name + strconv.Itoa(i+1)
		p := ports[4*i:]
		dir := ts.MkAbs("consul-" + id)
		ts.Check(os.MkdirAll(dir, 0o700))
		config := object{"server": true, "node_name": id, "data_dir": dir, "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "bootstrap_expect": n,
			"retry_join": join, "retry_interval": "1s", "disable_update_check": true, "performance": object{"raft_multiplier": 3},
			"ports": object{"http": portNumber(p[0]), "https": -1, "dns": -1, "grpc": -1, "grpc_tls": -1, "serf_lan": portNumber(p[1]), "serf_wan": -1, "server": portNumber(p[2])}}
		if secure {
			config["ports"].(object)["https"] = portNumber(p[3])
			ts.Setenv(name+"s"+strconv.Itoa(i+1), "127.0.0.1:"+p[3])
		}
		text, err := json.Marshal(config)
		ts.Check(err)
		file := filepath.Join(dir, "server.json")
		ts.Check(os.WriteFile(file, text, 0o600))
		run := []string{"agent", "-config-file", file}
		if len(args) == 3 {
			run = append(run, "-config-file", ts.MkAbs(args[2]))
		}
		addr := "127.0.0.1:" + p[0]
		consulServers.Store(addr, &consulServer{script: ts, cmd: startConsul(ts, dir, run), port: p[2]})
		ts.Setenv(id, addr)
		addrs = append(addrs, addr)
	}
	for _, a := range addrs {
		if !consulLeader(a, 90*time.Second) {
			log, _ := os.ReadFile(ts.MkAbs("consul-" + name + "1/log"))
			ts.Fatalf("%s sees no leader: %s", a, log[max(0, len(log)-4000):])
		}
	}
}

func portNumber(s string) int {
	n, _ := strconv.Atoi(s) // what a script says
	return n
}

// ports are some on which nobody listens.
func ports(ts *testscript.TestScript, n int) []string {
	var list []string
	for len(list) < n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // not the same one twice
		list = append(list, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return list
}

func startConsul(ts *testscript.TestScript, dir string, args []string) *exec.Cmd {
	log, err := os.Create(filepath.Join(dir, "log"))
	ts.Check(err)
	cmd := exec.Command(consulBin(), args...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = []string{"PATH=" + ts.Getenv("PATH")}, dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill() // it may have been killed
		_ = cmd.Wait()
		log.Close()
	})
	return cmd
}

// consulLeader waits until a server knows a leader.
func consulLeader(addr string, limit time.Duration) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if p, err := consulGet("http://" + addr + "/v1/status/leader"); err == nil && len(p) > 4 {
			return true
		}
	}
	return false
}

func consulGet(url string) ([]byte, error) {
	c := http.Client{Timeout: 20 * time.Second}
	res, err := c.Get(url)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	p, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, p)
	}
	return p, err
}

// consulKill kills the server that leads, as that at ADDR says, and sets a variable to
// the address of one that is left. With "spare" it kills none, and sets the variable.
func consulKill(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 || args[0] != "leader" && args[0] != "spare" {
		ts.Fatalf("usage: consulkill leader|spare ADDR VARIABLE")
	}
	if !consulLeader(args[1], 30*time.Second) {
		ts.Fatalf("%s sees no leader", args[1])
	}
	leader, err := consulGet("http://" + args[1] + "/v1/status/leader")
	ts.Check(err)
	found := false
	consulServers.Range(func(addr, v any) bool {
		s := v.(*consulServer)
		switch {
		case s.script != ts || s.killed:
		case string(bytes.TrimSpace(leader)) == `"127.0.0.1:`+s.port+`"`:
			if found = true; args[0] == "leader" {
				s.killed = true
				ts.Check(s.cmd.Process.Kill())
			}
		default:
			ts.Setenv(args[2], addr.(string))
		}
		return true
	})
	if !found {
		ts.Fatalf("the leader, %s, is no server of this script", leader)
	}
}

// consulLoad writes keys app/NN/keyNNNNNN with 300 random bytes each, or with a third
// argument that many of them anew.
func consulLoad(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: consulload ADDR KEYS SEED [REWRITTEN]")
	}
	n, seed := portNumber(args[1]), portNumber(args[2])
	rnd := rand.New(rand.NewPCG(uint64(seed), 0))
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	if len(args) == 4 {
		order = rnd.Perm(n)[:portNumber(args[3])]
	}
	for len(order) > 0 {
		part := order[:min(100, len(order))]
		order = order[len(part):]
		var ops []object
		for _, i := range part {
			value := make([]byte, 300)
			for j := range value {
				value[j] = byte(rnd.Uint32())
			}
			ops = append(ops, object{"KV": object{"Verb": "set", "Key": fmt.Sprintf("app/%02d/key%06d", i%50, i), "Value": value, "Flags": i % 7}})
		}
		body, err := json.Marshal(ops)
		ts.Check(err)
		consulPut(ts, "http://"+args[0]+"/v1/txn", body)
	}
}

// consulSet writes what stands in pairs: PATH below /v1, and a body.
func consulSet(ts *testscript.TestScript, _ bool, args []string) {
	for i := 1; i+1 < len(args); i += 2 {
		consulPut(ts, "http://"+args[0]+"/v1/"+args[i], []byte(args[i+1]))
	}
}

func consulPut(ts *testscript.TestScript, url string, body []byte) {
	method := http.MethodPut
	if strings.HasSuffix(url, "/v1/query") {
		method = http.MethodPost
	}
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	ts.Check(err)
	req.Header.Set("X-Consul-Token", ts.Getenv("CONSUL_HTTP_TOKEN"))
	res, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer res.Body.Close()
	if p, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK {
		ts.Fatalf("%s: %s: %s", url, res.Status, p)
	}
}

// consulKeys checks how many keys each server has by itself.
func consulKeys(ts *testscript.TestScript, _ bool, args []string) {
	want := portNumber(args[0])
	for _, addr := range args[1:] {
		got := -1
		for range 100 { // followers come after
			p, err := consulGet("http://" + addr + "/v1/kv/?keys&stale")
			var keys []string
			if err == nil && json.Unmarshal(p, &keys) == nil {
				got = len(keys)
			}
			if got == want {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if got != want {
			ts.Fatalf("%s has %d keys, want %d", addr, got, want)
		}
	}
}

// consulWriter writes keys until the script ends, and FILE is made when some are there.
func consulWriter(ts *testscript.TestScript, _ bool, args []string) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			req, err := http.NewRequest(http.MethodPut, fmt.Sprintf("http://%s/v1/kv/w/%06d", args[0], i), strings.NewReader(strconv.Itoa(i)))
			if err == nil {
				if res, err := http.DefaultClient.Do(req); err == nil {
					res.Body.Close()
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	ts.Defer(func() { close(stop); <-done })
}
