// Package load sends requests at a steady rate and counts which were answered:
// the proof that a change of the network lost nothing. It has three kinds of
// traffic: short TCP connections (a new connection for each HTTP request),
// datagrams that are echoed, and one long-lived TCP connection.
//
// It never tries again: what is not answered in time is lost. How long that is
// the caller says: on a busy machine, late is not lost.
package load

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Patience is how long an answer may take where nothing else is said.
const Patience = time.Second

// late is from when on an answer counts as late. A segment of TCP that was lost
// and sent again makes it so (RFC 6298 §2.1), and so does a busy machine.
const late = time.Second

// Kinds of traffic, as the scheme of a target.
const (
	HTTP   = "http"   // a new connection for each request
	UDP    = "udp"    // datagrams to an echo server
	Stream = "stream" // one HTTP connection for all requests
)

// Target is where requests go.
type Target struct {
	Kind    string
	Address string // host:port
}

// ParseTarget reads http://HOST[:PORT], udp://HOST[:PORT] or
// stream://HOST[:PORT]; the port is 80 if it is left out.
func ParseTarget(text string) (Target, error) {
	u, err := url.Parse(text)
	if err != nil {
		return Target{}, fmt.Errorf("target %q: %w", text, err)
	}
	if !slices.Contains([]string{HTTP, UDP, Stream}, u.Scheme) || u.Hostname() == "" {
		return Target{}, fmt.Errorf("target %q: write http://HOST[:PORT], udp://HOST[:PORT] or stream://HOST[:PORT]", text)
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return Target{}, fmt.Errorf("target %q: a path can't be given, only host and port", text)
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	return Target{u.Scheme, net.JoinHostPort(u.Hostname(), port)}, nil
}

// String is the target as ParseTarget reads it.
func (t Target) String() string { return t.Kind + "://" + t.Address }

// Result says what became of the requests to one target.
type Result struct {
	Target   string         `json:"target"`
	Sent     int            `json:"sent"`
	Answered int            `json:"answered"`
	Lost     int            `json:"lost"`
	Late     int            `json:"late"` // answered, and after more than a second
	P50      time.Duration  `json:"p50"`  // nanoseconds, of the answered
	P99      time.Duration  `json:"p99"`
	Slowest  time.Duration  `json:"slowest"`
	Gap      time.Duration  `json:"gap"`               // the longest time without any answer
	Reasons  map[string]int `json:"reasons,omitempty"` // why requests were lost
}

// String is the result on one line.
func (r Result) String() string {
	text := fmt.Sprintf("%s: %d sent, %d answered, %d of them late, %d lost; p50 %s, p99 %s, slowest %s, longest gap %s",
		r.Target, r.Sent, r.Answered, r.Late, r.Lost, round(r.P50), round(r.P99), round(r.Slowest), round(r.Gap))
	for reason, n := range r.Reasons {
		text += fmt.Sprintf("\n  %d × %s", n, reason)
	}
	return text
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// Run sends rate requests a second to each target until ctx ends, waits for
// what is under way, and returns one result for each target, in order. What is
// not answered within patience is lost. An error means that it could not begin.
func Run(ctx context.Context, targets []Target, rate int, patience time.Duration) ([]Result, error) {
	if rate < 1 || rate > 100_000 {
		return nil, fmt.Errorf("rate %d: 1 to 100000 a second", rate)
	}
	if patience <= 0 {
		return nil, fmt.Errorf("patience %s: an answer takes time", patience)
	}
	senders := make([]sender, len(targets))
	for i, t := range targets {
		s, err := newSender(ctx, t, patience)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t, err)
		}
		defer s.close()
		senders[i] = s
	}
	results := make([]Result, len(targets))
	var wait sync.WaitGroup
	for i, t := range targets {
		wait.Go(func() {
			results[i] = drive(ctx, senders[i], rate, patience)
			results[i].Target = t.String()
		})
	}
	wait.Wait()
	return results, nil
}

// sender sends one request and waits for the answer, for at most its patience.
type sender interface {
	request(seq uint64) error
	close()
	// serial tells that a request begins only when the last was answered.
	serial() bool
}

func newSender(ctx context.Context, t Target, patience time.Duration) (sender, error) {
	switch t.Kind {
	case UDP:
		return newDatagrams(ctx, t.Address, patience)
	case Stream:
		return newStream(ctx, t.Address, patience)
	default:
		return newConnections(ctx, t.Address, patience)
	}
}

// drive keeps the rate over the whole time: after a pause of the scheduler it
// catches up, so that sent is rate × time, but for serial senders.
func drive(ctx context.Context, s sender, rate int, patience time.Duration) Result {
	began := time.Now()
	t := tally{patience: patience, last: began}
	var wait sync.WaitGroup
	tick := time.NewTicker(max(time.Second/time.Duration(rate), time.Millisecond))
	defer tick.Stop()
	var sent uint64
	for {
		select {
		case <-ctx.Done():
			wait.Wait()
			return t.result(int(sent))
		case <-tick.C:
		}
		due := uint64(time.Since(began).Seconds() * float64(rate))
		for ; sent < due && ctx.Err() == nil; sent++ {
			seq := sent
			if s.serial() {
				t.one(s, seq)
				continue
			}
			wait.Go(func() { t.one(s, seq) })
		}
		if s.serial() {
			// What came due during a slow answer is left out.
			late := uint64(time.Since(began).Seconds()*float64(rate)) - sent
			began = began.Add(time.Duration(float64(late) / float64(rate) * float64(time.Second)))
		}
	}
}

// tally collects outcomes.
type tally struct {
	patience time.Duration

	mu      sync.Mutex
	last    time.Time // of an answer
	gap     time.Duration
	times   []time.Duration
	reasons map[string]int
}

func (t *tally) one(s sender, seq uint64) {
	began := time.Now()
	err := s.request(seq)
	took := time.Since(began)
	if err == nil && took > t.patience {
		err = fmt.Errorf("answered after more than %s", t.patience)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		t.gap, t.last = max(t.gap, time.Since(t.last)), time.Now()
		t.times = append(t.times, took)
		return
	}
	if t.reasons == nil {
		t.reasons = map[string]int{}
	}
	t.reasons[reason(err, t.patience)]++
}

func (t *tally) result(sent int) Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.Sort(t.times)
	r := Result{Sent: sent, Answered: len(t.times), Lost: sent - len(t.times), Gap: t.gap, Reasons: t.reasons}
	if n := len(t.times); n > 0 {
		r.P50, r.P99, r.Slowest = t.times[n/2], t.times[n*99/100], t.times[n-1]
	}
	for _, took := range slices.Backward(t.times) {
		if took <= late {
			break
		}
		r.Late++
	}
	return r
}
