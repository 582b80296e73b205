package route

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"

	"github.com/twill-net/twill/plan"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Kernel makes plans true in one network namespace. Its methods may be called
// from several goroutines; the plan belongs to the caller of Apply meanwhile.
type Kernel struct {
	log     *slog.Logger
	handle  *netlink.Handle
	dumping map[int]*nl.SocketHandle // a socket whose dumps are filtered by the kernel
	events  *events

	mu        sync.Mutex
	unread    bool // the next Apply reads the kernel first
	wasRead   bool
	mended    uint64 // writes that undid what another program did
	drift     func()
	host      func()
	originals originals // of sysctls

	names   map[int]string // every device, by index
	indexes map[string]int
	up      map[string]bool

	hostLinks   map[int]hostLink // by index
	hostChanged bool             // and host was not called

	sysctls    *belief[string, string]
	links      *belief[string, device]
	addresses  *belief[plan.AddressKey, struct{}]
	neighbours *belief[plan.NeighbourKey, plan.MAC]
	fdb        *belief[plan.FDBKey, netip.Addr]
	routes     *belief[netip.Prefix, plan.Route]

	managed   map[string]struct{}       // links that the plan wants: of others the news is no drift
	waiting   map[string]struct{}       // links that keys which failed in the last Apply need
	conflicts map[netip.Prefix]struct{} // prefixes that a foreign route holds
	retry     bool                      // something that failed may work now
}

// Open returns a Kernel for the network namespace of the calling thread. All
// of its netlink traffic stays in that namespace; sysctls are those of the
// thread that calls Apply, because /proc/sys shows each thread its own.
func Open(log *slog.Logger) (*Kernel, error) {
	k := newKernel(log)
	var err error
	if k.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if k.dumping, err = openDumping(); err != nil {
		k.handle.Close()
		return nil, err
	}
	if k.events, err = openEvents(); err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// newKernel is a Kernel without connections.
func newKernel(log *slog.Logger) *Kernel {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Kernel{
		log:        log,
		unread:     true,
		names:      map[int]string{},
		indexes:    map[string]int{},
		up:         map[string]bool{},
		hostLinks:  map[int]hostLink{},
		sysctls:    newBelief(func(path string, _ string) string { return sysctlLink(path) }),
		links:      newBelief(func(name string, _ device) string { return name }),
		addresses:  newBelief(func(a plan.AddressKey, _ struct{}) string { return a.Link }),
		neighbours: newBelief(func(n plan.NeighbourKey, _ plan.MAC) string { return n.Link }),
		fdb:        newBelief(func(f plan.FDBKey, _ netip.Addr) string { return f.Link }),
		routes:     newBelief(func(_ netip.Prefix, r plan.Route) string { return r.Link }),
		managed:    map[string]struct{}{},
		waiting:    map[string]struct{}{},
		conflicts:  map[netip.Prefix]struct{}{},
	}
}

// Close releases the sockets. What was applied stays. Stop Watch first.
func (k *Kernel) Close() {
	k.handle.Close()
	for _, s := range k.dumping {
		s.Close()
	}
	if k.events != nil {
		k.events.file.Close()
	}
}

// Mended is how many keys Apply has written so far to undo what another program
// did. What goes with a device that Twill itself removes is not among them.
func (k *Kernel) Mended() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mended
}

// Resync makes the next Apply read the kernel anew and compare it with the
// whole plan.
func (k *Kernel) Resync() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unread = true
}

// ours says whether a device is ours by its name.
func ours(name string) bool {
	return name == plan.VXLANLink || strings.HasPrefix(name, plan.VethPrefix)
}

func openDumping() (map[int]*nl.SocketHandle, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	// Kernels before 4.20 don't know it and send everything: callers filter too.
	_ = unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}, nil
}
