package s3

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// roleTimeout is how long the machine's role is asked for: most machines have
// none, and nobody answers.
const roleTimeout = 3 * time.Second

// findCredentials returns the first source that has credentials. They are asked
// again when they expire.
func findCredentials(getenv func(string) string, t http.RoundTripper) (*credentials.Credentials, error) {
	id, secret := getenv("AWS_ACCESS_KEY_ID"), getenv("AWS_SECRET_ACCESS_KEY")
	if (id == "") != (secret == "") {
		return nil, fmt.Errorf("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together, only one of them is set: %w", fs.ErrInvalid)
	}
	ctx := &credentials.CredContext{Client: &http.Client{Transport: t, Timeout: 30 * time.Second}}
	role := &credentials.CredContext{Client: &http.Client{Transport: t, Timeout: roleTimeout}}
	var tried []error
	for _, s := range []struct {
		name string
		p    credentials.Provider
		cc   *credentials.CredContext
	}{
		{"environment", &credentials.EnvAWS{}, ctx},
		{"shared files", &credentials.FileAWSCredentials{}, ctx},
		{"role", &credentials.IAM{}, role},
	} {
		if s.name == "role" && strings.EqualFold(getenv("AWS_EC2_METADATA_DISABLED"), "true") && getenv("AWS_WEB_IDENTITY_TOKEN_FILE") == "" &&
			getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") == "" && getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI") == "" {
			continue
		}
		v, err := s.p.RetrieveWithCredContext(s.cc)
		if err == nil && v.AccessKeyID != "" && v.SecretAccessKey != "" {
			return credentials.New(s.p), nil
		}
		if err != nil {
			tried = append(tried, fmt.Errorf("%s: %v", s.name, err)) // that a file is not there says nothing of the repository
		}
		if s.name == "shared files" && getenv("AWS_PROFILE") != "" {
			// Somebody has named a profile: another account must not take its place.
			if err == nil {
				err = errors.New("it has no keys")
			}
			return nil, fmt.Errorf("no credentials in the profile %q of the shared files of AWS: %v: %w", getenv("AWS_PROFILE"), err, fs.ErrPermission)
		}
	}
	return nil, fmt.Errorf("no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role (%v): %w", errors.Join(tried...), fs.ErrPermission)
}
