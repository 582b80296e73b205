package lab

import (
	"context"
	"fmt"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/twill-net/twill/lab/space"
)

// Reboot takes from a node of Kubernetes what a machine loses with its power, and
// starts its runtime and kubelet again.
func (v *service) Reboot(name string, _ *Nothing) error {
	n, err := v.s.node(name)
	switch {
	case err != nil:
		return err
	case v.s.kubernetes == nil:
		return fmt.Errorf("%s can't be rebooted: only nodes of a lab with Kubernetes can", name)
	case n == v.s.nodes[0]:
		return fmt.Errorf("%s can't be rebooted: etcd's data would be lost; take another node", name)
	}
	if err := v.s.powerOff(n); err != nil {
		return fmt.Errorf("reboot %s: %w", name, err)
	}
	if err := v.s.boot(n); err != nil {
		return fmt.Errorf("reboot %s: %w", name, err)
	}
	return v.s.kubernetes.startKubelets(context.Background(), []*node{n})
}

// powerOff ends all processes of a node. What they had of the kernel goes with
// them, in the end.
func (s *supervisor) powerOff(n *node) error {
	for _, p := range []*process{n.kubelet, n.runtime} {
		if !p.status().Running {
			continue
		}
		if err := p.end(syscall.SIGKILL, stopPatience); err != nil {
			return err
		}
	}
	return killAll(s.cfg.Name+"/"+n.name, killPatience)
}

// boot gives a node a new network, /run and /sys, and nothing that was mounted by
// its programs. What is on disk is as it was.
func (s *supervisor) boot(n *node) error {
	err := s.hub.Do(func() error { // the old one may take a while to go by itself
		port, err := netlink.LinkByName(n.name)
		if err != nil {
			return err
		}
		return netlink.LinkDel(port)
	})
	if err != nil {
		return err
	}
	if err := n.space.Renew(); err != nil {
		return err
	}
	if err := plug(&s.cfg, s.hub, n.space, n.name, firstNode+slices.Index(s.nodes, n)); err != nil {
		return err
	}
	err = n.space.Do(func() error {
		for _, dir := range []string{kubeletDir, containerdDir} {
			if err := space.UnmountBelow(dir); err != nil {
				return err
			}
		}
		for _, dir := range []string{"/run", "/sys"} {
			if err := space.Unmount(dir); err != nil {
				return err
			}
		}
		if err := n.furniture.run(); err != nil {
			return err
		}
		if err := seeCgroups(); err != nil {
			return err
		}
		return space.Share()
	})
	if err != nil {
		return err
	}
	return s.kubernetes.configureKubelet(n)
}
