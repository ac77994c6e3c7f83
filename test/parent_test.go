package test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cutbankfs/cutbank/repo"
)

// TestParentOfOthers: what another writer says of files that have not changed is
// believed only if it is trusted, also under a name that both may use.
func TestParentOfOthers(t *testing.T) {
	b, src := newMem(), t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	owner := initRepo(t, b, small(t))
	for _, trusted := range []bool{false, true} {
		_, cred := addWriter(t, owner, repo.NewWriter{Names: []string{"*"}, Trusted: trusted})
		theirs := snapshot(t, openNode(t, b, cred, ""), live(t, src), named("shared"))
		own := snapshot(t, owner, live(t, src), named("shared"))
		if leans := own.Parent != nil && *own.Parent == theirs.ID; leans != trusted {
			t.Errorf("trusted %v: the parent is %v", trusted, own.Parent)
		}
	}
}
