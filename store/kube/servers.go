package kube

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/twill-net/twill/process"
)

// location is an address of the API server.
type location struct {
	url  string
	from string // where it was found
}

// servers are the addresses of the API server that a pod knows, best first. Those
// that do not answer are tried in turn.
//
// The address that a pod is given is a cluster IP, to which no packet gets before
// kube-proxy or an agent translates it. The kubelet has one that works without.
type servers struct {
	log *slog.Logger
	all []location
	way http.RoundTripper // to any of them

	mu      sync.Mutex
	current int
	silent  map[int]bool // did not answer the last request
	reached bool
}

// usualKubeconfigs are where kubelets have their kubeconfigs that are not processes
// of their own: kubeadm, the clouds, k3s, RKE2, k0s and MicroK8s.
var usualKubeconfigs = []string{
	"/etc/kubernetes/kubelet.conf", "/var/lib/kubelet/kubeconfig", "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
	"/var/lib/rancher/rke2/agent/kubelet.kubeconfig", "/var/lib/k0s/kubelet.conf", "/var/snap/microk8s/current/credentials/kubelet.config",
}

// findServers looks for addresses of the API server beside the one that this pod was
// given, and logs what it found. files is the root file system, whose /proc has the
// node's processes if the pod shares them (hostPID).
func findServers(given string, files fs.FS, log *slog.Logger) *servers {
	s := &servers{log: log, silent: map[int]bool{}}
	found, tried := kubeletsServers(files)
	s.all = append(found, location{given, "KUBERNETES_SERVICE_HOST, which works once Services do"})
	for i, one := range s.all {
		log.Info("an address of the API server", "order", i+1, "address", one.url, "from", one.from)
	}
	if len(found) == 0 {
		log.Info("no kubelet's kubeconfig was found; TWILL_API_SERVER sets an address that works before Services do", "looked", tried)
	}
	return s
}

// kubeletsServers are the API servers of this node's kubelet. Without one, tried says
// where it looked.
func kubeletsServers(files fs.FS) (found []location, tried []string) {
	try := func(root, file string) {
		at := path.Join(root, file)
		url, err := serverOf(files, at)
		if err != nil {
			tried = append(tried, file+": "+err.Error())
			return
		}
		found = append(found, location{url, "the kubelet's kubeconfig " + file})
	}
	kubelets := process.Running(files, "kubelet")
	for _, k := range kubelets {
		if file := k.Flag("--kubeconfig", "-kubeconfig"); path.IsAbs(file) {
			try("proc/"+k.PID+"/root", file)
		}
	}
	if len(found) > 0 {
		return found[:1], nil
	}
	if len(kubelets) == 0 {
		tried = append(tried, "no process kubelet")
	}
	for _, root := range hostRoots(files) {
		for _, file := range usualKubeconfigs {
			if try(root, file); len(found) > 0 {
				return found, nil
			}
		}
	}
	return nil, tried
}

// hostRoots are where the node's file system is: that of its first process, if it is
// of this node and not of another in a lab on the same machine, and this pod's own.
func hostRoots(files fs.FS) []string {
	if self, err := fs.ReadLink(files, "proc/self"); err == nil && self == "1" {
		return []string{""} // the processes are this pod's own
	}
	own, err := fs.ReadLink(files, "proc/self/ns/net")
	if first, other := fs.ReadLink(files, "proc/1/ns/net"); err == nil && other == nil && first == own {
		return []string{"proc/1/root", ""}
	}
	return []string{""}
}

// serverOf is the API server of a kubeconfig's current context.
func serverOf(files fs.FS, file string) (string, error) {
	text, err := fs.ReadFile(files, strings.TrimPrefix(file, "/"))
	if err != nil {
		var wrapped *fs.PathError
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return "", err
	}
	config, err := clientcmd.Load(text)
	if err != nil {
		return "", errors.New("not a kubeconfig")
	}
	current, ok := config.Contexts[config.CurrentContext]
	if !ok || config.Clusters[current.Cluster] == nil || config.Clusters[current.Cluster].Server == "" {
		return "", errors.New("its current context has no server")
	}
	return config.Clusters[current.Cluster].Server, nil
}

// wrap leads requests to the server that answers.
func (s *servers) wrap(way http.RoundTripper) http.RoundTripper {
	s.way = way
	return s
}

// RoundTrip implements http.RoundTripper.
func (s *servers) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	at := s.current
	s.mu.Unlock()
	to, err := s.redirect(r, at)
	if err != nil {
		return nil, err
	}
	answer, err := s.way.RoundTrip(to)
	switch {
	case err == nil:
		s.answered(at)
	case !errors.Is(err, context.Canceled):
		s.failed(at, err)
	}
	return answer, err
}

// redirect is the request for the first server as one for another.
func (s *servers) redirect(r *http.Request, at int) (*http.Request, error) {
	if at == 0 {
		return r, nil
	}
	first, err := url.Parse(s.all[0].url)
	if err != nil {
		return nil, err
	}
	other, err := url.Parse(s.all[at].url)
	if err != nil {
		return nil, err
	}
	to := r.Clone(r.Context())
	to.Host = ""
	to.URL.Scheme, to.URL.Host = other.Scheme, other.Host
	to.URL.Path = strings.TrimSuffix(other.Path, "/") + strings.TrimPrefix(r.URL.Path, strings.TrimSuffix(first.Path, "/"))
	return to, nil
}

func (s *servers) answered(at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reached && !s.silent[at] {
		return
	}
	s.reached = true
	clear(s.silent)
	s.log.Info("the API server answers", "address", s.all[at].url)
}

func (s *servers) failed(at int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == at {
		s.current = (at + 1) % len(s.all)
	}
	if s.silent[at] {
		return // it was said
	}
	s.silent[at] = true
	s.log.Warn("the API server does not answer", "address", s.all[at].url, "from", s.all[at].from, "error", err, "next", s.all[s.current].url)
}
