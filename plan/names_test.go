package plan

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestNamesReference: what we own on a host is on the page, by name.
func TestNamesReference(t *testing.T) {
	const path = "../docs/reference/names-on-a-host.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{NFTable, strconv.Itoa(RouteProtocol), VethPrefix, VXLANLink, PodGateway4, PodGateway6, PodGatewayMAC}
	p := NewPlanner("node01").Flush()
	for name := range p.Chains.All() {
		names = append(names, name)
	}
	for name := range p.Sets.All() {
		names = append(names, name)
	}
	for name := range p.Sysctls.All() {
		names = append(names, name)
	}
	for _, name := range names {
		// Names that end with the family are listed once, without it.
		if !strings.Contains(string(text), name) && !strings.Contains(string(text), strings.TrimRight(name, "46")+"N") {
			t.Errorf("%s does not mention %s", path, name)
		}
	}
}
