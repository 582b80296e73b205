package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"

	"github.com/twill-net/twill/cni/client"
	"github.com/twill-net/twill/ipam"
	"github.com/twill-net/twill/store"
)

// answer does what a request asks for.
func answer(ctx context.Context, req request, a Attacher) reply {
	version := ""
	result, err := func() (json.RawMessage, error) {
		if client.FirstVersion(req.Command) == "" {
			return nil, badVariable("CNI_COMMAND", req.Command, "it is ADD, DEL, CHECK, GC, STATUS or VERSION")
		}
		c, err := parseConfig(req.Config)
		if c != nil {
			version = c.version
		}
		if err != nil {
			return nil, err
		}
		if e := client.NotIn(c.version, req.Command); e != nil {
			return nil, e
		}
		switch req.Command {
		case client.GC:
			return nil, gc(ctx, c, a)
		case client.Status:
			return nil, a.Status(ctx)
		}
		return attachmentCommand(ctx, req, c, a)
	}()
	if err != nil {
		// The store knows the agent no more: its node was deleted, and has joined
		// again or will.
		revoked := req.Command == client.Add && errors.Is(err, store.ErrUnauthorized)
		return reply{failure: errorReply(req.Command, version, err), handOver: revoked}
	}
	return reply{result: result}
}

// attachmentCommand does ADD, DEL and CHECK.
func attachmentCommand(ctx context.Context, req request, c *config, a Attacher) (json.RawMessage, error) {
	if err := checkID(req.id()); err != nil {
		return nil, err
	}
	if req.Command == client.Del {
		// Nothing else is looked at: DEL has to work as long as we know what
		// to delete.
		return nil, a.Detach(ctx, req.id())
	}
	at, err := newAttachment(req, c)
	if err != nil {
		return nil, err
	}
	if req.Command == client.Check {
		prev, err := remembered(c, at)
		if err != nil {
			return nil, err
		}
		return nil, a.Check(ctx, at, prev)
	}
	if err := checkFree(c, at); err != nil {
		return nil, err
	}
	got, err := a.Attach(ctx, at)
	if err != nil {
		return nil, err
	}
	return newResult(c, at, got)
}

// newAttachment puts together what variables and configuration say.
func newAttachment(req request, c *config) (Attachment, error) {
	if req.NetNS == "" {
		return Attachment{}, badVariable("CNI_NETNS", "", "it is the path of the pod's network namespace")
	}
	args, err := parseArgs(req.Args)
	if err != nil {
		return Attachment{}, err
	}
	at := Attachment{
		ID: req.id(), Network: c.name, NetNS: req.NetNS,
		Namespace: args.namespace, Pod: args.pod, UID: args.uid,
		Labels: c.labels, Ports: c.ports, Want: c.want, MAC: c.mac,
	}
	if at.Namespace == "" {
		at.Namespace = "default"
	}
	if at.Pod == "" {
		at.Pod = podName(req.ContainerID)
	}
	if at.Want == nil && args.ip.IsValid() {
		at.Want = []netip.Addr{args.ip}
	}
	if at.MAC == "" {
		at.MAC = args.mac
	}
	return at, nil
}

func gc(ctx context.Context, c *config, a Attacher) error {
	if !c.hasValid {
		// An empty list means that nothing is valid; without one we must not
		// guess so.
		return fail(client.CodeInvalidConfig, "GC needs the key cni.dev/valid-attachments", "")
	}
	return a.GC(ctx, c.name, c.valid)
}

// errorReply finds the specification's code for an error.
func errorReply(command, version string, err error) *client.Error {
	var e client.Error
	var given *client.Error
	switch {
	case errors.As(err, &given):
		e = *given
	case command == client.Status && errors.Is(err, ErrLimited):
		e = client.Error{Code: client.CodeLimited, Msg: err.Error()}
	case command == client.Status:
		e = client.Error{Code: client.CodeNotAvailable, Msg: err.Error()}
	case errors.Is(err, ErrAttached), errors.Is(err, ipam.ErrExists):
		e = client.Error{Code: client.CodeAttached, Msg: err.Error()}
	case errors.Is(err, ErrNetNS):
		e = client.Error{Code: client.CodeInvalidEnvironment, Msg: err.Error()}
	case errors.Is(err, ErrUnknownContainer):
		e = client.Error{Code: client.CodeUnknownContainer, Msg: err.Error()}
	case errors.Is(err, ipam.ErrExhausted), errors.Is(err, ipam.ErrNoPool):
		e = client.Error{Code: client.CodeExhausted, Msg: err.Error()}
	case errors.Is(err, ipam.ErrAddress):
		e = client.Error{Code: client.CodeInvalidConfig, Msg: err.Error()}
	case errors.Is(err, ErrTryAgain), errors.Is(err, ipam.ErrNotReconciled), errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrUnauthorized),
		errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e = client.Error{Code: client.CodeTryAgainLater, Msg: err.Error()}
	default:
		e = client.Error{Code: client.CodeFailed, Msg: err.Error()}
	}
	return e.In(version)
}
