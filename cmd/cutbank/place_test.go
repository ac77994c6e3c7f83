package main

import (
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// TestPlaceLate: whatever is wrapped around a place in the network, it says that
// calls may come late; a folder does not.
func TestPlaceLate(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	for place, want := range map[string]time.Duration{"s3+http://127.0.0.1:1/bucket/prefix": time.Hour, t.TempDir(): 0} {
		b, err := (&app{}).newBackendAt(place)
		if err != nil {
			t.Fatal(err)
		}
		if got := backend.Late(b); got < want || want == 0 && got != 0 {
			t.Errorf("%s: %s, want %s", place, got, want)
		}
	}
}
