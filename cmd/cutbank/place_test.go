package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
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

// TestPlaceMistakes: the exit code tells a mistake of the command line or of the
// credentials from a repository that is not there, where scripts would make one.
func TestPlaceMistakes(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "nosuch")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AZURE_STORAGE_KEY", "a2V5")
	const bucket = "s3+http://127.0.0.1:1/bucket"
	for _, tt := range []struct {
		place, ca, profile, bundle string
		want                       int
	}{
		{"", "", "", "", 2},
		{"s3://id:secret@bucket", "", "", "", 2},
		{"s3:bucket/prefix", "", "", "", 2},
		{"b2:bucket", "", "", "", 2},
		{"me@host:/backup", "", "", "", 2},
		{"./host:/backup", "", "", "", 4},
		{"dir/host:", "", "", "", 4},
		{bucket, "nosuch.pem", "", "", 2},
		{bucket, "", "", "", 1},
		{bucket, "", "nosuch", "", 1},
		{bucket, "", "", "nosuch.pem", 2},
		{bucket, "place_test.go", "", "nosuch.pem", 2},
		{"azure+http://127.0.0.1:1/account/container", "", "", "nosuch.pem", 0}, // which is AWS's
	} {
		t.Setenv("AWS_PROFILE", tt.profile)
		t.Setenv("AWS_CA_BUNDLE", tt.bundle)
		if _, err := (&app{caCert: tt.ca}).backendAt(tt.place); exitCode(err) != tt.want {
			t.Errorf("%+v: exit code %d: %v", tt, exitCode(err), err)
		}
	}
}

// TestBackoffTells: a place that does not answer is told of with the reason, once for
// all requests that fail together.
func TestBackoffTells(t *testing.T) {
	var stderr bytes.Buffer
	backoff := (&app{stderr: &stderr}).backoff()
	why := errors.New("dial: refused")
	for n := 1; n <= 2; n++ {
		backoff(n, why)
	}
	if stderr.Len() > 0 {
		t.Errorf("told of what passes: %s", &stderr)
	}
	for n := 3; n <= 10; n++ {
		backoff(n, why)
		backoff(n, why)
	}
	if got := stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "dial: refused; trying on") {
		t.Errorf("got %q, want one line with the reason", got)
	}
	stderr.Reset()
	(&app{stderr: &stderr}).backoff()(1, fmt.Errorf("read: %w", os.ErrDeadlineExceeded))
	if !strings.Contains(stderr.String(), "timeout") {
		t.Errorf("a server that hangs: got %q, want a warning at once", &stderr)
	}
}
