package main

import (
	"fmt"
	"time"
)

// connect measures connect(2) to a service among few and among many, on one
// node, beside connect(2) to the pod itself. That has a port of its own: to the
// same one, a connection looks to the kernel like the answers of an earlier one
// through the service, and costs a search for another port.
func (b *bench) connect() error {
	counts := []int{10, pick(b, 10000, 1000)}
	rounds, length := pick(b, 15, 3), pick(b, 300*time.Millisecond, 100*time.Millisecond)
	var sites []*site
	var direct []*client
	defer func() {
		for _, s := range sites {
			s.close()
		}
	}()
	for _, n := range counts {
		s, err := b.newSite(fmt.Sprintf("%d services", n), how{twill: true, services: n})
		sites = append(sites, s)
		if err != nil {
			return fmt.Errorf("make %s: %w", s.name, err)
		}
		c, err := b.newClient(s.from, s.to, directPort)
		if err != nil {
			return err
		}
		defer c.close()
		direct = append(direct, c)
	}
	times, bare := make([][]float64, len(sites)), make([][]float64, len(sites))
	for range rounds {
		for i, s := range sites {
			if err := b.ctx.Err(); err != nil {
				return err
			}
			t, err := s.client.send(modeConnect, clusterIP(0), 80, length)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			times[i] = append(times[i], t.P50)
			if t, err = direct[i].send(modeConnect, s.target, directPort, length); err != nil {
				return fmt.Errorf("%s, direct: %w", s.name, err)
			}
			bare[i] = append(bare[i], t.P50)
		}
	}
	for i, s := range sites {
		b.report.compare("connect p50, service among "+s.name, median(clone(times[i])), "µs", "the pod itself",
			median(clone(bare[i])), pairedRatio(times[i], bare[i]), nil)
	}
	b.report.compare(fmt.Sprintf("connect p50, %d services", counts[1]), median(clone(times[1])), "µs", sites[0].name,
		median(clone(times[0])), pairedRatio(times[1], times[0]), ratioAtMost(1+within))
	return nil
}
