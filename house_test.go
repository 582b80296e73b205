// Package twill has no code: it is where the tests of the house as a whole live:
// who may import whom, and that every package says what it is for.
package twill

import (
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/twill-net/twill/"

// floors are the rooms from the bottom up. A room may import rooms of lower
// floors, and those of its own floor that are named with it in neighbours.
var floors = [][]string{
	{"api", "health", "deploy", "process"},
	{"policy", "fabric", "service", "ipam", "store"},
	{"plan", "controller", "install"},
	{"dataplane", "trace", "preflight"},
	{"cli", "cni"},
	{"agent", "lab"},
	{"cmd", "hack", "test"},
}

// neighbours are imports within a floor that are meant.
var neighbours = map[string][]string{
	"ipam":      {"store"},     // blocks are claimed in it
	"preflight": {"dataplane"}, // by which the kernel is tried
}

// pure rooms compute and do nothing else: what they may not reach, even through
// others.
var pure = map[string][]string{
	"policy":  notPure,
	"fabric":  notPure,
	"service": notPure,
	"plan":    notPure,
}

var notPure = []string{"os/exec", "github.com/vishvananda/netlink", "github.com/google/nftables", "go.etcd.io/etcd/client/v3", "k8s.io/client-go"}

// binaries may not contain these packages.
var binaries = map[string][]string{
	"cmd/twill":     {"go.etcd.io/etcd/server/v3/embed", module + "lab"},
	"cmd/twill-cni": {"net/http", "k8s.io/api/core/v1", "github.com/spf13/cobra", module + "api", module + "store"},
}

type listed struct {
	ImportPath string
	Dir        string
	Imports    []string
	Deps       []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,Deps", "./...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []listed
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func room(importPath string) string {
	path, ok := strings.CutPrefix(importPath, module)
	if !ok {
		return ""
	}
	return strings.SplitN(path, "/", 2)[0]
}

func floor(room string) int {
	return slices.IndexFunc(floors, func(rooms []string) bool { return slices.Contains(rooms, room) })
}

func TestLowerFloorsNeverImportHigherOnes(t *testing.T) {
	for _, p := range packages(t) {
		from := room(p.ImportPath)
		if from == "" {
			continue
		}
		if floor(from) < 0 {
			t.Errorf("%s is on no floor: add it to the table here and in ARCHITECTURE.md", from)
		}
		for _, imported := range p.Imports {
			to := room(imported)
			if to == "" || to == from || slices.Contains(neighbours[from], to) {
				continue
			}
			if floor(to) >= floor(from) {
				t.Errorf("%s imports %s, which is not on a lower floor", p.ImportPath, imported)
			}
		}
	}
}

func TestPureRoomsReachNoKernelAndNoNetwork(t *testing.T) {
	for _, p := range packages(t) {
		for _, banned := range pure[room(p.ImportPath)] {
			if slices.Contains(p.Deps, banned) {
				t.Errorf("%s depends on %s: planning is pure", p.ImportPath, banned)
			}
		}
	}
}

func TestBinariesStaySmall(t *testing.T) {
	for _, p := range packages(t) {
		path, _ := strings.CutPrefix(p.ImportPath, module)
		for _, banned := range binaries[path] {
			if slices.Contains(p.Deps, banned) {
				t.Errorf("%s contains %s", path, banned)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		files, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			found = found || f.Doc != nil
		}
		if !found {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestRoomsAreInTheArchitecture keeps ARCHITECTURE.md's list of rooms complete.
func TestRoomsAreInTheArchitecture(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages(t) {
		path, ok := strings.CutPrefix(p.ImportPath, module)
		if ok && !strings.Contains(string(text), "`"+path+"`") {
			t.Errorf("ARCHITECTURE.md does not mention `%s`", path)
		}
	}
}
