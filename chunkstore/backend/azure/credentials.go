package azure

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

// settings are what the environment says of the account, and how to get in.
type settings struct {
	account  string
	endpoint string // of the account's blobs; empty: the public cloud's
	key      string // base64
	sas      string // without ? at its start
	from     string // the variables that the credentials come from

	endpointFrom string
}

// environment reads the variables. getenv is os.Getenv but in tests.
func environment(getenv func(string) string) (settings, error) {
	s := settings{account: getenv("AZURE_STORAGE_ACCOUNT"), endpoint: getenv("AZURE_STORAGE_ENDPOINT"), endpointFrom: "AZURE_STORAGE_ENDPOINT"}
	switch {
	case getenv("AZURE_STORAGE_KEY") != "":
		s.key, s.from = getenv("AZURE_STORAGE_KEY"), "AZURE_STORAGE_KEY"
	case getenv("AZURE_STORAGE_SAS_TOKEN") != "":
		s.sas, s.from = getenv("AZURE_STORAGE_SAS_TOKEN"), "AZURE_STORAGE_SAS_TOKEN"
	case getenv("AZURE_STORAGE_CONNECTION_STRING") != "":
		if err := s.connection(getenv("AZURE_STORAGE_CONNECTION_STRING")); err != nil {
			return settings{}, fmt.Errorf("AZURE_STORAGE_CONNECTION_STRING: %w: %w", err, fs.ErrInvalid)
		}
	}
	s.sas = strings.TrimPrefix(s.sas, "?")
	if _, err := base64.StdEncoding.DecodeString(s.key); err != nil {
		return settings{}, fmt.Errorf("%s: the key is no base64: %w", s.from, fs.ErrInvalid) // err would tell of it
	}
	if q, err := url.ParseQuery(s.sas); err != nil || s.sas != "" && q.Get("sig") == "" {
		return settings{}, fmt.Errorf("%s: no shared access signature: want it as Azure gives it out, sv=...&sig=...: %w", s.from, fs.ErrInvalid)
	}
	return s, nil
}

// connection reads a connection string. Its errors quote nothing of it.
func (s *settings) connection(text string) error {
	s.from = "AZURE_STORAGE_CONNECTION_STRING"
	said := map[string]string{"DefaultEndpointsProtocol": "https", "EndpointSuffix": "core.windows.net"}
	for part := range strings.SplitSeq(text, ";") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok && name != "" {
			return errors.New("want NAME=VALUE, with semicolons between them")
		}
		said[name] = value
	}
	account := said["AccountName"]
	switch {
	case account != "" && s.account != "" && s.account != account:
		return fmt.Errorf("it is of the account %s, AZURE_STORAGE_ACCOUNT says %s", account, s.account)
	case said["AccountKey"] != "" && account != "":
		s.key = said["AccountKey"]
	case said["SharedAccessSignature"] != "":
		s.sas = said["SharedAccessSignature"]
	default:
		return errors.New("neither AccountName and AccountKey nor SharedAccessSignature is in it")
	}
	if account != "" {
		s.account = account
	}
	if s.endpoint == "" {
		s.endpoint, s.endpointFrom = said["BlobEndpoint"], "BlobEndpoint of AZURE_STORAGE_CONNECTION_STRING"
	}
	if s.endpoint == "" && account != "" {
		s.endpoint = said["DefaultEndpointsProtocol"] + "://" + account + ".blob." + said["EndpointSuffix"]
	}
	return nil
}

// identity finds who gives out tokens, and the variables that say so.
func identity(getenv func(string) string, opt policy.ClientOptions) (azcore.TokenCredential, string, error) {
	own := getenv("AZURE_AUTHORITY_HOST") != "" // then nobody else is asked whether it is one
	switch {
	case getenv("AZURE_CLIENT_SECRET") != "" || getenv("AZURE_CLIENT_CERTIFICATE_PATH") != "":
		from := "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET"
		if getenv("AZURE_CLIENT_SECRET") == "" {
			from = "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_CERTIFICATE_PATH"
		}
		c, err := azidentity.NewEnvironmentCredential(&azidentity.EnvironmentCredentialOptions{ClientOptions: opt, DisableInstanceDiscovery: own})
		return c, from, err
	case getenv("AZURE_FEDERATED_TOKEN_FILE") != "":
		c, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: opt, DisableInstanceDiscovery: own})
		return c, "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE", err
	}
	o := &azidentity.ManagedIdentityCredentialOptions{ClientOptions: opt}
	if id := getenv("AZURE_CLIENT_ID"); id != "" {
		o.ID = azidentity.ClientID(id)
	}
	c, err := azidentity.NewManagedIdentityCredential(o)
	return &machine{TokenCredential: c}, "the machine's managed identity", err
}

// roleTimeout is how long a machine is asked for its identity the first time: most
// have none, and nobody answers.
const roleTimeout = 3 * time.Second

// machine is a managed identity, perhaps.
type machine struct {
	azcore.TokenCredential
	known atomic.Bool // it has one
}

var errNoCredentials = errors.New("no credentials for Azure: set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or others of \"cutbank init --help\", or give the machine an identity")

// GetToken implements azcore.TokenCredential.
func (m *machine) GetToken(ctx context.Context, opt policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if m.known.Load() {
		return m.TokenCredential.GetToken(ctx, opt)
	}
	hasty, cancel := context.WithTimeout(ctx, roleTimeout)
	defer cancel()
	t, err := m.TokenCredential.GetToken(hasty, opt)
	if err != nil && ctx.Err() == nil {
		return t, fmt.Errorf("%w (%v): %w", errNoCredentials, brief(err), fs.ErrPermission)
	}
	m.known.Store(err == nil)
	return t, err
}

// advice is what to look at when credentials are refused.
func (s settings) advice(account string) string {
	switch {
	case s.key != "":
		return fmt.Sprintf("is the key in %s that of the account %q, and this machine's clock right?", s.from, account)
	case s.sas != "":
		return fmt.Sprintf("is the signature in %s still valid, and for this container, to read, write, delete and list?", s.from)
	}
	return fmt.Sprintf("has the identity of %s the role Storage Blob Data Contributor here?", s.from)
}
