package azure

import (
	"context"
	"net/http"
)

// transporter sends the requests of the SDK. It follows no redirects.
type transporter struct{ http.RoundTripper }

// most is how long an answer may be that is held in memory as a whole: all but
// objects.
const most = 64 << 20

// wholeKey marks the requests of objects.
type wholeKey struct{}

func whole(ctx context.Context) context.Context { return context.WithValue(ctx, wholeKey{}, true) }

// Do implements policy.Transporter.
func (t transporter) Do(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if req.Context().Value(wholeKey{}) == nil || resp.StatusCode >= 300 {
		resp.Body = http.MaxBytesReader(nil, resp.Body, most)
	}
	return resp, nil
}
