package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/twill-net/twill/plan"
)

func TestInstallReplacesWhole(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	path := filepath.Join(dir, "twill-cni")
	for _, content := range []string{"first", "second"} {
		if err := install(dir, "twill-cni", []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("%q, %v; want %q", got, err, content)
		}
	}
	before, err := os.Stat(path)
	if err != nil || before.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", before, err)
	}
	if err := install(dir, "twill-cni", []byte("second"), 0o755); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Error("what was there already was written again")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	// What can't be replaced is left as it was.
	if err := os.Mkdir(filepath.Join(dir, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := install(dir, "x", nil, 0o644); err == nil {
		t.Error("a directory was replaced")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestEarlierConfig(t *testing.T) {
	for _, test := range []struct {
		files []string
		want  string
	}{
		{nil, ""},
		{[]string{plan.CNIConflist, "10-zeta.conflist", "99-loopback.conf"}, ""},
		{[]string{plan.CNIConflist, "05-cilium.conflist"}, "05-cilium.conflist"},
		{[]string{"10-calico.conflist", "10-flannel.conf"}, "10-calico.conflist"},
		{[]string{".10-calico.conflist", "00-readme.txt", "10-calico.conflist.bak"}, ""},
	} {
		dir := t.TempDir()
		for _, name := range test.files {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := earlierConfig(dir); got != test.want {
			t.Errorf("%v: %q, want %q", test.files, got, test.want)
		}
	}
}

func TestNetworkIsUp(t *testing.T) {
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue}
	fresh := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated"}
	for _, old := range [][]corev1.NodeCondition{nil, {ready}, {fresh, ready}} {
		before := slices.Clone(old)
		got := networkIsUp(old)
		i := slices.IndexFunc(got, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeNetworkUnavailable })
		if i < 0 || got[i].Status != corev1.ConditionFalse || got[i].LastTransitionTime.IsZero() {
			t.Errorf("%v became %v", old, got)
		}
		if !slices.Equal(before, old) {
			t.Errorf("the node's own conditions were changed: %v", old)
		}
		if again := networkIsUp(got); !slices.Equal(again, got) {
			t.Errorf("%v became %v", got, again)
		}
	}
}
