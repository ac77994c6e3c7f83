package s3

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// Schemes are those of the URLs that Open takes.
var Schemes = []string{"s3", "s3+http", "s3+https"}

// amazon is where buckets are unless something else is said.
const amazon = "s3.amazonaws.com"

// place is what a URL and the environment say.
type place struct {
	host           string // with a port, if one is given
	secure         bool
	bucket, prefix string // prefix without slashes at its ends
	region         string // empty: the bucket is asked
	url            string // for messages
}

// parse reads a URL. getenv is os.Getenv but in tests.
func parse(raw string, getenv func(string) string) (place, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// The error holds the URL, which may hold a secret.
		return place{}, fmt.Errorf("a URL that cannot be read: want s3://BUCKET/PREFIX or s3+https://HOST/BUCKET/PREFIX: %w", fs.ErrInvalid)
	}
	if u.User != nil {
		return place{}, fmt.Errorf("%s://%s%s: a URL is no place for credentials, others can see it: use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE: %w", u.Scheme, u.Host, u.Path, fs.ErrInvalid)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return place{}, fmt.Errorf("%s://%s%s: a repository's URL ends with its path, without ? and #: %w", u.Scheme, u.Host, u.Path, fs.ErrInvalid)
	}
	var l place
	rest := strings.Trim(u.Path, "/")
	switch u.Scheme {
	case "s3":
		l.bucket, l.prefix = u.Host, rest
		if err := l.endpoint(getenv); err != nil {
			return place{}, err
		}
	case "s3+http", "s3+https":
		l.host, l.secure = u.Host, u.Scheme == "s3+https"
		l.bucket, l.prefix, _ = strings.Cut(rest, "/")
		if l.host == "" {
			return place{}, fmt.Errorf("%s: no host in it: want %s://HOST:PORT/BUCKET/PREFIX: %w", raw, u.Scheme, fs.ErrInvalid)
		}
	default:
		return place{}, fmt.Errorf("%s: no URL of S3: %w", u.Redacted(), fs.ErrInvalid)
	}
	if l.bucket == "" {
		return place{}, fmt.Errorf("%s: no bucket in it: %w", raw, fs.ErrInvalid)
	}
	if l.prefix != "" && (!fs.ValidPath(l.prefix) || len(l.prefix) > 700) {
		return place{}, fmt.Errorf("%s: the prefix %q is no clean path: %w", raw, l.prefix, fs.ErrInvalid)
	}
	l.url = strings.TrimSuffix(u.Scheme+"://"+u.Host+"/"+rest, "/")
	return l, l.findRegion(getenv)
}

// endpoint finds the host of an s3:// URL.
func (l *place) endpoint(getenv func(string) string) error {
	name, said := "AWS_ENDPOINT_URL_S3", getenv("AWS_ENDPOINT_URL_S3")
	if said == "" {
		name, said = "AWS_ENDPOINT_URL", getenv("AWS_ENDPOINT_URL")
	}
	if said == "" {
		name, said = "endpoint_url of the profile", profileValue(getenv, "endpoint_url")
	}
	if said == "" {
		l.host, l.secure = amazon, true
		return nil
	}
	e, err := url.Parse(said)
	if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || e.User != nil || strings.Trim(e.Path, "/") != "" || e.RawQuery != "" {
		return fmt.Errorf("%s: want http://HOST:PORT or https://HOST:PORT and nothing else: %w", name, fs.ErrInvalid)
	}
	l.host, l.secure = e.Host, e.Scheme == "https"
	return nil
}

// findRegion finds the region; other stores than Amazon's mostly have none and
// take Amazon's first for it.
func (l *place) findRegion(getenv func(string) string) error {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if l.region = getenv(name); l.region != "" {
			return nil
		}
	}
	if l.region = profileValue(getenv, "region"); l.region == "" && l.host != amazon {
		l.region = "us-east-1"
	}
	return nil
}

// profileValue reads one value of the profile from the shared config file; empty
// if there is none.
func profileValue(getenv func(string) string, key string) string {
	file := getenv("AWS_CONFIG_FILE")
	if file == "" {
		home := getenv("HOME")
		if home == "" {
			return ""
		}
		file = filepath.Join(home, ".aws", "config")
	}
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	profile := getenv("AWS_PROFILE")
	if profile == "" {
		profile = "default"
	}
	in := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if section, ok := strings.CutPrefix(strings.TrimSpace(line), "["); ok {
			section, _, _ = strings.Cut(section, "]")
			section = strings.TrimSpace(section)
			name, named := strings.CutPrefix(section, "profile ")
			in = named && strings.TrimSpace(name) == profile || profile == "default" && section == "default"
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if ok && in && strings.TrimRight(k, " \t") == key { // what is indented belongs to the line above
			return strings.TrimSpace(v)
		}
	}
	return ""
}

var errNoBucket = errors.New("no such bucket: make it first, with the tools of the store")
