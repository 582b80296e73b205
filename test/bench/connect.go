package main

import (
	"fmt"
	"time"
)

// connect measures connect(2) to a service among few and among many, on one
// node, beside connect(2) to the pod itself.
func (b *bench) connect() error {
	counts := []int{10, pick(b, 10000, 1000)}
	rounds, length := pick(b, 15, 3), pick(b, 300*time.Millisecond, 100*time.Millisecond)
	var sites []*site
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
	}
	times, direct := make([][]float64, len(sites)), make([][]float64, len(sites))
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
			if t, err = s.client.send(modeConnect, s.target, trafficPort, length); err != nil {
				return fmt.Errorf("%s, direct: %w", s.name, err)
			}
			direct[i] = append(direct[i], t.P50)
		}
	}
	for i, s := range sites {
		b.report.compare("connect p50, service among "+s.name, median(clone(times[i])), "µs", "the pod itself",
			median(clone(direct[i])), pairedRatio(times[i], direct[i]), nil)
	}
	b.report.compare(fmt.Sprintf("connect p50, %d services", counts[1]), median(clone(times[1])), "µs", sites[0].name,
		median(clone(times[0])), pairedRatio(times[1], times[0]), ratioAtMost(1+within))
	return nil
}
