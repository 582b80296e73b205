package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
)

// Forget removes all connections of addresses in the network namespace of the
// calling thread. It is for those of a pod that is gone, before another gets them:
// what belongs to an established connection passes whatever policies say, and one
// that its peer keeps up would still be there.
func Forget(addrs []netip.Addr) error {
	k, err := Open()
	if err != nil {
		return err
	}
	defer k.Close()
	for _, a := range addrs {
		for _, filter := range filtersOf(a) {
			if err := k.forget(a, filter); err != nil {
				return fmt.Errorf("forget the connections of %s: %w", a, err)
			}
		}
	}
	return nil
}

func (k *Kernel) forget(a netip.Addr, filter []*nl.RtAttr) (err error) {
	for range attempts {
		var doomed [][]byte
		err = k.dump(a.Is4(), filter, func(e entry, raw []byte) {
			if e.source.Addr() == a || e.destination.Addr() == a || e.replySource.Addr() == a {
				doomed = append(doomed, raw)
			}
		})
		if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
			return err
		}
		for _, raw := range doomed {
			if err := k.delete(a.Is4(), raw); err != nil {
				return err
			}
		}
		if err == nil {
			return nil
		}
	}
	return err
}
