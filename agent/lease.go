package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/health"
	"github.com/twill-net/twill/store"
)

// leaseDuration is how long an agent may be silent before it counts as gone.
const leaseDuration = 15 * time.Second

// errNameLost ends an agent whose node name another machine holds by now.
var errNameLost = errors.New("the lease of this node's name is another machine's by now")

// identity names a machine, as the holder of a lease: HOST_BOOT.NETNS. The boot and
// the network namespace tell machines apart, copies of one disk too, and stay the
// same when an agent restarts. The host's name is for people.
type identity string

// thisMachine is the identity of the network namespace of the calling thread.
func thisMachine() (identity, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("identify the machine: %w", err)
	}
	network, err := namespaceID("/proc/thread-self/ns/net")
	if err != nil {
		return "", fmt.Errorf("identify the machine: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("identify the machine: %w", err)
	}
	_, inode, _ := strings.Cut(network, ":")
	return identity(fmt.Sprintf("%s_%s.%s", host, strings.TrimSpace(string(boot)), inode)), nil
}

// same says whether two identities are of one machine; its name may have changed.
func (i identity) same(other identity) bool {
	_, a, _ := strings.Cut(string(i), "_")
	_, b, ok := strings.Cut(string(other), "_")
	return ok && a == b
}

// host is the machine's name.
func (i identity) host() string {
	name, _, _ := strings.Cut(string(i), "_")
	return name
}

// sightings remember when something in the store was last seen to change, by this
// machine's clock alone: those of other machines may differ.
type sightings map[string]sighting

type sighting struct {
	value string
	since time.Time
}

// changing says whether the value was seen to change no longer ago than a lease
// lasts. Seeing it for the first time counts.
func (s sightings) changing(name, value string, now time.Time) bool {
	seen, ok := s[name]
	if !ok || seen.value != value {
		seen = sighting{value, now}
		s[name] = seen
	}
	return now.Sub(seen.since) < leaseDuration
}

// living says whether the holder of a lease renews it.
func (s sightings) living(l *coordinationv1.Lease, now time.Time) bool {
	return l.Spec.HolderIdentity != nil && l.Spec.RenewTime != nil &&
		s.changing(l.Name, *l.Spec.HolderIdentity+" "+l.Spec.RenewTime.String(), now)
}

// renewLease takes the lease of the node's name and renews it as long as ctx lasts.
// While another machine holds it, nothing else of this agent begins; an agent that
// loses it ends.
func (a *Agent) renewLease(ctx context.Context) error {
	for held := false; ; {
		began := time.Now()
		holder, err := a.writeLease(ctx)
		if errors.Is(err, store.ErrConflict) { // a contender has just written
			holder, err = a.writeLease(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			a.log.Debug("renew the lease later", "error", err)
		case holder != "" && held:
			return fmt.Errorf("%w: %s has taken it while this agent could not renew it; give one of the two machines another name (--node-name)", errNameLost, holder.host())
		case holder != "":
			a.refuse(holder)
		case !held:
			held = true
			close(a.held)
			if err := a.do(ctx, func() { a.known(ctx, leaseHeld) }); err != nil {
				return nil
			}
		}
		if !a.progress.pause(ctx, a.store, began) {
			return nil
		}
	}
}

// refuse reports that another machine holds the lease of this node's name.
func (a *Agent) refuse(holder identity) {
	detail := fmt.Sprintf("the agent of machine %s (%s) is node %s; this agent, of machine %s (%s), does nothing until that one has been silent for %s",
		holder.host(), holder, a.config.NodeName, a.machine.host(), a.machine, leaseDuration)
	if !a.health.Has(health.NodeNameTaken) {
		a.log.Error("another machine has this node's name", "detail", detail, "remedy", "give one of the two another name: --node-name, or the host's name")
	}
	a.health.Set(health.NodeNameTaken, "", detail)
}

// writeLease renews the lease, or takes it over from a machine that no longer does.
// If a living one holds it, that is returned, and the lease says that this machine
// wants it.
func (a *Agent) writeLease(ctx context.Context) (holder identity, err error) {
	key := api.Key{Namespace: api.LeaseNamespace, Name: api.LeaseName(a.config.NodeName)}
	got, err := a.store.Get(ctx, api.LeaseKind, key)
	if errors.Is(err, store.ErrNotFound) {
		lease := api.LeaseKind.New().(*coordinationv1.Lease)
		lease.Namespace, lease.Name = key.Namespace, key.Name
		a.fillLease(lease)
		_, err = a.store.Create(ctx, lease)
		return "", err
	}
	if err != nil {
		return "", err
	}
	lease := got.(*coordinationv1.Lease).DeepCopy()
	if holder = leaseHolder(lease); a.holdsOff(lease, holder, time.Now()) {
		metav1.SetMetaDataAnnotation(&lease.ObjectMeta, api.ContenderAnnotation, string(a.machine)+" "+time.Now().UTC().Format(time.RFC3339))
	} else {
		holder = ""
		a.noteContender(lease, time.Now())
		a.fillLease(lease)
	}
	_, err = a.store.Update(ctx, lease)
	return holder, err
}

func (a *Agent) fillLease(l *coordinationv1.Lease) {
	holder, seconds, now := string(a.machine), int32(leaseDuration/time.Second), metav1.NowMicro()
	l.Spec = coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &now}
	metav1.SetMetaDataAnnotation(&l.ObjectMeta, api.ProgrammedAnnotation, mustJSON(a.progress.now()))
}

func leaseHolder(l *coordinationv1.Lease) identity {
	if l.Spec.HolderIdentity == nil {
		return ""
	}
	return identity(*l.Spec.HolderIdentity)
}

// holdsOff says whether another machine that lives holds the lease. Of a machine
// with this host's name the clock is trusted: it is this one before a reboot, or a
// copy. Agents before identities wrote the node's name.
func (a *Agent) holdsOff(l *coordinationv1.Lease, holder identity, now time.Time) bool {
	if holder == "" || holder == identity(a.config.NodeName) || holder.same(a.machine) {
		return false
	}
	if l.Spec.RenewTime != nil && holder.host() == a.machine.host() && now.Sub(l.Spec.RenewTime.Time) > leaseDuration {
		return false
	}
	return a.sightings.living(l, now)
}

// noteContender reports a machine that wants the lease, as long as it keeps saying
// so.
func (a *Agent) noteContender(l *coordinationv1.Lease, now time.Time) {
	text, ok := l.Annotations[api.ContenderAnnotation]
	who, _, _ := strings.Cut(text, " ")
	contender := identity(who)
	if !ok || contender.same(a.machine) || !a.sightings.changing(api.ContenderAnnotation, text, now) {
		delete(l.Annotations, api.ContenderAnnotation)
		a.health.Clear(health.NodeNameTaken, "")
		return
	}
	a.health.Set(health.NodeNameTaken, "", fmt.Sprintf("machine %s (%s) wants to be node %s, too; machine %s (%s) is it, and the other one does nothing",
		contender.host(), contender, a.config.NodeName, a.machine.host(), a.machine))
}
