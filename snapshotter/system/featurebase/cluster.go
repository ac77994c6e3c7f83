package featurebase

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

// node is one member of the cluster.
type node struct {
	ID  string `json:"id"`
	URI struct {
		Scheme string `json:"scheme"`
		Host   string `json:"host"`
		Port   int    `json:"port"`
	} `json:"uri"`
	Primary bool   `json:"isPrimary"`
	State   string `json:"state"`
}

// host is without the brackets that nodes write around IPv6.
func (n *node) host() string {
	return strings.TrimSuffix(strings.TrimPrefix(n.URI.Host, "["), "]")
}

func (n *node) base() string {
	scheme := n.URI.Scheme
	if scheme == "" {
		scheme = "http"
	}
	return scheme + "://" + net.JoinHostPort(n.host(), strconv.Itoa(n.URI.Port))
}

// cluster is what the nodes say of themselves.
type cluster struct {
	State   string  `json:"state"`
	Nodes   []*node `json:"nodes"`
	Name    string  `json:"clusterName"`
	version string
	admin   bool   // the token is of one, or there are no tokens
	storage string // "rbf"; empty where the token does not let us see it
	replica int    // 0: not known
	width   uint64 // columns of a shard; 0: not known
}

const (
	normal    = "NORMAL"
	maxNodes  = 4096    // of a cluster
	maxShards = 4 << 20 // of an index
)

// cluster asks who is there. All nodes but those in the way of a cluster that is not
// NORMAL are named by it.
func (c *client) cluster(ctx context.Context) (*cluster, error) {
	var cl cluster
	if err := c.getJSON(ctx, c.base, "/status", &cl); err != nil {
		return nil, err
	}
	if len(cl.Nodes) == 0 || slices.Contains(cl.Nodes, nil) {
		return nil, fmt.Errorf("%s knows no nodes, itself included: is it FeatureBase?: %w", c.base, system.ErrRefused)
	}
	if len(cl.Nodes) > maxNodes {
		return nil, fmt.Errorf("%s knows %d nodes, and up to %d are asked: %w", c.base, len(cl.Nodes), maxNodes, system.ErrRefused)
	}
	var v struct{ Version string }
	if err := c.getJSON(ctx, c.base, "/version", &v); err != nil {
		return nil, err
	}
	cl.State = printable(cl.State)
	cl.version = strings.TrimPrefix(v.Version, "v")
	var info struct {
		Storage string `json:"storageBackend"`
		Replica int    `json:"replicaN"`
		Width   uint64 `json:"shardWidth"`
	}
	err := c.getJSON(ctx, c.base, "/info", &info)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	cl.admin = err == nil
	cl.storage, cl.replica, cl.width = info.Storage, info.Replica, info.Width
	return &cl, c.proven(ctx, &cl)
}

// check says whether requests can be made of a node at all.
func (n *node) check() error {
	u, err := url.Parse(n.base())
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() != n.host() || n.host() == "" || printable(n.host()) != n.host() {
		return fmt.Errorf("the cluster has a node at %q, which is no address: %w", n.base(), system.ErrRefused)
	}
	return nil
}

// proven asks the nodes who they are. What they call their address may be one on which
// another node answers where we are, such as localhost; it would give its own data.
func (c *client) proven(ctx context.Context, cl *cluster) error {
	for _, n := range cl.Nodes {
		if err := n.check(); err != nil {
			return err
		}
		if strings.HasPrefix(c.base, "https://") && !strings.HasPrefix(n.base(), "https://") && c.token != "" {
			return fmt.Errorf("node %s of %s does not encrypt, and would be sent the token: have it advertise https (--advertise): %w", n.base(), c.base, system.ErrRefused)
		}
		if n.State != "STARTED" || n.base() == c.base {
			continue
		}
		var at struct{ LocalID string }
		p, err := c.once(ctx, n.base(), "/status")
		if err == nil {
			err = json.Unmarshal(p, &at)
		}
		switch {
		case ctx.Err() != nil:
			return err
		case err != nil:
			c.logf("whether %s is the node that it should be is not known: %v", n.base(), err)
		case at.LocalID != n.ID:
			return fmt.Errorf("the cluster of %s has its node %s at %s, but there is node %s: have each node advertise an address that leads to it from here (--advertise): %w",
				c.base, printable(n.ID), n.base(), printable(at.LocalID), system.ErrRefused)
		}
	}
	return nil
}

// printable is a text that can be shown as it is.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// identity tells a cluster from others: by its name, which is the same for all that
// were given none, and by a node's ID, which etcd draws.
func (cl *cluster) identity() string {
	var ids []string
	for _, n := range cl.Nodes {
		ids = append(ids, n.ID)
	}
	return cl.Name + "/" + slices.Min(ids)
}

// primary returns the address of the node that speaks for the cluster.
func (cl *cluster) primary() (string, error) {
	for _, n := range cl.Nodes {
		if n.Primary {
			return n.base(), nil
		}
	}
	return "", fmt.Errorf("the cluster has no primary node now: try again when /status says NORMAL: %w", system.ErrRefused)
}

// down names the nodes that are not up.
func (cl *cluster) down() string {
	var list []string
	for _, n := range cl.Nodes {
		if n.State != "STARTED" {
			list = append(list, fmt.Sprintf("%s (%s)", n.base(), printable(n.State)))
		}
	}
	return strings.Join(list, ", ")
}

// owners returns the nodes that have a shard or a partition, the first of which is
// the one that others follow.
func (c *client) owners(ctx context.Context, path string) ([]*node, error) {
	var nodes []*node
	if err := c.getJSON(ctx, c.base, path, &nodes); err != nil {
		return nil, err
	}
	if len(nodes) == 0 || slices.Contains(nodes, nil) {
		return nil, fmt.Errorf("GET %s%s: no node: %w", c.base, path, system.ErrIncomplete)
	}
	for _, n := range nodes {
		if err := n.check(); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

func shardNodes(index string, shard uint64) string {
	return "/internal/fragment/nodes?index=" + url.QueryEscape(index) + "&shard=" + strconv.FormatUint(shard, 10)
}

func partitionNodes(partition int) string {
	return "/internal/partition/nodes?partition=" + strconv.Itoa(partition)
}
