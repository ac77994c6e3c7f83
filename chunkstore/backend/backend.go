// Package backend says what a place that keeps a repository's objects must do.
//
// It never looks into the objects, and it imports nothing of this module.
// Implementations that need a third-party module live below it, one each.
package backend

import (
	"context"
	"io/fs"
	"iter"
	"strings"
	"time"
)

// Info describes one stored object.
type Info struct {
	Name    string    // slash-separated, relative to the repository
	Size    int64     // bytes
	ModTime time.Time // by the backend's own clock
}

// Backend keeps named, immutable blobs. All methods are safe for concurrent
// use, by goroutines and by processes.
type Backend interface {
	// Put stores p under name: atomic, and durable when it returns. It keeps
	// no reference to p. An existing name is an error that wraps fs.ErrExist,
	// and what is stored there stays as it was; if that is p, byte for byte, it
	// may be success, too. After any other error the object may or may not be
	// there.
	Put(ctx context.Context, name string, p []byte) error

	// Get returns n bytes from offset off on; n < 0 reads to the end. The
	// slice is the caller's. A missing name is an error that wraps
	// fs.ErrNotExist; fewer than n bytes wrap io.ErrUnexpectedEOF. More than
	// MaxGet bytes are an error, too.
	Get(ctx context.Context, name string, off, n int64) ([]byte, error)

	// List yields every object whose name starts with prefix, in no order. An
	// object put or removed meanwhile may or may not be seen. An error ends
	// the sequence.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Remove deletes an object. A missing name is no error.
	Remove(ctx context.Context, name string) error

	// Lag is how long a change may stay unseen by List: zero for a folder of
	// this machine, more for one from the network.
	Lag() time.Duration

	// String names the place for messages, without secrets.
	String() string
}

// ValidName reports whether name may name an object: relative, clean,
// slash-separated, of the characters a-z 0-9 . _ - only.
func ValidName(name string) bool {
	if !fs.ValidPath(name) || name == "." || len(name) > 200 {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' || r == '/')
	}) < 0
}

// ValidPrefix reports whether some object's name can start with prefix.
func ValidPrefix(prefix string) bool {
	dir, base := prefix, ""
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		dir, base = prefix[:i], prefix[i+1:]
		if !ValidName(dir) {
			return false
		}
	} else {
		base = dir
	}
	return base == "" || base == "." || base == ".." || ValidName(base)
}
