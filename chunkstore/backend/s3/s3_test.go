package s3

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// service returns the URL of a bucket for tests. Where there is none the test is
// skipped, or fails if CUTBANK_REQUIRE names s3.
func service(t *testing.T) string {
	t.Helper()
	url := os.Getenv("CUTBANK_TEST_S3")
	if url == "" {
		if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "s3") {
			t.Fatal("CUTBANK_TEST_S3 names no bucket, and CUTBANK_REQUIRE asks for one")
		}
		t.Skip("LEFT OUT: CUTBANK_TEST_S3 names no bucket; `make test-services` starts a server and runs this")
	}
	return url
}

// open opens a fresh prefix.
func open(t *testing.T) *Bucket {
	t.Helper()
	b, err := Open(service(t)+"/"+strings.ToLower(rand.Text()), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for info, err := range b.List(context.Background(), "") {
			if err == nil {
				err = b.Remove(context.Background(), info.Name)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	return b
}

func TestBucket(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend { return open(t) })
}

func TestBucketMissing(t *testing.T) {
	there := *open(t)
	b := &there
	b.bucket = "there-is-no-such-bucket"
	if _, err := b.Get(t.Context(), "a", 0, -1); !errors.Is(err, errNoBucket) || backend.Transient(err) {
		t.Errorf("get: %v", err)
	}
	if err := b.Put(t.Context(), "a", nil); !errors.Is(err, errNoBucket) {
		t.Errorf("put: %v", err)
	}
	if err := b.Remove(t.Context(), "a"); !errors.Is(err, errNoBucket) {
		t.Errorf("remove: %v", err)
	}
	for _, err := range b.List(t.Context(), "") {
		if !errors.Is(err, errNoBucket) {
			t.Errorf("list: %v", err)
		}
	}
}

func TestBucketWrongSecret(t *testing.T) {
	url := service(t)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "somethingelse")
	b, err := Open(url, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "a", nil); !errors.Is(err, fs.ErrPermission) || strings.Contains(err.Error(), "somethingelse") {
		t.Errorf("put: %v", err)
	}
}

func TestParse(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config")
	text := "[default]\nregion = eu-north-1\ns3 =\n  region = no\n[profile lab]\nendpoint_url=http://lab:9000\nregion=lab-1\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		url  string
		env  string // NAME=VALUE, by blanks
		want place
	}{
		{"s3://b", "", place{amazon, true, "b", "", "", "s3://b"}},
		{"s3://b/", "AWS_REGION=eu-west-1 AWS_DEFAULT_REGION=no", place{amazon, true, "b", "", "eu-west-1", "s3://b"}},
		{"s3://b/p/q/", "AWS_DEFAULT_REGION=eu-west-1", place{amazon, true, "b", "p/q", "eu-west-1", "s3://b/p/q"}},
		{"s3://b/p", "AWS_ENDPOINT_URL=http://h:9000", place{"h:9000", false, "b", "p", "us-east-1", "s3://b/p"}},
		{"s3://b/p", "AWS_ENDPOINT_URL=http://no:9000 AWS_ENDPOINT_URL_S3=https://h/", place{"h", true, "b", "p", "us-east-1", "s3://b/p"}},
		{"s3://b/p", "AWS_CONFIG_FILE=" + config, place{amazon, true, "b", "p", "eu-north-1", "s3://b/p"}},
		{"s3://b/p", "AWS_PROFILE=lab AWS_CONFIG_FILE=" + config, place{"lab:9000", false, "b", "p", "lab-1", "s3://b/p"}},
		{"s3://b/p", "AWS_PROFILE=none AWS_CONFIG_FILE=" + config, place{amazon, true, "b", "p", "", "s3://b/p"}},
		{"s3+http://h:7070/b", "", place{"h:7070", false, "b", "", "us-east-1", "s3+http://h:7070/b"}},
		{"s3+https://h/b/p q", "AWS_REGION=x", place{"h", true, "b", "p q", "x", "s3+https://h/b/p q"}},
	} {
		getenv := func(name string) string {
			for _, kv := range strings.Fields(tt.env) {
				if v, ok := strings.CutPrefix(kv, name+"="); ok {
					return v
				}
			}
			return ""
		}
		if got, err := parse(tt.url, getenv); err != nil || got != tt.want {
			t.Errorf("%s with %s: got %+v, %v, want %+v", tt.url, tt.env, got, err, tt.want)
		}
	}
	none := func(string) string { return "" }
	for _, bad := range []string{"", "s3://", "s3:///p", "s3://key:hunter2@b/p", "s3+http://key:hunter2@h/b", "s3+http://h", "s3+http://h/", "s3+http:///b", "s3://b/../p", "s3://b/p//q",
		"s3://b/p?hunter2", "s3://b/p#hunter2", "https://h/b", "s3://key:hunter2@b\x7f/", "s3+ftp://h/b"} {
		if _, err := parse(bad, none); !errors.Is(err, fs.ErrInvalid) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	bad := func(name string) string { return map[string]string{"AWS_ENDPOINT_URL": "http://k:hunter2@h"}[name] }
	if _, err := parse("s3://b", bad); !errors.Is(err, fs.ErrInvalid) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("endpoint with a secret: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "credentials")
	if err := os.WriteFile(file, []byte("[default]\naws_access_key_id = A\naws_secret_access_key = B\n[lab]\naws_access_key_id = L\naws_secret_access_key = M\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env  map[string]string
		want string // access key; empty: an error
	}{
		{map[string]string{"AWS_ACCESS_KEY_ID": "E", "AWS_SECRET_ACCESS_KEY": "F"}, "E"},
		{map[string]string{"AWS_ACCESS_KEY_ID": "E"}, ""},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file}, "A"},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "lab"}, "L"},
		{map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "none"}, ""},
		{nil, ""},
	} {
		for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY", "AWS_SECRET_KEY",
			"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
			t.Setenv(name, tt.env[name])
		}
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", cmp.Or(tt.env["AWS_SHARED_CREDENTIALS_FILE"], filepath.Join(dir, "none")))
		t.Setenv("AWS_CONFIG_FILE", filepath.Join(dir, "none"))
		t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
		creds, err := findCredentials(os.Getenv, nil)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%v: no error", tt.env)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", tt.env, err)
			continue
		}
		if v, err := creds.GetWithContext(nil); err != nil || v.AccessKeyID != tt.want {
			t.Errorf("%v: got %q, %v, want %q", tt.env, v.AccessKeyID, err, tt.want)
		}
	}
}
