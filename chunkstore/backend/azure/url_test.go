package azure

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
)

// env makes a getenv of NAME=VALUE, separated by blanks.
func env(text string) func(string) string {
	return func(name string) string {
		for _, kv := range strings.Fields(text) {
			if v, ok := strings.CutPrefix(kv, name+"="); ok {
				return v
			}
		}
		return ""
	}
}

func TestParse(t *testing.T) {
	const cloud = "https://acc.blob.core.windows.net"
	for _, tt := range []struct {
		url, env string
		want     place
		from     string
	}{
		{"azure://con", "AZURE_STORAGE_ACCOUNT=acc AZURE_STORAGE_KEY=aGk=", place{cloud, "acc", "con", "", "azure://con"}, "AZURE_STORAGE_KEY"},
		{"azure://con/p/q/", "AZURE_STORAGE_ACCOUNT=acc", place{cloud, "acc", "con", "p/q", "azure://con/p/q"}, ""},
		{"azure://$root/p", "AZURE_STORAGE_ACCOUNT=acc", place{cloud, "acc", "$root", "p", "azure://$root/p"}, ""},
		{"azure://con/p q", "AZURE_STORAGE_ENDPOINT=http://h:1/acc/ AZURE_STORAGE_SAS_TOKEN=?sig=x", place{"http://h:1/acc", "", "con", "p q", "azure://con/p q"}, "AZURE_STORAGE_SAS_TOKEN"},
		{"azure://con", "AZURE_STORAGE_CONNECTION_STRING=AccountName=acc;AccountKey=aGk=;", place{cloud, "acc", "con", "", "azure://con"}, "AZURE_STORAGE_CONNECTION_STRING"},
		{"azure://con", "AZURE_STORAGE_CONNECTION_STRING=DefaultEndpointsProtocol=http;AccountName=acc;AccountKey=aGk=;EndpointSuffix=h", place{"http://acc.blob.h", "acc", "con", "", "azure://con"}, "AZURE_STORAGE_CONNECTION_STRING"},
		{"azure://con", "AZURE_STORAGE_CONNECTION_STRING=BlobEndpoint=https://h/;SharedAccessSignature=sv=1&sig=x", place{"https://h", "", "con", "", "azure://con"}, "AZURE_STORAGE_CONNECTION_STRING"},
		{"azure://con", "AZURE_STORAGE_ENDPOINT=https://e AZURE_STORAGE_CONNECTION_STRING=BlobEndpoint=https://h/;SharedAccessSignature=sig=x", place{"https://e", "", "con", "", "azure://con"}, "AZURE_STORAGE_CONNECTION_STRING"},
		{"azure+http://h:1/acc/con/p", "AZURE_STORAGE_KEY=aGk=", place{"http://h:1/acc", "acc", "con", "p", "azure+http://h:1/acc/con/p"}, "AZURE_STORAGE_KEY"},
		{"azure+https://h/acc/con", "AZURE_STORAGE_ACCOUNT=other", place{"https://h/acc", "acc", "con", "", "azure+https://h/acc/con"}, ""},
	} {
		s, err := environment(env(tt.env))
		if err != nil {
			t.Errorf("%s: %v", tt.env, err)
			continue
		}
		if got, err := parse(tt.url, s); err != nil || got != tt.want || s.from != tt.from {
			t.Errorf("%s with %s: got %+v, %q, %v, want %+v, %q", tt.url, tt.env, got, s.from, err, tt.want, tt.from)
		}
	}
	for _, tt := range []struct{ url, env string }{
		{"azure://con", ""},
		{"azure://con", "AZURE_STORAGE_KEY=aGk= AZURE_STORAGE_ENDPOINT=https://h"},
		{"azure://con", "AZURE_STORAGE_ACCOUNT=evil/hunter2?"},
		{"azure+http://h/acc/con", "AZURE_STORAGE_ACCOUNT=other AZURE_STORAGE_KEY=aGk="},
		{"azure://con", "AZURE_STORAGE_ENDPOINT=http://k:hunter2@h"},
		{"azure://con", "AZURE_STORAGE_ENDPOINT=http://h?sig=hunter2"},
		{"azure://con", "AZURE_STORAGE_ENDPOINT=h"},
		{"", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure:///p", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://Con", "AZURE_STORAGE_ACCOUNT=acc"},
		{"azure://con:1/p", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://con--x/p", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://k:hunter2@con", "AZURE_STORAGE_ACCOUNT=acc"},
		{"azure://con?sig=hunter2", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://con/#hunter2", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://k:hunter2@con\x7f/", "AZURE_STORAGE_ACCOUNT=acc"},
		{"azure://con/../p", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://con/p//q", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://con/p./q", "AZURE_STORAGE_ACCOUNT=acc"}, {"azure://con/p.", "AZURE_STORAGE_ACCOUNT=acc"},
		{"azure+http://h", ""}, {"azure+http:///acc/con", ""}, {"azure+http://h/acc", ""}, {"azure+ftp://h/acc/con", ""}, {"s3://con", "AZURE_STORAGE_ACCOUNT=acc"},
	} {
		s, err := environment(env(tt.env))
		if err != nil {
			t.Errorf("%s: %v", tt.env, err)
			continue
		}
		if _, err := parse(tt.url, s); !errors.Is(err, fs.ErrInvalid) || strings.Contains(tt.url+tt.env, "hunter2") && strings.Contains(err.Error(), "hunter2") && !strings.Contains(err.Error(), "can be no account") {
			t.Errorf("%q with %s: got %v", tt.url, tt.env, err)
		}
	}
}

// What is wrong with the variables is said without what is in them.
func TestEnvironment(t *testing.T) {
	for _, bad := range []string{
		"AZURE_STORAGE_KEY=hunter2!", "AZURE_STORAGE_SAS_TOKEN=hunter2", "AZURE_STORAGE_SAS_TOKEN=sig=%zzhunter2", "AZURE_STORAGE_CONNECTION_STRING=hunter2",
		"AZURE_STORAGE_CONNECTION_STRING=AccountName=acc;AccountKey=hunter2!", "AZURE_STORAGE_CONNECTION_STRING=AccountName=acc;Key=hunter2", "AZURE_STORAGE_CONNECTION_STRING=UseDevelopmentStorage=true",
		"AZURE_STORAGE_ACCOUNT=other AZURE_STORAGE_CONNECTION_STRING=AccountName=acc;AccountKey=aGk=",
	} {
		if _, err := environment(env(bad)); !errors.Is(err, fs.ErrInvalid) || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "AZURE_STORAGE_") {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}

// An identity is not shown over plain HTTP, and half of one is said at once.
func TestIdentity(t *testing.T) {
	clean(t)
	if _, err := Open("azure+http://h/acc/con", Options{}); !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), "https") {
		t.Errorf("a token over http: %v", err)
	}
	clean(t, "AZURE_CLIENT_SECRET", "hunter2", "AZURE_CLIENT_ID", "id")
	if _, err := Open("azure+https://h/acc/con", Options{}); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "AZURE_TENANT_ID") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("half a principal: %v", err)
	}
	clean(t, "AZURE_CLIENT_CERTIFICATE_PATH", "/none", "AZURE_CLIENT_ID", "id", "AZURE_TENANT_ID", "tenant")
	if _, err := Open("azure+https://h/acc/con", Options{}); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "/none") {
		t.Errorf("no certificate: %v", err)
	}
}
