package policy

import (
	"fmt"
	"testing"
)

// Policies that come one by one to a group, each with ten peers and a block,
// have little written but that, though the names come from the intent alone.
func TestOneMorePolicyWritesLittle(t *testing.T) {
	c, prog := NewCompiler(), newProgram()
	const policies, peers = 200, 10
	for i := range policies * peers {
		e := benchRemote(i)
		e.Labels = map[string]string{"client": fmt.Sprint(i % policies)}
		c.SetEndpoint(e)
	}
	c.SetEndpoint(benchLocal(0))
	members, ranges, renamed := 0, 0, 0
	for i := range policies {
		p := benchPolicy(i)
		p.Pods = selectorOf(requirement{"group", "In", []string{"0"}})
		c.SetPolicy(p)
		d := c.Flush()
		if err := prog.apply(d); err != nil {
			t.Fatal(err)
		}
		if len(d.Groups) != 1 || len(d.GroupsGone) != 0 {
			t.Fatalf("policy %d changed %d groups and removed %d", i, len(d.Groups), len(d.GroupsGone))
		}
		for _, s := range d.Sets {
			members += len(s.Added) + len(s.Removed)
			ranges += len(s.RangesAdded) + len(s.RangesRemoved)
			if s.Gone {
				renamed++
			}
		}
	}
	t.Logf("%d policies: %d members and %d ranges were written, %d sets renamed", policies, members, ranges, renamed)
	if members > 4*policies*peers || ranges > 4*policies {
		t.Errorf("%d members and %d ranges were written for %d and %d", members, ranges, policies*peers, policies)
	}
}

// Another way to select the same pods makes another group, but leaves its sets.
func TestOtherSelectorKeepsSets(t *testing.T) {
	c := NewCompiler()
	newBenchIntent().tell(c)
	c.Flush()
	p := benchPolicy(benchGroups)
	p.Key.Name = "one-more"
	p.Pods = selectorOf(requirement{"group", "In", []string{"7", "none"}})
	c.SetPolicy(p)
	d := c.Flush()
	if len(d.Groups) != 1 || len(d.GroupsGone) != 1 || len(d.Sets) != 2 || d.Sets[0].New || d.Sets[1].New {
		t.Errorf("got groups %d, gone %d, sets %+v", len(d.Groups), len(d.GroupsGone), d.Sets)
	}
}
