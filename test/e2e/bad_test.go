package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twill-net/twill/lab"
	"github.com/twill-net/twill/test/golden"
	"github.com/twill-net/twill/test/testlab"
)

// badInput is the golden file of what is answered to bad input, in blocks: the
// door by which it comes in, the input as Go quotes it, and the answer.
const badInput = "testdata/bad-input.story"

// TestBadInput: whatever comes in at a door of the house, the answer is the one of
// the golden file, which says what is wrong, and nothing else is changed by it: the
// node has what it had, its agent is the same, and pods come and go.
func TestBadInput(t *testing.T) {
	needPrograms(t)
	h := newBadHouse(t)
	text, err := os.ReadFile(badInput)
	if err != nil {
		t.Fatal(err)
	}
	rows := strings.Split(strings.TrimSpace(string(text)), "\n\n")
	if len(rows) < 60 {
		t.Errorf("%d rows, want at least 60", len(rows))
	}
	var got []string
	for _, row := range rows {
		door, rest, _ := strings.Cut(row, " ")
		input, _, _ := strings.Cut(rest, "\n")
		answer := h.doors()[door]
		if answer == nil {
			t.Fatalf("there is no door %q", door)
		}
		said := strings.TrimSpace(h.fixed(answer(t, input)))
		if strings.Contains(said, "panic") || strings.Contains(said, "goroutine ") || said == "" {
			t.Errorf("%s %s: %q", door, input, said)
		}
		got = append(got, door+" "+input+"\n"+said)
	}
	out := strings.Join(got, "\n\n") + "\n"
	golden.Check(t, badInput, out)
	h.unharmed(t)
}

// badHouse is a cluster that bad input is given to.
type badHouse struct {
	*churn
	node   *churnNode
	store  *clientv3.Client
	before map[string][]string
	agent  int
}

func newBadHouse(t *testing.T) *badHouse {
	t.Helper()
	h := &badHouse{churn: newChurn(t), before: map[string][]string{}}
	h.node = h.nodes[0]
	var err error
	h.store, err = clientv3.New(clientv3.Config{Endpoints: []string{lab.EtcdEndpoint(h.Config.Name)}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.store.Close() })
	for _, n := range h.nodes {
		h.before[n.node] = h.has(t, n)
	}
	h.agent = h.agentPID(t, h.node)
	return h
}

// doors are the ways in, by what each makes of a line.
func (h *badHouse) doors() map[string]func(*testing.T, string) string {
	return map[string]func(*testing.T, string) string{
		"twill": h.twillDoor, "twill-lab": h.labDoor, "manifest": h.manifestDoor, "store": h.storeDoor,
		"cni": h.cniDoor, "socket": h.socketDoor, "control": h.controlDoor, "journal": h.journalDoor,
	}
}

// fixed is an answer without what differs from run to run.
func (h *badHouse) fixed(answer string) string {
	return strings.NewReplacer(h.Config.Name, "LAB", h.node.socket, "SOCKET", h.node.task, "TASK").Replace(answer)
}

// ran is what a program says, and its exit code.
func ran(cmd *exec.Cmd) string {
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err.Error()
	}
	return fmt.Sprintf("%s[exit %d]", out, cmd.ProcessState.ExitCode())
}

func (h *badHouse) twillDoor(_ *testing.T, line string) string {
	return ran(exec.Command(filepath.Join(h.Config.Executables, "twill"), append([]string{"--lab", h.Config.Name}, strings.Fields(line)...)...))
}

func (h *badHouse) labDoor(_ *testing.T, line string) string {
	words := strings.Fields(strings.ReplaceAll(line, "LAB", h.Config.Name))
	return ran(exec.Command(filepath.Join(h.Config.Executables, "twill-lab"), words...))
}

func (h *badHouse) manifestDoor(_ *testing.T, line string) string {
	cmd := exec.Command(filepath.Join(h.Config.Executables, "twill"), "--lab", h.Config.Name, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(line, `\n`, "\n"))
	return ran(cmd)
}

// cniDoor executes twill-cni: the words are variables, and after -- comes the
// configuration, for which {} stands for a good one.
func (h *badHouse) cniDoor(_ *testing.T, line string) string {
	variables, config, _ := strings.Cut(line, " -- ")
	good := `"cniVersion":"1.1.0","name":"runtime","type":"twill-cni","socket":"` + h.node.socket + `"`
	cmd := exec.Command(h.node.executable)
	cmd.Stdin = strings.NewReader(strings.NewReplacer("{+", "{"+good+",", "{}", "{"+good+"}").Replace(config))
	cmd.Env = []string{"CNI_CONTAINERID=bad", "CNI_IFNAME=eth0", "CNI_NETNS=/run/netns/none", "CNI_PATH=/opt/cni/bin"}
	for _, v := range strings.Fields(variables) {
		cmd.Env = append(cmd.Env, "CNI_"+v)
	}
	return strings.Join(strings.Fields(ran(cmd)), " ")
}

