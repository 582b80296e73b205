package etcd

import (
	"context"

	"google.golang.org/grpc/stats"

	"github.com/twill-net/twill/store"
)

// connections is a gRPC stats handler that notes the server of each connection.
type connections struct{ *store.Peers }

// TagConn implements stats.Handler; gRPC calls it when a connection stands.
func (c connections) TagConn(ctx context.Context, info *stats.ConnTagInfo) context.Context {
	c.Add(info.RemoteAddr)
	return ctx
}

// HandleConn implements stats.Handler.
func (connections) HandleConn(context.Context, stats.ConnStats) {}

// TagRPC implements stats.Handler.
func (connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (connections) HandleRPC(context.Context, stats.RPCStats) {}
