package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twill-net/twill/dataplane/testnet"
)

// TestCleanupRemovesOurFilesOnly: what somebody else has beside ours stays, and a
// directory with such in it is told of.
func TestCleanupRemovesOurFilesOnly(t *testing.T) {
	root := t.TempDir()
	for _, path := range []string{
		"etc/cni/net.d/10-twill.conflist", "etc/cni/net.d/80-other.conflist", "opt/cni/bin/twill-cni", "opt/cni/bin/loopback",
		"run/twill/cni.sock", "var/lib/twill/ipam.journal", "var/lib/twill/ipam.journal.lock", "var/lib/twill/ipam.journal.corrupt-1",
		"var/lib/twill/mine",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var first, second string
	testnet.New(t).Do(func() { // the kernel that is cleaned is not the machine's
		first = newTerminal().output(nil, "cleanup", "--yes", "--files", "--root", root)
		if err := os.Remove(filepath.Join(root, "var/lib/twill/mine")); err != nil {
			t.Fatal(err)
		}
		second = newTerminal().output(nil, "cleanup", "--yes", "--files", "--root", root)
	})
	want := `removed /etc/cni/net.d/10-twill.conflist
removed /opt/cni/bin/twill-cni
removed /run/twill/cni.sock
removed /var/lib/twill/ipam.journal
removed /var/lib/twill/ipam.journal.corrupt-1
removed /var/lib/twill/ipam.journal.lock
removed /run/twill
error: /var/lib/twill is left: mine in it is not ours
[exit 1]
`
	if diff := cmp.Diff(want, first); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("removed /var/lib/twill\n", second); diff != "" {
		t.Error(diff)
	}
	for path, want := range map[string]bool{"etc/cni/net.d/80-other.conflist": true, "opt/cni/bin/loopback": true, "run/twill": false} {
		if _, err := os.Stat(filepath.Join(root, path)); (err == nil) != want {
			t.Errorf("%s: %v", path, err)
		}
	}
}
