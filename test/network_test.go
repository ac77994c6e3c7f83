package test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// badLine loses one in every so many requests: before they are seen, or their
// answers; it breaks answers off and lets the server be too busy.
func badLine(t *testing.T, s *backendtest.S3, oneIn int) *httptest.Server {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, 0))
	var faulty http.HandlerFunc = func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		fault := -1
		if r.IntN(oneIn) == 0 {
			fault = r.IntN(5)
		}
		mu.Unlock()
		switch fault {
		case 0: // the request is lost
			panic(http.ErrAbortHandler)
		case 1: // the answer is lost
			s.ServeHTTP(httptest.NewRecorder(), req)
			panic(http.ErrAbortHandler)
		case 2: // done, and a proxy in between gives up
			s.ServeHTTP(httptest.NewRecorder(), req)
			w.WriteHeader(http.StatusBadGateway)
		case 3:
			backendtest.S3Error(w, http.StatusServiceUnavailable, "SlowDown")
		case 4: // the answer breaks off
			rec := httptest.NewRecorder()
			s.ServeHTTP(rec, req)
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()+1))
			w.WriteHeader(rec.Code)
			_, _ = w.Write(rec.Body.Bytes())
			panic(http.ErrAbortHandler)
		default:
			s.ServeHTTP(w, req)
		}
	}
	srv := httptest.NewServer(faulty)
	t.Cleanup(srv.Close)
	return srv
}

// TestBadLine: over a line that fails in every way, processes beside each other
// snapshot and prune. What they said was done is there.
func TestBadLine(t *testing.T) {
	const writers, rounds = 3, 3
	c := newCLI(t)
	srv := badLine(t, &backendtest.S3{Mem: backend.NewMem(), Bucket: "bucket"}, 10)
	c.env = append(c.env, "AWS_ACCESS_KEY_ID=id", "AWS_SECRET_ACCESS_KEY=hunter2", "CUTBANK_REPO=s3+"+srv.URL+"/bucket/r")
	c.again("init", "--chunk-size", "4KiB", "--frame-size", "16KiB", "--no-password")
	c.env = append(c.env, "CUTBANK_PASSWORD=")
	var group sync.WaitGroup
	dirs := make([]string, writers)
	for i := range writers {
		dirs[i] = t.TempDir()
		group.Go(func() {
			for n := range rounds {
				p := make([]byte, 200<<10)
				rand.NewChaCha8([32]byte{byte(i), byte(n)}).Read(p)
				if err := os.WriteFile(filepath.Join(dirs[i], fmt.Sprint(n)), p, 0o600); err != nil {
					t.Error(err)
					return
				}
				c.again("snapshot", "--name", fmt.Sprintf("w%d", i), dirs[i], "--quiet")
			}
		})
	}
	group.Go(func() {
		for range rounds {
			c.again("prune", "--quiet")
		}
	})
	group.Wait()
	if t.Failed() {
		return
	}
	for i, dir := range dirs {
		c.again("diff", fmt.Sprintf("w%d/latest", i), dir)
	}
	c.again("verify", "--read-data")
}

// again runs a command until it succeeds, and says why not; ten times at most.
func (c *cli) again(args ...string) {
	c.t.Helper()
	for n := 1; ; n++ {
		_, stderr, code := c.try(args...)
		if code == 0 {
			return
		}
		c.t.Logf("cutbank %s: %d: %s", args[0], code, strings.TrimSpace(stderr))
		if n == 10 || code == 3 || stderr == "" {
			c.t.Errorf("cutbank %q does not succeed: exit code %d\n%s", args, code, stderr)
			return
		}
	}
}
