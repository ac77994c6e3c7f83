package s3

import (
	"crypto/rand"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

// The contract without a real server.
func TestVaultFake(t *testing.T) {
	backendtest.RunVault(t, func(t *testing.T) backend.Vault { return fake(t, &backendtest.S3{Archive: &backendtest.Archive{}}) })
}

// Through Retry, beside a server of whose answers every fifth is lost.
func TestVaultRetry(t *testing.T) {
	backendtest.RunVault(t, func(t *testing.T) backend.Vault {
		var n atomic.Int64
		s := &backendtest.S3{Archive: &backendtest.Archive{Terse: true}, Fault: func(w http.ResponseWriter, r *http.Request) bool {
			if n.Add(1)%5 != 0 {
				return false
			}
			backendtest.S3Error(w, http.StatusServiceUnavailable, "SlowDown")
			return true
		}}
		v, ok := backend.Retry(fake(t, s), func(n int, _ error) (time.Duration, bool) { return 0, n < 10 }, backend.PutAgain).(backend.Vault)
		if !ok {
			t.Fatal("what is behind Retry is no Vault any more")
		}
		return v
	})
}

// The whole contract of a Backend, in a bucket that keeps versions.
func TestArchiveFake(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		b := fake(t, &backendtest.S3{Archive: &backendtest.Archive{}})
		return backend.Locked(b, func(string) time.Time { return time.Time{} })
	})
}

// TestVault runs the contract in the bucket with Object Lock that
// CUTBANK_TEST_S3_LOCK names.
func TestVault(t *testing.T) {
	url := lockService(t)
	backendtest.RunVault(t, func(t *testing.T) backend.Vault {
		b, err := Open(url+"/"+strings.ToLower(rand.Text()), Options{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

// lockService returns the URL of a bucket with Object Lock, as service does. It
// makes the bucket.
func lockService(t *testing.T) string {
	t.Helper()
	url := os.Getenv("CUTBANK_TEST_S3_LOCK")
	if url == "" {
		if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "s3") {
			t.Fatal("CUTBANK_TEST_S3_LOCK names no bucket, and CUTBANK_REQUIRE asks for one")
		}
		t.Skip("LEFT OUT: CUTBANK_TEST_S3_LOCK names no bucket; `make test-services` starts a server and runs this")
	}
	b, err := Open(url, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if there, err := b.c.BucketExists(t.Context(), b.bucket); err != nil {
		t.Fatal(err)
	} else if !there {
		if err := b.c.MakeBucket(t.Context(), b.bucket, minio.MakeBucketOptions{ObjectLocking: true}); err != nil {
			t.Fatal(err)
		}
	}
	return url
}

func TestLockable(t *testing.T) {
	b := fake(t, &backendtest.S3{Archive: &backendtest.Archive{Unlockable: true}})
	if err := b.Lockable(t.Context()); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "object-lock-enabled-for-bucket") {
		t.Errorf("a bucket without Object Lock: %v", err)
	}
	if err := b.PutLocked(t.Context(), "a", nil, time.Now().Add(time.Hour)); err == nil {
		t.Error("it locks all the same")
	}
	for _, kind := range []string{"default", "unversioned", "501"} {
		b := fake(t, &backendtest.S3{Fault: func(w http.ResponseWriter, r *http.Request) bool {
			q := r.URL.Query()
			switch {
			case kind == "501":
				backendtest.S3Error(w, http.StatusNotImplemented, "NotImplemented")
			case q.Has("object-lock") && kind == "default":
				w.Write([]byte("<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>"))
			case q.Has("object-lock"):
				w.Write([]byte("<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"))
			case q.Has("versioning"):
				w.Write([]byte("<VersioningConfiguration></VersioningConfiguration>"))
			default:
				return false
			}
			return true
		}})
		if err := b.Lockable(t.Context()); !errors.Is(err, errors.ErrUnsupported) || backend.Transient(err) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
