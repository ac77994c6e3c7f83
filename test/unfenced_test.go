package test

import (
	"crypto/rand"
	"os"
	"strings"
	"testing"
	"time"
)

// TestServicesUnfenced: in a store where objects can be created twice a writer that
// died is never declared dead, however silent it is. Prune waits for it until
// somebody says that it is gone.
func TestServicesUnfenced(t *testing.T) {
	place := os.Getenv("CUTBANK_TEST_S3_UNFENCED")
	if place == "" {
		missing(t, "unfenced", "CUTBANK_TEST_S3_UNFENCED names no bucket; `make test-services` starts a server and runs this")
	}
	// The server's only keys, and public.
	t.Setenv("AWS_ACCESS_KEY_ID", "S3RVER")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "S3RVER")
	c := newCLI(t)
	c.repo = place + "/" + strings.ToLower(rand.Text())
	c.env = append(c.env, "CUTBANK_REPO="+c.repo, "CUTBANK_PASSWORD=")
	c.run("init", "--no-fencing", "--no-password", "--quiet")
	kept, src := t.TempDir(), t.TempDir()
	bulk(t, kept, 1, 1)
	bulk(t, src, 2, 8)
	c.run("snapshot", "--name", "kept", kept)
	c.run("snapshot", "--name", "gone", src)
	c.run("forget", "gone/latest")
	bulk(t, src, 3, 8)
	p := c.start("snapshot", "--name", "dead", "--limit-upload", "1MiB", src)
	id := ""
	for n := 0; id == ""; n++ {
		if out := c.run("unlock", "--json"); strings.Contains(out, `"at-work"`) {
			id = object(t, "at-work", out)["id"].(string)
		}
		if time.Sleep(50 * time.Millisecond); n == 100 {
			p.Process.Kill()
			p.end()
			t.Fatal("the writer does not announce itself")
		}
	}
	p.Process.Kill()
	if code := p.end(); code != -1 {
		t.Fatalf("the writer has ended before: exit code %d\n%s", code, p.err.String())
	}
	time.Sleep(1100 * time.Millisecond)
	for range 2 {
		o := c.json("prune", "prune", "--grace", "1s")
		if dead, _ := o["dead"].([]any); len(dead) > 0 {
			t.Errorf("declared dead: %v", o)
		}
		if left := o["left"].(map[string]any); left["packs"].(float64) == 0 {
			t.Errorf("nothing is left to wait for the writer: %v", o)
		}
	}
	c.run("unlock", id, "--yes")
	if o := c.json("prune", "prune"); o["left"].(map[string]any)["packs"].(float64) > 0 {
		t.Errorf("something is left: %v", o)
	}
	c.verified("at last")
	c.restored("at last", "kept/latest", kept)
}
