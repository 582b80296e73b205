package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twill-net/twill/lab"
)

const policyManifest = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: access-nginx
  namespace: policy-demo
spec:
  podSelector:
    matchLabels:
      app: nginx
  ingress:
  - from:
    - podSelector:
        matchLabels:
          run: access
`

var policySteps = []step{
	{
		"NetworkPolicy access-nginx: only pods labelled run=access get to nginx",
		"pod access still gets in; pod other did, and no longer does",
		(*story).policy,
	},
	{
		"Why?",
		"twill trace says who is let in by which policy, and who is not and why",
		(*story).trace,
	},
}

func (s *story) policy(ctx context.Context) (string, error) {
	if err := s.run(lab.RunRequest{Namespace: demoNamespace, Name: "other", Node: "master", Labels: map[string]string{"run": "other"}}); err != nil {
		return "", err
	}
	before, err := s.page(ctx, s.place("other"), serviceName)
	if err != nil {
		return "", fmt.Errorf("before the policy: %w", err)
	}
	seen := "before  " + before.String()
	if _, err := s.twill(ctx, policyManifest, "apply", "-f", "-"); err != nil {
		return seen, err
	}
	// A connection that is refused by policy meets silence.
	if _, err := eventually(ctx, 5*time.Second, func() error { return s.denied(ctx, "other") }); err != nil {
		return seen, err
	}
	seen += "\nafter   from other: no answer from http://nginx within 0.3 s"
	after, err := s.page(ctx, s.place("access"), serviceName)
	if err != nil {
		return seen, fmt.Errorf("pod access: %w", err)
	}
	return seen + "\n        " + after.String(), nil
}

// denied succeeds if the pod gets no answer from the service.
func (s *story) denied(ctx context.Context, pod string) error {
	_, err := s.at(ctx, s.place(pod), "wget", "-q", "-T", "0.3", "-O", "-", "http://"+serviceName)
	var failed *commandError
	switch {
	case err == nil:
		return fmt.Errorf("pod %s still gets in", pod)
	case errors.As(err, &failed) && strings.Contains(failed.said, "timed out"):
		return nil
	}
	return err
}

func (s *story) trace(ctx context.Context) (string, error) {
	var seen strings.Builder
	for _, c := range []struct{ pod, verdict string }{{"access", "is allowed"}, {"other", "is denied"}} {
		told, err := s.twill(ctx, "", "trace", "-n", demoNamespace, c.pod, "nginx:80")
		fmt.Fprintf(&seen, "$ twill trace -n policy-demo %s nginx:80\n%s", c.pod, told)
		if err != nil {
			return seen.String(), err
		}
		_, verdict, _ := strings.Cut(told, "\nverdict ")
		if !strings.Contains(verdict, c.verdict) || !strings.Contains(verdict, "access-nginx") {
			return seen.String(), fmt.Errorf("the verdict does not say that pod %s %s because of access-nginx", c.pod, c.verdict)
		}
	}
	return seen.String(), nil
}
