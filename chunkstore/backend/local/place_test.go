package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// TestPlace runs the contract and the race of processes in the folders that
// CUTBANK_TEST_FOLDERS names, separated by colons: mounts of one place by one or
// more clients, whatever the file system.
func TestPlace(t *testing.T) {
	places := filepath.SplitList(os.Getenv("CUTBANK_TEST_FOLDERS"))
	if len(places) == 0 {
		t.Skip("LEFT OUT: CUTBANK_TEST_FOLDERS names no folder to try out")
	}
	for _, place := range places {
		t.Run("Contract", func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backend.Backend {
				dir, err := os.MkdirTemp(place, "contract-")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir) })
				return openAt(t, dir)
			})
		})
	}
	for range 3 {
		dir, err := os.MkdirTemp(places[0], "race-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		n := 0
		f := openAt(t, dir)
		backendtest.RaceProcesses(t, f, func(racer string) *exec.Cmd {
			c := exec.Command(os.Args[0])
			place := places[n%len(places)]
			c.Env = append(os.Environ(), "CUTBANK_TEST_RACE="+strings.Replace(dir, places[0], place, 1), "CUTBANK_TEST_RACER="+racer)
			n++
			return c
		})
		w := openAt(t, dir)
		if err := w.Put(t.Context(), "snapshots/way", nil); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(filepath.Join(dir, "snapshots/way"))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("lag %v; alone %v; links refused %v; objects with contested names are directories: %v", w.Lag(), w.kind.alone, w.way.noLink.Load(), info.IsDir())
	}
}
