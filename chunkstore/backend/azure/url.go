package azure

import (
	"fmt"
	"io/fs"
	"net/url"
	"regexp"
	"strings"
)

// Schemes are those of the URLs that Open takes.
var Schemes = []string{"azure", "azure+http", "azure+https"}

// place is what a URL and the environment say.
type place struct {
	service           string // URL of the account's blobs, without a slash at its end
	account           string // empty if nobody has said
	container, prefix string // prefix without slashes at its ends
	url               string // for messages
}

var (
	anAccount  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,62}$`)
	aContainer = regexp.MustCompile(`^([a-z0-9](-?[a-z0-9])+|\$root)$`)
)

// parse reads a URL. s is what the environment says.
func parse(raw string, s settings) (place, error) {
	u, err := url.Parse(raw)
	if err != nil {
		// The error holds the URL, which may hold a secret.
		return place{}, fmt.Errorf("a URL that cannot be read: want azure://CONTAINER/PREFIX or azure+https://HOST/ACCOUNT/CONTAINER/PREFIX: %w", fs.ErrInvalid)
	}
	if u.User != nil {
		return place{}, fmt.Errorf("%s://%s%s: a URL is no place for credentials, others can see it: use AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY or others of \"cutbank init --help\": %w", u.Scheme, u.Host, u.Path, fs.ErrInvalid)
	}
	if u.RawQuery != "" || u.Fragment != "" || u.ForceQuery {
		return place{}, fmt.Errorf("%s://%s%s: a repository's URL ends with its path, without ? and #; a shared access signature goes into AZURE_STORAGE_SAS_TOKEN: %w", u.Scheme, u.Host, u.Path, fs.ErrInvalid)
	}
	rest := strings.Trim(u.Path, "/")
	l := place{account: s.account}
	switch u.Scheme {
	case "azure":
		l.container, l.prefix = u.Host, rest
		if l.service, err = s.where(); err != nil {
			return place{}, err
		}
	case "azure+http", "azure+https":
		account, below, _ := strings.Cut(rest, "/")
		l.container, l.prefix, _ = strings.Cut(below, "/")
		if u.Host == "" || !anAccount.MatchString(account) {
			return place{}, fmt.Errorf("%s: no host or account in it: want %s://HOST:PORT/ACCOUNT/CONTAINER/PREFIX: %w", raw, u.Scheme, fs.ErrInvalid)
		}
		if s.key != "" && s.account != "" && s.account != account {
			return place{}, fmt.Errorf("%s: the key in %s is of the account %s: %w", raw, s.from, s.account, fs.ErrInvalid)
		}
		l.account = account
		l.service = strings.TrimPrefix(u.Scheme, "azure+") + "://" + u.Host + "/" + account
	default:
		return place{}, fmt.Errorf("%s: no URL of Azure: %w", u.Redacted(), fs.ErrInvalid)
	}
	if l.container == "" {
		return place{}, fmt.Errorf("%s: no container in it: %w", raw, fs.ErrInvalid)
	}
	if len(l.container) > 63 || !aContainer.MatchString(l.container) {
		return place{}, fmt.Errorf("%s: %q can be no container: want lower-case letters, digits and single hyphens: %w", raw, l.container, fs.ErrInvalid)
	}
	if l.prefix != "" && (!fs.ValidPath(l.prefix) || len(l.prefix) > 700 || strings.HasSuffix(l.prefix, ".") || strings.Contains(l.prefix, "./")) {
		return place{}, fmt.Errorf("%s: the prefix %q is no clean path without dots at the ends of its parts: %w", raw, l.prefix, fs.ErrInvalid)
	}
	if s.key != "" && l.account == "" {
		return place{}, fmt.Errorf("%s: whose key AZURE_STORAGE_KEY is, AZURE_STORAGE_ACCOUNT must say: %w", raw, fs.ErrInvalid)
	}
	l.url = strings.TrimSuffix(u.Scheme+"://"+u.Host+"/"+rest, "/")
	return l, nil
}

// where finds where the blobs of an azure:// URL are.
func (s settings) where() (string, error) {
	if s.endpoint == "" {
		switch {
		case s.account == "":
			return "", fmt.Errorf("whose container is it? Set AZURE_STORAGE_ACCOUNT, or AZURE_STORAGE_ENDPOINT: %w", fs.ErrInvalid)
		case !anAccount.MatchString(s.account):
			return "", fmt.Errorf("AZURE_STORAGE_ACCOUNT: %q can be no account: want lower-case letters and digits: %w", s.account, fs.ErrInvalid)
		}
		return "https://" + s.account + ".blob.core.windows.net", nil
	}
	e, err := url.Parse(s.endpoint)
	if err != nil || e.Host == "" || e.Scheme != "http" && e.Scheme != "https" || e.User != nil || e.RawQuery != "" || e.ForceQuery || e.Fragment != "" {
		return "", fmt.Errorf("%s: want https://ACCOUNT.blob.HOST or http://HOST:PORT/ACCOUNT and nothing else: %w", s.endpointFrom, fs.ErrInvalid)
	}
	return strings.TrimRight(s.endpoint, "/"), nil
}
