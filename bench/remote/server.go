package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/bench/tool"
)

// parseServer reads s3+http://HOST:PORT/BUCKET, and takes credentials from the
// environment. Nothing else than plain HTTP can be counted on the way.
func parseServer(place string, env func(string) string) (tool.Bucket, error) {
	u, err := url.Parse(place)
	if err != nil {
		return tool.Bucket{}, err
	}
	name := strings.Trim(u.Path, "/")
	b := tool.Bucket{Host: u.Host, Name: name, Region: env("AWS_REGION"), Access: env("AWS_ACCESS_KEY_ID"), Secret: env("AWS_SECRET_ACCESS_KEY")}
	if b.Region == "" {
		b.Region = "us-east-1"
	}
	switch {
	case u.Scheme != "s3+http" || u.Port() == "" || name == "" || strings.Contains(name, "/"):
		return tool.Bucket{}, fmt.Errorf("-server %s: want s3+http://HOST:PORT/BUCKET", place)
	case b.Access == "" || b.Secret == "":
		return tool.Bucket{}, errors.New("-server needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	return b, nil
}

// findGateway returns versitygw: what was given, else what is on the PATH, else
// what `make test-services` has built.
func findGateway(given string) (string, error) {
	if given != "" {
		return exec.LookPath(given)
	}
	if bin, err := exec.LookPath("versitygw"); err == nil {
		return bin, nil
	}
	dir := os.Getenv("CUTBANK_SERVICES")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(cache, "cutbank-services")
	}
	built, err := filepath.Glob(filepath.Join(dir, "versitygw-*", "versitygw"))
	if err != nil || len(built) == 0 {
		return "", errors.New("no server: `make test-services` builds versitygw; or see -gateway and -server")
	}
	return built[0], nil
}

// gateway is a versitygw of this program.
type gateway struct {
	bucket tool.Bucket
	stop   context.CancelFunc
	ended  chan struct{}
	err    error // how it ended; to be read after ended is closed
}

// startGateway serves a bucket below dir on a free port of the loopback. It must
// be closed.
func startGateway(ctx context.Context, bin, dir string) (*gateway, error) {
	g := &gateway{bucket: tool.Bucket{Name: "bench", Region: "us-east-1", Access: "bench", Secret: "bench-on-loopback"}}
	data, sidecar := filepath.Join(dir, "data"), filepath.Join(dir, "sidecar")
	for _, d := range []string{filepath.Join(data, g.bucket.Name), sidecar} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	args := []string{"posix"}
	if unix.Setxattr(data, "user.cutbank", []byte("x"), 0) != nil {
		args = append(args, "--sidecar", sidecar) // it keeps metadata in extended attributes, where there are any
	}
	args = append(args, data)
	var err error
	// Somebody else may take the port that was free a moment ago.
	for range 5 {
		if err = g.start(ctx, bin, args); err == nil {
			return g, nil
		}
		g.close()
	}
	return nil, err
}

func (g *gateway) start(ctx context.Context, bin string, args []string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	g.bucket.Host = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	// It outlives ctx: close ends it, after the mounts.
	life, stop := context.WithCancel(context.Background())
	g.stop, g.ended = stop, make(chan struct{})
	c := tool.Command{
		Args: append([]string{bin, "--port", g.bucket.Host, "--access", g.bucket.Access, "--secret", g.bucket.Secret, "--quiet", "--health", "/health"}, args...),
		Env:  []string{"PATH=" + os.Getenv("PATH")},
	}
	go func() {
		defer close(g.ended)
		_, g.err = c.Run(life, nil)
	}()
	for range 200 {
		select {
		case <-g.ended:
			return fmt.Errorf("the server ended: %w", g.err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
		if conn, err := net.Dial("tcp", g.bucket.Host); err == nil {
			return conn.Close()
		}
	}
	return errors.New("the server does not answer after 10 s")
}

// close ends it; a second call does nothing.
func (g *gateway) close() {
	if g.stop != nil {
		g.stop()
		<-g.ended
	}
}
