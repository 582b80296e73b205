package preflight

import (
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/plan"
)

// others are devices by which other networks are known, by how their names
// begin.
var others = []struct{ prefix, network string }{
	{"flannel", "flannel"}, {"cni0", "flannel or another bridge"}, {"cali", "Calico"}, {"vxlan.calico", "Calico"},
	{"cilium_", "Cilium"}, {"lxc_health", "Cilium"}, {"kube-bridge", "kube-router"}, {"weave", "Weave"}, {"antrea-gw", "Antrea"},
}

// checkNetworks looks for other networks: their files, devices and tunnels.
func checkNetworks(f *Facts) (string, []Finding) {
	var out []Finding
	var seen []string
	entries, _ := fs.ReadDir(f.Files, plan.CNIConfDir[1:]) // no directory, no file
	for _, e := range entries {
		name := e.Name()
		known := slices.Contains([]string{".conflist", ".conf", ".json"}, path.Ext(name))
		if e.IsDir() || !known || strings.HasPrefix(name, ".") || name == plan.CNIConflist {
			continue
		}
		seen = append(seen, name)
		if name < plan.CNIConflist {
			out = append(out, found(health.OtherNetworkFirst, "%s/%s sorts before %s", plan.CNIConfDir, name, plan.CNIConflist))
		} else {
			out = append(out, found(health.OtherNetworkLeft, "%s/%s is of another network", plan.CNIConfDir, name))
		}
	}
	told := map[string]bool{}
	for _, l := range f.Links {
		if l.Kind == plan.LinkVXLAN && l.Name != plan.VXLANLink && l.VNI == api.DefaultVNI && l.Port == api.DefaultVXLANPort {
			out = append(out, found(health.VXLANTaken, "%s has identifier %d on UDP port %d", l.Name, l.VNI, l.Port))
		}
		for _, o := range others {
			if strings.HasPrefix(l.Name, o.prefix) && !told[o.network] {
				told[o.network] = true
				seen = append(seen, l.Name)
				out = append(out, found(health.OtherNetworkLeft, "the device %s is that of %s", l.Name, o.network))
			}
		}
	}
	if len(seen) == 0 {
		return "no other", out
	}
	return strings.Join(seen, ", "), out
}
