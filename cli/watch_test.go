package cli

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// printed is what a running command has printed so far.
type printed struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *printed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *printed) take() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := p.text.String()
	p.text.Reset()
	return text
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerminal()
		term.output(nil, "apply", "-f", "testdata/cluster.yaml")
		ctx, cancel := context.WithCancel(t.Context())
		var out printed
		code := make(chan int, 1)
		go func() {
			code <- term.run(ctx, &out, &out, nil, "get", "pods", "-n", "policy-demo", "-l", "app=nginx", "-w")
		}()

		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if diff := cmp.Diff(want, out.take()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		}
		expect("NAME      IP                       NODE     AGE\n" +
			"nginx-1   10.244.0.5,fd00:244::5   node01   5m\n" +
			"nginx-2   10.244.1.5               node02   5m\n")
		term.output(nil, "label", "pod", "access", "app=nginx", "-n", "policy-demo")
		expect("access    10.244.1.6               node02   5m\n")
		term.output(nil, "label", "pod", "access", "app-", "-n", "policy-demo")
		expect("access    10.244.1.6               node02   <deleted>\n")
		term.output(nil, "delete", "pod", "nginx-1", "-n", "policy-demo")
		expect("nginx-1   10.244.0.5,fd00:244::5   node01   <deleted>\n")
		cancel()
		if got := <-code; got != ExitOK {
			t.Errorf("exit %d", got)
		}
	})
}

func TestWatchNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		term := newTerminal()
		term.output(nil, "create", "namespace", "a")
		ctx, cancel := context.WithCancel(t.Context())
		second := &terminal{store: term.store}
		var out, events printed
		done := make(chan int, 2)
		go func() { done <- term.run(ctx, &out, &out, nil, "get", "ns", "-w", "-o", "name") }()
		go func() { done <- second.run(ctx, &events, &events, nil, "get", "ns", "-w", "-o", "json") }()
		synctest.Wait()
		term.output(nil, "create", "namespace", "b")
		term.output(nil, "delete", "ns", "a")
		synctest.Wait()
		cancel()
		<-done
		<-done
		if got, want := out.take(), "namespace/a\nnamespace/b\nnamespace/a deleted\n"; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		var types []string
		for line := range strings.Lines(events.take()) {
			types = append(types, line[strings.LastIndex(line, `"type"`):])
		}
		want := []string{"\"type\":\"put\"}\n", "\"type\":\"put\"}\n", "\"type\":\"deleted\"}\n"}
		if diff := cmp.Diff(want, types); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}
