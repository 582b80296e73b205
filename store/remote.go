package store

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Peers collects the addresses of servers, for implementations of Remote. The zero
// value is ready; its methods may be called concurrently.
type Peers struct {
	mu    sync.Mutex
	addrs map[netip.Addr]struct{}
}

// Add notes the remote address of a connection; one over a socket in the file
// system has none.
func (p *Peers) Add(remote net.Addr) {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.addrs == nil {
		p.addrs = map[netip.Addr]struct{}{}
	}
	p.addrs[addr] = struct{}{}
}

// Addresses lists the addresses, sorted.
func (p *Peers) Addresses() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Keys(p.addrs), netip.Addr.Compare)
}
