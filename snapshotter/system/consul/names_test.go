package consul

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestKeyPaths(t *testing.T) {
	long := strings.Repeat("x", 300)
	for _, c := range []struct{ key, path string }{
		{"a", "a%"}, {"a/b", "a/b"}, {"a/", "a/%"}, {"/a", "%/a"}, {"//", "%/%/%"}, {"", "%%"}, {".", "%2E"}, {"../x", "%2E%2E/x"},
		{"50%", "50%25"}, {"n\x00l", "n%00l"}, {"...", "..."}, {long, long[:253] + "%+/" + long[:47]},
		{"d%2E", "d%252E"}, {"-a/b c\n", "-a/b c\n"},
	} {
		sorted := []string{"a", "a/", "a/b", "/a", "//", ""}
		slices.Sort(sorted)
		if got := keyPath(c.key, hasBelow(sorted, c.key)); got != c.path {
			t.Errorf("%q: %q, want %q", c.key, got, c.path)
		}
		if got, err := pathKey(c.path); err != nil || got != c.key {
			t.Errorf("%q: %q, %v, want %q", c.path, got, err, c.key)
		}
	}
}

// TestKeyPathsAreApart: whatever keys there are, each has a path of its own that can be
// a file's, that leads back, and that is no directory of another's.
func TestKeyPathsAreApart(t *testing.T) {
	const seed = 1
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		keys := map[string]bool{}
		for range 1 + rnd.IntN(30) {
			var b strings.Builder
			for range rnd.IntN(6) {
				b.WriteString([]string{"/", "a", "%", "+", ".", "2", "E", "\x00", strings.Repeat("%", 100), strings.Repeat("y", 254)}[rnd.IntN(10)])
			}
			keys[b.String()] = true
		}
		checkPaths(t, keys)
	}
}

func checkPaths(t *testing.T, keys map[string]bool) {
	t.Helper()
	var sorted []string
	for k := range keys {
		sorted = append(sorted, k)
	}
	slices.Sort(sorted)
	files, dirs := map[string]string{}, map[string]bool{}
	for _, k := range sorted {
		p := keyPath(k, hasBelow(sorted, k))
		if other, ok := files[p]; ok {
			t.Fatalf("%q and %q are both %q", k, other, p)
		}
		files[p] = k
		if back, err := pathKey(p); err != nil || back != k {
			t.Fatalf("%q is %q, and that %q, %v", k, p, back, err)
		}
		for i, part := range strings.Split(p, "/") {
			if part == "" || part == "." || part == ".." || len(part) > 255 || strings.Contains(part, "\x00") {
				t.Fatalf("%q: %q has a part that is no name: %q", k, p, part)
			}
			if parts := strings.Split(p, "/"); i < len(parts)-1 {
				dirs[strings.Join(parts[:i+1], "/")] = true
			}
		}
	}
	for p, k := range files {
		if dirs[p] {
			t.Fatalf("%q is a file, for %q, and a directory", p, k)
		}
	}
}