// socketDoor sends bytes to the agent.
func (h *badHouse) socketDoor(t *testing.T, line string) string {
	answer := h.say(t, h.node.socket, unquote(t, line))
	if len(answer) < 5 || int(binary.BigEndian.Uint32(answer)) != len(answer)-4 {
		return fmt.Sprintf("no frame: %q", answer)
	}
	return fmt.Sprintf("%s [exit %d]", strings.Join(strings.Fields(string(answer[5:])), " "), answer[4])
}

// controlDoor sends bytes to the lab's supervisor, which hangs up.
func (h *badHouse) controlDoor(t *testing.T, line string) string {
	socket := filepath.Join(filepath.Dir(filepath.Dir(lab.LogPath(h.Config.Name, "etcd"))), "sock")
	answer := h.say(t, socket, unquote(t, line))
	if _, err := h.Status(); err != nil {
		t.Errorf("the lab does not answer any more: %v", err)
	}
	if len(answer) > 0 {
		return "answered"
	}
	return "hung up"
}

func (h *badHouse) say(t *testing.T, socket string, what []byte) []byte {
	t.Helper()
	conn, err := net.DialTimeout("unix", socket, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(what); err == nil {
		_ = conn.(*net.UnixConn).CloseWrite()
	}
	answer, _ := io.ReadAll(conn)
	return answer
}

func unquote(t *testing.T, line string) []byte {
	t.Helper()
	var text string
	if _, err := fmt.Sscanf(line, "%q", &text); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return []byte(text)
}

// storeDoor puts a value under a key of ours, and asks for that kind of objects.
// Then the value is taken away.
func (h *badHouse) storeDoor(t *testing.T, line string) string {
	key, value, _ := strings.Cut(line, " ")
	if _, err := h.store.Put(t.Context(), key, string(unquote(t, value))); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := h.store.Delete(t.Context(), key); err != nil {
			t.Error(err)
		}
	}()
	// What the agents make of it is what packets meet with.
	h.expect(t, "node/node01 -> a:80", "a -> b:80")
	kind := strings.Split(key, "/")[4]
	out := h.twillDoor(t, "get "+strings.NewReplacer("workloadendpoints", "pods").Replace(kind)+" -A -o name")
	var said []string
	for l := range strings.Lines(out) {
		if strings.HasPrefix(l, "error") || strings.HasPrefix(l, "warning") || strings.HasPrefix(l, "[exit") {
			said = append(said, l)
		}
	}
	return strings.Join(said, "")
}

// journalDoor changes the journal of an agent that does not run, and starts it.
func (h *badHouse) journalDoor(t *testing.T, line string) string {
	path := filepath.Join(h.node.task, "root/var/lib/twill/ipam.journal")
	control := func(a lab.Action) error { return h.Control(lab.ControlRequest{Node: h.node.node, Action: a}) }
	if err := control(lab.Kill); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch line {
	case "empty":
		text = nil
	case "cut off":
		text = text[:20] // in its first line; a last line that is not whole was never confirmed
	case "one bit is flipped":
		text[20] ^= 1
	case "garbage":
		text = bytes.Repeat([]byte{0xff, 0, '\n'}, 1000)
	default:
		t.Fatalf("there is no way %q to damage a journal", line)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := control(lab.Start); err != nil {
		return err.Error()
	}
	h.agent = h.agentPID(t, h.node)
	var out string
	testlab.Eventually(t, patience, func() error {
		if out = h.twillDoor(t, "describe node "+h.node.node); !strings.Contains(out, "JournalRebuilt") {
			return fmt.Errorf("nothing is said of the journal:\n%s", out)
		}
		return nil
	})
	for l := range strings.Lines(out) {
		if strings.Contains(l, "JournalRebuilt") {
			_, detail, _ := strings.Cut(l, " JournalRebuilt ")
			before, _, _ := strings.Cut(strings.TrimSpace(detail), " as ")
			return before
		}
	}
	return out
}

// unharmed checks that the house is as it was, and works.
func (h *badHouse) unharmed(t *testing.T) {
	t.Helper()
	if now := h.agentPID(t, h.node); now != h.agent {
		t.Errorf("the agent is another process: %d, and was %d", now, h.agent)
	}
	s, err := newSandbox("good", "good")
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if _, err := h.node.add(s, 0, nil); err != nil {
		t.Errorf("a pod can't be attached any more: %v", err)
	}
	if _, err := h.node.call("DEL", s, 0, nil); err != nil {
		t.Error(err)
	}
	h.nothingLeft(t, h.before)
}
