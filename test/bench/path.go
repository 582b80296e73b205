package main

import (
	"fmt"
	"time"
)

// figures of one path, one value a round.
type pathFigures struct {
	bulk        []float64 // Gbit per CPU-second
	trip        []float64 // µs, median of the round
	connections []float64 // per CPU-second
}

// group is one kind of path: how Twill does it is compared with how it is wired
// by hand.
type group struct{ name, fabric string }

var pathGroups = []group{{"same node", ""}, {"host-gw", "host-gw"}, {"vxlan", "vxlan"}}

// byHand are the ways in which a path is wired by hand. Twill is compared with
// tracked; the others are for information.
var byHand = []firewall{untracked, tracked, translated}

// dataPath compares paths between two pods: the bare pair, what is wired by
// hand, and Twill's with no policy, with one and with many.
func (b *bench) dataPath() error {
	many := pick(b, fullSize, quickSize).policies
	var sites []*site
	defer func() {
		for _, s := range sites {
			s.close()
		}
	}()
	add := func(s *site, err error) error {
		if s != nil {
			sites = append(sites, s)
		}
		if err != nil {
			return fmt.Errorf("make %s: %w", s.name, err)
		}
		return nil
	}
	if err := add(b.newPair("bare pair")); err != nil {
		return err
	}
	for _, g := range pathGroups {
		for _, f := range byHand {
			if err := add(b.newSite(g.byHand(f), how{fabric: g.fabric, firewall: f})); err != nil {
				return err
			}
		}
		for _, policies := range []int{0, 1, many} {
			b.say("path: %s", g.withTwill(policies))
			if err := add(b.newSite(g.withTwill(policies), how{fabric: g.fabric, twill: true, policies: policies})); err != nil {
				return err
			}
		}
	}
	found, err := b.pathRounds(sites)
	if err != nil {
		return err
	}
	b.reportPaths(found, many)
	return nil
}

func (g group) byHand(f firewall) string {
	return g.name + " by hand" + map[firewall]string{tracked: ", with conntrack", translated: ", with NAT hooks"}[f]
}

func (g group) withTwill(policies int) string {
	switch policies {
	case 0:
		return g.name
	case 1:
		return g.name + ", 1 policy"
	}
	return fmt.Sprintf("%s, %d policies", g.name, policies)
}

// pathRounds takes turns: what disturbs the machine for a while disturbs all
// paths. Before the first round each path is warmed up.
func (b *bench) pathRounds(sites []*site) (map[string]*pathFigures, error) {
	rounds, length := pick(b, 7, 2), pick(b, 500*time.Millisecond, 150*time.Millisecond)
	found := map[string]*pathFigures{}
	for _, s := range sites {
		found[s.name] = &pathFigures{}
		if err := s.round(length/5, &pathFigures{}); err != nil {
			return nil, err
		}
	}
	for i := range rounds {
		b.say("path: round %d of %d", i+1, rounds)
		for _, s := range sites {
			if err := b.ctx.Err(); err != nil {
				return nil, err
			}
			if err := s.round(length, found[s.name]); err != nil {
				return nil, err
			}
		}
	}
	return found, nil
}

func (s *site) round(length time.Duration, f *pathFigures) error {
	bulk, err := s.client.send(modeBulk, s.target, trafficPort, length)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	f.bulk = append(f.bulk, float64(bulk.Bytes)*8/1e9/bulk.cpuSeconds)
	trips, err := s.client.send(modeRequest, s.target, trafficPort, length)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	f.trip = append(f.trip, trips.P50)
	connections, err := s.client.send(modeConnect, s.target, trafficPort, length)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	f.connections = append(f.connections, float64(connections.Count)/connections.cpuSeconds)
	return nil
}

// The goal: within 3 % of what is wired by hand and tracks connections.
const within = 0.03

func (b *bench) reportPaths(found map[string]*pathFigures, many int) {
	for _, measure := range []struct {
		what, unit string
		of         func(*pathFigures) []float64
		goal       *goal
	}{
		{"TCP bulk", "Gbit/CPU-s", func(f *pathFigures) []float64 { return f.bulk }, ratioAtLeast(1 - within)},
		{"request/response p50", "µs", func(f *pathFigures) []float64 { return f.trip }, ratioAtMost(1 + within)},
		{"connections", "/CPU-s", func(f *pathFigures) []float64 { return f.connections }, ratioAtLeast(1 - within)},
	} {
		compare := func(name, peer string, g *goal) {
			mine, theirs := measure.of(found[name]), measure.of(found[peer])
			b.report.compare(measure.what+", "+name, median(clone(mine)), measure.unit, peer, median(clone(theirs)), pairedRatio(mine, theirs), g)
		}
		b.report.add(measure.what+", bare pair", median(clone(measure.of(found["bare pair"]))), measure.unit, nil)
		for _, g := range pathGroups {
			for _, f := range byHand {
				compare(g.byHand(f), "bare pair", nil)
			}
			for _, policies := range []int{0, 1, many} {
				compare(g.withTwill(policies), g.byHand(tracked), measure.goal)
			}
			compare(g.withTwill(0), g.byHand(translated), nil)
			compare(g.withTwill(many), g.withTwill(1), measure.goal)
		}
	}
}

// pairedRatio is the median of the ratios of each round, in which both had the
// same machine.
func pairedRatio(mine, theirs []float64) float64 {
	var ratios []float64
	for i := range mine {
		ratios = append(ratios, mine[i]/theirs[i])
	}
	return median(ratios)
}

func clone(values []float64) []float64 { return append([]float64(nil), values...) }
