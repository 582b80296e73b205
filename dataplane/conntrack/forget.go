package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
)

// countFile tells how many connections there are in the network namespace of the
// thread that reads it.
const countFile = "/proc/sys/net/netfilter/nf_conntrack_count"

// connectionsPerPass is how many connections can be read in the time that the
// kernel needs to go once through its table, most of which is empty.
var connectionsPerPass = 2500

// Forget removes all connections of addresses in the network namespace of the
// calling thread. It is for those of pods that are gone, before others get them:
// what belongs to an established connection passes whatever policies say, and one
// that its peer keeps up would still be there.
//
// Each call has the kernel go through its whole table, some milliseconds long: give
// it many addresses at once.
func Forget(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	count, err := connections()
	if err != nil {
		return err
	}
	if count == 0 {
		return nil
	}
	k, err := Open()
	if err != nil {
		return err
	}
	defer k.Close()
	for _, is4 := range []bool{true, false} {
		gone := map[netip.Addr]bool{}
		for _, a := range addrs {
			if a.Is4() == is4 {
				gone[a] = true
			}
		}
		for _, filter := range passes(gone, count) {
			if err := k.forget(is4, gone, filter); err != nil {
				return fmt.Errorf("forget the connections of %v: %w", addrs, err)
			}
		}
	}
	return nil
}

func connections() (int, error) {
	text, err := os.ReadFile(countFile)
	if err != nil {
		return 0, fmt.Errorf("count connections: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// passes are the filters of the dumps that find the connections of addresses: a
// single one that passes all of them, unless they are so many that asking for those
// of each address costs less.
func passes(addrs map[netip.Addr]bool, count int) (filters [][]*nl.RtAttr) {
	if len(addrs) == 0 {
		return nil
	}
	for a := range addrs {
		filters = append(filters, filtersOf(a)...)
	}
	if count < connectionsPerPass*len(filters) {
		return [][]*nl.RtAttr{nil}
	}
	return filters
}

func (k *Kernel) forget(is4 bool, gone map[netip.Addr]bool, filter []*nl.RtAttr) (err error) {
	for range attempts {
		var doomed [][]byte
		err = k.dump(is4, filter, func(e entry, raw []byte) {
			if gone[e.source.Addr()] || gone[e.destination.Addr()] || gone[e.replySource.Addr()] {
				doomed = append(doomed, raw)
			}
		})
		if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
			return err
		}
		for _, raw := range doomed {
			if err := k.delete(is4, raw); err != nil {
				return err
			}
		}
		if err == nil {
			return nil
		}
	}
	return err
}
