package backendtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// raceNames is how many names the processes of RaceProcesses put.
const raceNames = 60

// raceBytes is what the racer puts under a name: of a length that the racer
// decides.
func raceBytes(racer, name string) []byte {
	return bytes.Repeat([]byte(racer+" "+name+"\n"), 1+len(racer)*len(name)*7)
}

// Racer is what each process of RaceProcesses does with the Backend that it
// opened: it puts names, and writes to w of each who has it.
func Racer(b backend.Backend, racer string, w io.Writer) error {
	ctx := context.Background()
	for i := range raceNames {
		name := fmt.Sprintf("snapshots/%03d", i)
		err := b.Put(ctx, name, raceBytes(racer, name))
		owner := racer
		if errors.Is(err, fs.ErrExist) {
			var got []byte
			if got, err = b.Get(ctx, name, 0, -1); err == nil {
				owner, _, _ = strings.Cut(string(got), " ")
				if owner == racer || !bytes.Equal(got, raceBytes(owner, name)) {
					return fmt.Errorf("%s: lost to %q, whose %d bytes are not whole", name, owner, len(got))
				}
			}
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(w, name, owner)
	}
	return nil
}

// RaceProcesses lets processes put the same names: cmd returns the command of
// the one with the given name, which calls Racer. Half of them are killed. Each
// name must have one owner, about whom all agree, and whose bytes are there,
// whole; b shows what is there.
func RaceProcesses(t *testing.T, b backend.Backend, cmd func(racer string) *exec.Cmd) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	type process struct {
		name   string
		out    bytes.Buffer
		killed bool
	}
	processes := make([]*process, 6)
	var group sync.WaitGroup
	for i := range processes {
		p := &process{name: fmt.Sprintf("racer%d", i), killed: i%2 == 1}
		processes[i] = p
		c := cmd(p.name)
		var stderr bytes.Buffer
		c.Stdout, c.Stderr = &p.out, &stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		pause := time.Duration(20+r.IntN(300)) * time.Millisecond
		group.Go(func() {
			if p.killed {
				time.Sleep(pause)
				c.Process.Kill()
			}
			if err := c.Wait(); err != nil && !p.killed {
				t.Errorf("%s: %v: %s", p.name, err, stderr.Bytes())
			}
		})
	}
	group.Wait()
	owners := map[string]string{}
	for _, p := range processes {
		for s := bufio.NewScanner(&p.out); s.Scan(); {
			name, owner, ok := strings.Cut(s.Text(), " ")
			if !ok || p.killed && !strings.HasPrefix(owner, "racer") {
				continue // cut off
			}
			if had, ok := owners[name]; ok && had != owner {
				t.Errorf("%s is said to be of %s and of %s", name, had, owner)
			}
			owners[name] = owner
		}
	}
	if len(owners) != raceNames {
		t.Errorf("%d names have an owner, want %d", len(owners), raceNames)
	}
	for name, owner := range owners {
		want(t, b, name, raceBytes(owner, name))
	}
	if got := list(t, b, "snapshots/"); len(got) != raceNames {
		t.Errorf("%d names are listed, want %d", len(got), raceNames)
	}
}
