package redistest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Cluster is a Redis Cluster of three primaries and no replicas.
type Cluster struct {
	t     testing.TB
	Nodes []*Server
}

// slots is the number of slots of every cluster.
const slots = 16384

// StartCluster runs the nodes of a cluster until the test ends. They do not know of each other, and
// serve nothing, before Join.
func StartCluster(t testing.TB, args ...string) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	for range 3 {
		node := newServer(t, append([]string{
			"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", portOf(freeAddr(t)),
		}, args...))
		node.start()
		c.Nodes = append(c.Nodes, node)
	}
	return c
}

// URL is its address for Config.
func (c *Cluster) URL() string {
	url := c.Nodes[0].URL()
	for i, n := range c.Nodes[1:] {
		url += map[bool]string{true: "?addr=", false: "&addr="}[i == 0] + n.addr
	}
	return url
}

// Join makes a cluster of the nodes, and waits until each of them serves.
func (c *Cluster) Join() {
	c.t.Helper()
	for i, n := range c.Nodes {
		n.Command("CLUSTER", "ADDSLOTSRANGE", fmt.Sprint(i*slots/len(c.Nodes)), fmt.Sprint((i+1)*slots/len(c.Nodes)-1))
		n.Command("CLUSTER", "SET-CONFIG-EPOCH", fmt.Sprint(i+1))
	}
	for _, n := range c.Nodes[1:] {
		c.Nodes[0].Command("CLUSTER", "MEET", "127.0.0.1", portOf(n.addr), n.args[5])
	}
	for _, n := range c.Nodes {
		eventually(c.t, "the cluster is not well", func() bool {
			return strings.Contains(n.Command("CLUSTER", "INFO"), "cluster_state:ok")
		})
	}
}

func eventually(t testing.TB, otherwise string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatal(otherwise)
		}
		<-time.After(20 * time.Millisecond)
	}
}
