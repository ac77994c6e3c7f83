package test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestReadmeTour: the README's table of rooms is the list of packages.
func TestReadmeTour(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var rooms []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)` \\|").FindAllStringSubmatch(string(readme), -1) {
		rooms = append(rooms, m[1])
	}
	out, err := exec.Command("go", "list", "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var packages []string
	for p := range strings.FieldsSeq(string(out)) {
		packages = append(packages, strings.TrimPrefix(p, "github.com/cutbankfs/cutbank/"))
	}
	slices.Sort(rooms)
	slices.Sort(packages)
	if !slices.Equal(rooms, packages) {
		t.Errorf("README.md tells of %v\nthere are     %v", rooms, packages)
	}
}
