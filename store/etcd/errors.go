package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/twill-net/twill/store"
)

var errClosed = errors.New("the store was closed")

// lastErrorKey is the context key of an *error.
type lastErrorKey struct{}

// keepLastError keeps what gRPC said for the caller. The client library reduces
// a call that waited for a connection to "deadline exceeded", and the reason why
// there was none, such as a refused certificate, would be lost.
func keepLastError(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, request, reply, conn, opts...)
	if last, ok := ctx.Value(lastErrorKey{}).(*error); ok {
		*last = err
	}
	return err
}

// classify turns an error of the client library into what callers branch on.
// ctx is the caller's, last the error that gRPC gave.
func classify(ctx context.Context, err, last error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() == context.Canceled {
		return ctx.Err()
	}
	if errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrCompacted) || errors.Is(err, store.ErrRestored) {
		return err
	}
	err = rpctypes.Error(err)
	var e rpctypes.EtcdError
	known := errors.As(err, &e)
	switch {
	case errors.Is(err, errClosed), errors.Is(err, context.Canceled), clientv3.IsConnCanceled(err):
		// The caller's context stands, so it was Close.
		return fmt.Errorf("%w: %w", store.ErrUnavailable, errClosed)
	case ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("%w: %w%s", store.ErrUnavailable, ctx.Err(), noConnection(last))
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return fmt.Errorf("%w: no answer within %s%s", store.ErrUnavailable, callTimeout, noConnection(last))
	case errors.Is(err, rpctypes.ErrCompacted):
		return store.ErrCompacted
	case known && (e.Code() == codes.Unavailable || e.Code() == codes.DeadlineExceeded),
		status.Code(err) == codes.Unavailable:
		return fmt.Errorf("%w: %s", store.ErrUnavailable, reason(err))
	}
	return errors.New(reason(err))
}

// reason is the server's or the library's sentence without gRPC's frame.
func reason(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// noConnection is why there was no connection, if that was it.
func noConnection(last error) string {
	if last == nil {
		return ""
	}
	_, why, ok := strings.Cut(reason(last), "latest balancer error: ")
	if !ok {
		return ""
	}
	if _, cause, ok := strings.Cut(why, "desc = "); ok {
		why = cause
	}
	return ": " + strings.Trim(why, `"`)
}
