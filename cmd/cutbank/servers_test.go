package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestSystems runs testdata/systems/*.txtar against real servers, which the scripts
// start on this machine; `make test-systems` runs it.
func TestSystems(t *testing.T) {
	if os.Getenv("CUTBANK_TEST_SYSTEMS") == "" {
		if required("systems") {
			t.Fatal("CUTBANK_TEST_SYSTEMS is not set, and CUTBANK_REQUIRE asks for systems")
		}
		t.Skip("LEFT OUT: servers are started by `make test-systems` only")
	}
	p := params("testdata/systems")
	setup, condition := p.Setup, p.Condition
	p.Setup = func(env *testscript.Env) error {
		// The servers' user must get to where their files are.
		for d := env.WorkDir; strings.HasPrefix(d, os.TempDir()+"/"); d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil {
				return err
			}
		}
		env.Setenv("PGBIN", pgBin())
		env.Setenv("CONSUL", consulBin())
		env.Setenv("PATH", env.Getenv("PATH")+":"+pgBin()+":"+filepath.Dir(fbBin()))
		if err := setup(env); err != nil {
			return err
		}
		env.Setenv("CUTBANK_PASSWORD", "")
		return nil
	}
	p.Condition = func(cond string) (bool, error) {
		have := false
		switch cond {
		case "postgresql":
			have = pgBin() != ""
		case "etcd":
			_, err := exec.LookPath("etcd")
			_, cerr := exec.LookPath("etcdctl")
			have = err == nil && cerr == nil
		case "consul":
			have = consulBin() != ""
		case "featurebase":
			have = fbBin() != ""
		default:
			return condition(cond)
		}
		if !have && required("systems") {
			return false, fmt.Errorf("CUTBANK_REQUIRE names systems, and there is no %s", cond)
		}
		return have, nil
	}
	p.Cmds["pgstart"], p.Cmds["pgstop"], p.Cmds["etcdstart"], p.Cmds["freeport"] = pgStart, pgStop, etcdStart, freePort
	p.Cmds["consulstart"], p.Cmds["consulkill"], p.Cmds["consulload"] = consulStart, consulKill, consulLoad
	p.Cmds["consulset"], p.Cmds["consulkeys"], p.Cmds["consulwriter"] = consulSet, consulKeys, consulWriter
	for name, cmd := range new(fbServers).cmds() {
		p.Cmds[name] = cmd
	}
	testscript.Run(t, p)
}

// pgBin is where PostgreSQL's server is; empty if there is none.
func pgBin() string {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err == nil && len(found) > 0 {
		return filepath.Dir(found[len(found)-1])
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(p)
	}
	return ""
}

// asServer runs a program as a user that is not root, which PostgreSQL refuses to be.
func asServer(ts *testscript.TestScript, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "LC_ALL=C"}
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		u, err := user.Lookup("nobody")
		ts.Check(err)
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	return cmd
}

func runServer(ts *testscript.TestScript, args ...string) {
	if out, err := asServer(ts, args...).CombinedOutput(); err != nil {
		ts.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// pgStart starts a server whose data is in a directory, which is made if it is
// missing; its socket is in the script's directory, under the port that is given.
// The password of its superuser, postgres, is "secret".
func pgStart(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: pgstart DIR PORT")
	}
	dir, bin := ts.MkAbs(args[0]), ts.Getenv("PGBIN")
	sock := ts.MkAbs("sock")
	ts.Check(os.MkdirAll(sock, 0o777))
	ts.Check(os.Chmod(sock, 0o777))
	if _, err := os.Stat(dir); err != nil {
		ts.Check(os.Mkdir(dir, 0o700))
		pw := filepath.Join(sock, "pw")
		ts.Check(os.WriteFile(pw, []byte("secret\n"), 0o644))
		if os.Geteuid() == 0 {
			u, err := user.Lookup("nobody")
			ts.Check(err)
			uid, _ := strconv.Atoi(u.Uid)
			ts.Check(os.Chown(dir, uid, -1))
		}
		runServer(ts, bin+"/initdb", "-D", dir, "-U", "postgres", "--auth=scram-sha-256", "--pwfile="+pw, "-k", "--no-sync", "-E", "UTF8")
	}
	log := filepath.Join(sock, "log-"+args[1])
	stop := func() { _ = asServer(ts, bin+"/pg_ctl", "-D", dir, "-m", "immediate", "stop").Run() } // it may have been stopped
	ts.Defer(stop)
	if out, err := asServer(ts, bin+"/pg_ctl", "-D", dir, "-w", "-l", log, "-o", "-c listen_addresses= -c fsync=off -k "+sock+" -p "+args[1], "start").CombinedOutput(); err != nil {
		text, _ := os.ReadFile(log)
		ts.Fatalf("%v: %s\n%s", err, out, text)
	}
}

func pgStop(ts *testscript.TestScript, _ bool, args []string) {
	runServer(ts, ts.Getenv("PGBIN")+"/pg_ctl", "-D", ts.MkAbs(args[0]), "-m", "fast", "-w", "stop")
}

// freePort sets variables to ports on which nobody listens.
func freePort(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close() // not the same one twice
		ts.Setenv(name, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
}

// etcdStart starts a member and goes on when it answers, or after the time that
// members who wait for others take.
func etcdStart(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command("etcd", args...)
	cmd.Env = []string{"PATH=" + ts.Getenv("PATH"), "ETCD_UNSUPPORTED_ARCH="}
	cmd.Dir = ts.MkAbs(".")
	log, err := os.Create(ts.MkAbs("etcd.log"))
	ts.Check(err)
	cmd.Stderr, cmd.Stdout = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed
		close(done)
	}()
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		<-done
		log.Close()
	})
	client := ""
	for i, a := range args {
		if a == "--listen-client-urls" && i+1 < len(args) {
			client = strings.TrimPrefix(args[i+1], "http://")
		}
	}
	for range 100 {
		if c, err := net.DialTimeout("tcp", client, time.Second); err == nil {
			c.Close()
			return
		}
		select {
		case <-done:
			text, _ := os.ReadFile(log.Name())
			ts.Fatalf("etcd has ended: %s", text)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
