package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What one end of a TCP connection tells the other in its first byte.
const (
	modeBulk    = 'b' // the client sends until it closes
	modeRequest = 'r' // each byte is answered by one
	modeConnect = 'c' // one byte is answered by one, and the server closes
)

const (
	trafficPort = 7000
	directPort  = 7001 // see bench.connect
	blockSize   = 128 << 10
)

// traffic is what a client found in one round.
type traffic struct {
	Bytes   int64   `json:"bytes"`
	Count   int64   `json:"count"`   // round trips or connections
	Seconds float64 `json:"seconds"` // wall time
	P50     float64 `json:"p50"`     // µs, of a round trip, or of connect(2)
}

// The programs below use blocking system calls on one thread, which is pinned to
// one processor: what is measured is the kernel's path, not Go's poller, and the
// time of both ends adds up.

func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

func newSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	// The same on every machine, whatever its default; bbr without a pacing
	// queue would measure its timers.
	if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic"); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("use cubic: %w", err)
	}
	return fd, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// serveTraffic answers one connection after the other. It tells when it listens.
func serveTraffic(cpu, port int) error {
	if err := pin(cpu); err != nil {
		return err
	}
	l, err := newSocket()
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(l, &unix.SockaddrInet4{Port: port}); err != nil {
		return err
	}
	if err := unix.Listen(l, 128); err != nil {
		return err
	}
	fmt.Println("ready")
	buffer := make([]byte, blockSize)
	for {
		fd, _, err := unix.Accept(l)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		answer(fd, buffer)
		unix.Close(fd)
	}
}

// answer serves a connection until it ends; that it breaks is its client's news.
func answer(fd int, buffer []byte) {
	if n, err := unix.Read(fd, buffer[:1]); n != 1 || err != nil {
		return
	}
	switch buffer[0] {
	case modeBulk:
		for {
			if n, err := unix.Read(fd, buffer); n <= 0 || err != nil {
				return
			}
		}
	case modeRequest:
		for {
			if n, err := unix.Read(fd, buffer[:1]); n != 1 || err != nil {
				return
			}
			if _, err := unix.Write(fd, buffer[:1]); err != nil {
				return
			}
		}
	case modeConnect:
		_, _ = unix.Write(fd, buffer[:1])
	}
}

// driveTraffic does what each line on its input says, "MODE ADDRESS:PORT
// MILLISECONDS", and prints a traffic for it.
func driveTraffic(cpu int) error {
	if err := pin(cpu); err != nil {
		return err
	}
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) != 3 {
			return fmt.Errorf("unexpected %q", lines.Text())
		}
		to, err := netip.ParseAddrPort(words[1])
		if err != nil {
			return err
		}
		ms, err := strconv.Atoi(words[2])
		if err != nil {
			return err
		}
		t, err := drive(words[0][0], &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}, time.Duration(ms)*time.Millisecond)
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(t); err != nil {
			return err
		}
	}
	return lines.Err()
}

func drive(mode byte, to unix.Sockaddr, length time.Duration) (traffic, error) {
	switch mode {
	case modeBulk:
		return driveBulk(to, length)
	case modeRequest:
		return driveRequests(to, length)
	case modeConnect:
		return driveConnections(to, length)
	}
	return traffic{}, fmt.Errorf("unknown mode %q", mode)
}

func open(mode byte, to unix.Sockaddr) (int, error) {
	fd, err := newSocket()
	if err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, to); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("connect: %w", err)
	}
	if _, err := unix.Write(fd, []byte{mode}); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("write: %w", err)
	}
	return fd, nil
}

func driveBulk(to unix.Sockaddr, length time.Duration) (t traffic, err error) {
	fd, err := open(modeBulk, to)
	if err != nil {
		return t, err
	}
	defer unix.Close(fd)
	block := make([]byte, blockSize)
	start := time.Now()
	for time.Since(start) < length {
		n, err := unix.Write(fd, block)
		if err != nil {
			return t, fmt.Errorf("write: %w", err)
		}
		t.Bytes += int64(n)
	}
	// The server has read all when it closes.
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return t, err
	}
	_, err = unix.Read(fd, block)
	t.Seconds = time.Since(start).Seconds()
	return t, err
}

func driveRequests(to unix.Sockaddr, length time.Duration) (t traffic, err error) {
	fd, err := open(modeRequest, to)
	if err != nil {
		return t, err
	}
	defer unix.Close(fd)
	b := []byte{0}
	var trips times
	for start := time.Now(); t.Seconds < length.Seconds(); {
		began := time.Now()
		if _, err := unix.Write(fd, b); err != nil {
			return t, fmt.Errorf("write: %w", err)
		}
		if n, err := unix.Read(fd, b); n != 1 {
			return t, fmt.Errorf("read: %w", noError(err))
		}
		trips.add(time.Since(began))
		t.Count++
		t.Seconds = time.Since(start).Seconds()
	}
	t.P50 = trips.median()
	return t, nil
}

func driveConnections(to unix.Sockaddr, length time.Duration) (t traffic, err error) {
	b := []byte{modeConnect}
	var connects times
	for start := time.Now(); t.Seconds < length.Seconds(); {
		fd, err := newSocket()
		if err != nil {
			return t, err
		}
		began := time.Now()
		if err := unix.Connect(fd, to); err != nil {
			return t, fmt.Errorf("connect: %w", err)
		}
		connects.add(time.Since(began))
		if _, err := unix.Write(fd, b); err != nil {
			return t, fmt.Errorf("write: %w", err)
		}
		if n, err := unix.Read(fd, b); n != 1 {
			return t, fmt.Errorf("read: %w", noError(err))
		}
		// The server closes first, so that its side keeps the closed
		// connections and this side's ports stay free.
		if n, err := unix.Read(fd, make([]byte, 1)); n != 0 {
			return t, fmt.Errorf("wait for the end: %w", noError(err))
		}
		b[0] = modeConnect
		unix.Close(fd)
		t.Count++
		t.Seconds = time.Since(start).Seconds()
	}
	t.P50 = connects.median()
	return t, nil
}

func noError(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// times counts durations in steps of 0.01 µs, so that noting one costs nothing.
type times struct {
	counts [100000]uint32 // the last one: all that is longer
	n      uint32
}

func (t *times) add(d time.Duration) {
	t.counts[min(int(d/10), len(t.counts)-1)]++
	t.n++
}

func (t *times) median() float64 {
	var below uint32
	for i, c := range t.counts {
		if below += c; 2*below >= t.n {
			return float64(i) / 100
		}
	}
	return 0
}

// cpuTime is the processor time of a process in seconds, of all its threads.
func cpuTime(pid int) (float64, error) {
	var t unix.Timespec
	// The clock of another process, as clock_getcpuclockid(3) makes its number:
	// the complement of the pid, and CPUCLOCK_SCHED.
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0, fmt.Errorf("processor time of %d: %w", pid, err)
	}
	return float64(t.Nano()) / 1e9, nil
}

// softirqTime is the processor time of the thread that handles packets of a
// processor when that is busy. Where it can't be seen it is 0.
func softirqTime(cpu int) float64 {
	for pid := range 100 {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || strings.TrimSpace(string(name)) != fmt.Sprintf("ksoftirqd/%d", cpu) {
			continue
		}
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", pid))
		first, _, _ := strings.Cut(string(text), " ")
		ns, _ := strconv.ParseFloat(first, 64)
		return ns / 1e9
	}
	return 0
}

// addrOf is the n-th address after a base.
func addrOf(base string, n int) netip.Addr {
	a := netip.MustParseAddr(base).As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(a[:])+uint32(n))))
}
