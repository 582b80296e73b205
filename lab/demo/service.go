package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/twill-net/twill/api"
	"github.com/twill-net/twill/lab"
)

const (
	demoNamespace = "policy-demo"
	serviceName   = "nginx"
	// fetches are enough that a balancer that works leaves no endpoint out: of
	// two, by chance, once in a million runs.
	fetches = 20
)

const serviceManifest = `apiVersion: v1
kind: Service
metadata:
  name: nginx
  namespace: policy-demo
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector:
    app: nginx
  ports:
  - name: http
    port: 80
  - name: echo
    port: 80
    protocol: UDP
`

var serviceSteps = []step{
	{
		"A service with two pods, by name",
		"pod access fetches http://nginx and meets both pods",
		(*story).service,
	},
	{
		"A pod is deleted",
		"the service's endpoints follow; no fetch fails",
		(*story).endpointsFollow,
	},
	{
		"Node port, from a client outside the cluster",
		"each of the three nodes leads to the service",
		(*story).nodePort,
	},
}

func (s *story) service(ctx context.Context) (string, error) {
	for name, node := range map[string]string{"nginx-1": "node01", "nginx-2": "node02"} {
		if err := s.run(lab.RunRequest{Namespace: demoNamespace, Name: name, Node: node, Labels: map[string]string{"app": "nginx"}}); err != nil {
			return "", err
		}
	}
	if err := s.run(lab.RunRequest{Namespace: demoNamespace, Name: "access", Node: "master", Labels: map[string]string{"run": "access"}}); err != nil {
		return "", err
	}
	if _, err := s.twill(ctx, serviceManifest, "apply", "-f", "-"); err != nil {
		return "", err
	}
	took, err := eventually(ctx, 5*time.Second, func() error {
		_, err := s.page(ctx, s.place("access"), "nginx")
		return err
	})
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("twill apply: first answer %.2f s later", took.Seconds())
	counts, err := s.fetchAll(ctx)
	seen += "\n" + counts.String()
	if err == nil && len(counts) != 2 {
		err = errors.New("not both pods were met")
	}
	return seen, err
}

// tally is how many pages came from which pod.
type tally map[string]int

func (t tally) String() string {
	var words []string
	total := 0
	for _, name := range []string{"nginx-1", "nginx-2", "nginx-3"} {
		if n := t[name]; n > 0 {
			words = append(words, fmt.Sprintf("%s %d times", name, n))
			total += n
		}
	}
	return fmt.Sprintf("access fetched http://nginx %d times: %s", total, strings.Join(words, ", "))
}

// fetchAll fetches the service's page many times.
func (s *story) fetchAll(ctx context.Context) (tally, error) {
	// One shell instead of many commands, which would each take longer to
	// start than to answer.
	script := fmt.Sprintf("for i in $(seq %d); do wget -q -T 2 -O - http://%s || exit 1; done", fetches, serviceName)
	text, err := s.at(ctx, s.place("access"), "sh", "-c", script)
	t := tally{}
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "name:"); ok {
			t[strings.TrimSpace(name)]++
		}
	}
	return t, err
}

func (s *story) endpointsFollow(ctx context.Context) (string, error) {
	if _, err := s.client.Remove(lab.RemoveRequest{Namespace: demoNamespace, Names: []string{"nginx-1"}}); err != nil {
		return "", err
	}
	took, err := s.awaitEndpoints(ctx, s.pods["nginx-2"])
	if err != nil {
		return "", err
	}
	seen := fmt.Sprintf("nginx-1 is removed: endpoints follow in %.2f s", took.Seconds())
	counts, err := s.fetchAll(ctx)
	seen += "\n" + counts.String()
	if err != nil {
		return seen, err
	}
	if counts["nginx-2"] != fetches {
		return seen, errors.New("not all pages came from nginx-2")
	}
	if err := s.run(lab.RunRequest{Namespace: demoNamespace, Name: "nginx-3", Node: "node01", Labels: map[string]string{"app": "nginx"}}); err != nil {
		return seen, err
	}
	took, err = s.awaitEndpoints(ctx, s.pods["nginx-2"], s.pods["nginx-3"])
	return seen + fmt.Sprintf("\nnginx-3 is added: endpoints follow in %.2f s", took.Seconds()), err
}

// awaitEndpoints waits until the store names exactly these pods as the
// service's endpoints, and access meets all of them.
func (s *story) awaitEndpoints(ctx context.Context, pods ...lab.PodStatus) (time.Duration, error) {
	st, err := s.client.Store(ctx)
	if err != nil {
		return 0, err
	}
	defer st.Close()
	want := map[string]bool{}
	for _, p := range pods {
		want[p.Address().String()] = true
	}
	return eventually(ctx, 5*time.Second, func() error {
		list, err := st.List(ctx, api.EndpointSliceKind, demoNamespace)
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for _, obj := range list.Items {
			slice := obj.(*discoveryv1.EndpointSlice)
			if slice.Labels[discoveryv1.LabelServiceName] != serviceName || slice.AddressType != discoveryv1.AddressTypeIPv4 {
				continue
			}
			for _, e := range slice.Endpoints {
				have[e.Addresses[0]] = true
			}
		}
		for a := range want {
			if !have[a] {
				return fmt.Errorf("%s is not an endpoint", a)
			}
		}
		if len(have) != len(want) {
			return fmt.Errorf("there are %d endpoints instead of %d", len(have), len(want))
		}
		return nil
	})
}

func (s *story) nodePort(ctx context.Context) (string, error) {
	st, err := s.client.Store(ctx)
	if err != nil {
		return "", err
	}
	defer st.Close()
	obj, err := st.Get(ctx, api.ServiceKind, api.Key{Namespace: demoNamespace, Name: serviceName})
	if err != nil {
		return "", err
	}
	port := obj.(*corev1.Service).Spec.Ports[0].NodePort
	if port == 0 {
		return "", errors.New("the service got no node port")
	}
	var seen []string
	for i := range s.cfg.Nodes {
		for _, a := range s.client.Config.NodeAddresses(i) {
			address := fmt.Sprintf("%s:%d", url(a), port)
			p, err := s.page(ctx, lab.Outside(), address)
			if err != nil {
				return strings.Join(seen, "\n"), err
			}
			seen = append(seen, fmt.Sprintf("http://%s: answered by %s on %s", address, p.name, p.node))
		}
	}
	return strings.Join(seen, "\n"), nil
}
