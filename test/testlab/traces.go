package testlab

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/lab/space"
)

// traces finds what a lab has left on the machine.
type traces struct {
	name       string
	had        map[string]bool // on the machine before
	namespaces map[string]bool // of the lab's nodes
}

func (x *traces) before(t *testing.T) {
	t.Helper()
	had, err := onHost()
	if err != nil {
		t.Fatal(err)
	}
	x.had = had
}

// remember notes the network namespaces, whose numbers tell them apart for as
// long as somebody holds them.
func (x *traces) remember(t *testing.T, l *Lab) {
	t.Helper()
	x.namespaces = map[string]bool{}
	places := []lab.Place{lab.Outside()}
	for _, name := range l.Config.NodeNames() {
		places = append(places, lab.Node(name))
	}
	for _, place := range places {
		id, err := os.Readlink(filepath.Join(l.Task(t, place), "ns", "net"))
		if err != nil {
			t.Fatal(err)
		}
		x.namespaces[id] = true
	}
}

// tracesPatience is long because other tests may run at the same time; what
// they make goes by itself.
const tracesPatience = 30 * time.Second

func (x *traces) after(t *testing.T) {
	t.Helper()
	deadline, poll := time.Now().Add(tracesPatience), time.NewTicker(20*time.Millisecond)
	defer poll.Stop()
	for ; ; <-poll.C {
		left, err := x.left()
		if err != nil {
			t.Error(err)
			return
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left on the machine:\n%s", strings.Join(slices.Sorted(maps.Keys(left)), "\n"))
			return
		}
	}
}

func (x *traces) left() (map[string]bool, error) {
	left, err := onHost()
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(left, func(thing string, _ bool) bool { return x.had[thing] })
	pids, err := space.Marked("twill-lab/" + x.name)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		left[fmt.Sprintf("process %d", pid)] = true
	}
	if _, err := os.Stat("/run/twill-lab/" + x.name); err == nil {
		left["directory /run/twill-lab/"+x.name] = true
	}
	threads, err := filepath.Glob("/proc/[0-9]*/task/*/ns/net")
	if err != nil {
		return nil, err
	}
	for _, path := range threads {
		if id, err := os.Readlink(path); err == nil && x.namespaces[id] {
			left["network namespace "+id+", in "+path] = true
		}
	}
	return left, nil
}

// onHost lists the links, mounts, routes and files that a lab might add.
func onHost() (map[string]bool, error) {
	found := map[string]bool{}
	links, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		found["link "+l.Name] = true
	}
	for _, path := range []string{"/proc/self/mountinfo", "/proc/net/route", "/proc/net/ipv6_route"} {
		text, err := os.ReadFile(path)
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			switch {
			case strings.HasSuffix(path, "ipv6_route") && len(fields) > 9:
				line = fields[0] + "/" + fields[1] + " " + fields[9] // the rest counts uses
			case strings.HasSuffix(path, "mountinfo") && len(fields) > 4 && strings.HasPrefix(fields[4], os.TempDir()+"/"):
				continue // others' scratch: a lab mounts nothing there
			}
			found[path+": "+strings.TrimSpace(line)] = true
		}
	}
	for _, pattern := range []string{"/run/netns/*", "/etc/cni/*", "/opt/cni/*", "/var/lib/twill/*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			found["file "+name] = true
		}
	}
	return found, nil
}
