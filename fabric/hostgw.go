package fabric

import (
	"errors"
	"fmt"

	"github.com/twill-net/twill/api"
)

// hostGW routes straight to the peer, which has to be on the same link.
type hostGW struct{}

func (hostGW) Name() string                       { return api.BackendHostGW }
func (hostGW) Encapsulates() bool                 { return false }
func (hostGW) Overhead(Self) int                  { return 0 }
func (hostGW) Device(Self, Config) (Device, bool) { return Device{}, false }

// Receive: any node that forwards receives plain packets.
func (hostGW) Receive(Self, Config) (api.ReceiveParameters, error) {
	return api.ReceiveParameters{}, nil
}

func (hostGW) Path(self Self, _ Config, peer Peer, v6 bool) (Path, error) {
	next, ok := peer.Addr(v6)
	if !ok {
		return Path{}, errors.New("the peer has no address of that family")
	}
	for _, p := range self.Underlay.Prefixes {
		if p.Masked().Contains(next) {
			return Path{Backend: api.BackendHostGW, Link: self.Underlay.Link, NextHop: next}, nil
		}
	}
	return Path{}, fmt.Errorf("%s is not on the same link as this node", next)
}
