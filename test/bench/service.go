package main

import (
	"errors"
	"net/netip"

	"github.com/twill-net/twill/api"
)

// measureWide is many services with few endpoints.
func measureWide(quick bool) (figures, error) {
	if quick {
		return measureServices(1000, 2)
	}
	return measureServices(10000, 2)
}

// measureDeep is few services with many endpoints.
func measureDeep(quick bool) (figures, error) {
	if quick {
		return measureServices(100, 250)
	}
	return measureServices(1000, 250)
}

func measureServices(services, endpoints int) (figures, error) {
	n, err := newScaleNode()
	if err != nil {
		return nil, err
	}
	f, found := &feeder{node: n, rulesOnly: true}, figures{}
	each := func(put func(api.Object) error) error {
		for i := range services {
			err := put(serviceOf(i))
			for _, s := range slicesOf(i, endpointsOf(i, endpoints)) {
				err = errors.Join(err, put(s))
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := f.cold(each, found, "cold"); err != nil {
		return nil, err
	}
	found["elements"] = float64(n.planner.Flush().Elements.Len())
	// One endpoint of a service gets another address: its slice changes.
	changes, err := f.changes(300, func(i int) api.Object {
		service := i * 7 % services
		addrs := endpointsOf(service, endpoints)
		addrs[0] = netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)})
		return slicesOf(service, addrs)[0]
	})
	if err != nil {
		return nil, err
	}
	found["endpoint"], found["endpoint99"] = median(changes), percentile(changes, 99)
	return found, nil
}
