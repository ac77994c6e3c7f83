package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// contents are what an object of that name holds in this test: of a length and
// of bytes that its name decides.
func contents(name string) []byte {
	seed := sha256.Sum256([]byte(name))
	r := rand.NewChaCha8(seed)
	p := make([]byte, 1+r.Uint64()%200_000)
	r.Read(p)
	return p
}

// TestMain makes the test's binary a process that races for names, or puts
// objects until it is killed, when told so.
func TestMain(m *testing.M) {
	if dir := os.Getenv("CUTBANK_TEST_RACE"); dir != "" {
		f, err := Open(dir)
		if err == nil {
			err = backendtest.Racer(f, os.Getenv("CUTBANK_TEST_RACER"), os.Stdout)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	dir := os.Getenv("CUTBANK_TEST_PUT_LOOP")
	if dir == "" {
		os.Exit(m.Run())
	}
	f, err := Open(dir)
	for i := 0; err == nil; i++ {
		name := fmt.Sprintf("packs/%02x/%d-%d", i%16, os.Getpid(), i)
		if err = f.Put(context.Background(), name, contents(name)); err == nil {
			_, err = fmt.Println(name) // acknowledged
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Processes that put objects are killed at random moments: what was
// acknowledged is there, and all that is listed is whole.
func TestKilledWriters(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	f := create(t)
	acknowledged := make(map[string]bool)
	for range 8 {
		var outputs [2]bytes.Buffer
		var writers [2]*exec.Cmd
		for i := range writers {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "CUTBANK_TEST_PUT_LOOP="+f.dir)
			cmd.Stdout, cmd.Stderr = &outputs[i], io.Discard
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			writers[i] = cmd
		}
		time.Sleep(time.Duration(30+r.IntN(100)) * time.Millisecond)
		for i, cmd := range writers {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
			cmd.Wait()
			if !strings.Contains(cmd.ProcessState.String(), "killed") {
				t.Fatalf("the writer ended by itself: %v", cmd.ProcessState)
			}
			lines := strings.SplitAfter(outputs[i].String(), "\n")
			for _, line := range lines[:len(lines)-1] {
				acknowledged[strings.TrimSuffix(line, "\n")] = true
			}
		}
	}
	if len(acknowledged) == 0 {
		t.Fatal("the writers put nothing before they were killed")
	}
	n := 0
	for info, err := range f.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.Get(t.Context(), info.Name, 0, -1)
		if err != nil || !bytes.Equal(got, contents(info.Name)) {
			t.Errorf("%s: %d bytes, %v", info.Name, len(got), err)
		}
		delete(acknowledged, info.Name)
		n++
	}
	for name := range acknowledged {
		t.Errorf("%s was acknowledged and is gone", name)
	}
	left, err := os.ReadDir(f.dir + "/tmp")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d whole objects, %d files left in tmp", n, len(left))
	if swept, err := f.Sweep(time.Now().Add(2 * tmpAge)); err != nil || swept != len(left) {
		t.Errorf("swept %d of %d, %v", swept, len(left), err)
	}
}
