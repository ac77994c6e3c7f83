package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestJSONDocumented: every type of line that --json prints is in README.md.
func TestJSONDocumented(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile(`emit\("([a-z-]+)"`)
	found := map[string]bool{}
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range re.FindAllStringSubmatch(string(src), -1) {
			found[m[1]] = true
		}
	}
	for kind := range found {
		if !strings.Contains(string(readme), "| `"+kind+"` |") {
			t.Errorf("README.md does not document lines of type %q", kind)
		}
	}
	if len(found) < 20 {
		t.Errorf("found only %d types: the search is broken", len(found))
	}
}
