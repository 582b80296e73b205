package twill

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/twill-net/twill/api"
)

// pages are all Markdown files of the tree.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != "." {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		all[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fence is a fenced code block: its language and its lines.
type fence struct {
	language string
	lines    []string
}

func fences(text string) (all []fence, prose string) {
	var out strings.Builder
	var open *fence
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		marker, found := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case found && open == nil:
			open = &fence{language: marker}
		case found:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.lines = append(open.lines, line)
		default:
			out.WriteString(line + "\n")
		}
	}
	return all, out.String()
}

var (
	link       = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	inlineCode = regexp.MustCompile("`[^`]*`")
)

func TestLinksLeadSomewhere(t *testing.T) {
	for path, text := range pages(t) {
		_, prose := fences(text)
		for _, m := range link.FindAllStringSubmatch(inlineCode.ReplaceAllString(prose, "x"), -1) {
			target, _, _ := strings.Cut(m[1], "#")
			if target == "" || strings.Contains(target, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), target)); err != nil {
				t.Errorf("%s: link to %s: %v", path, m[1], err)
			}
		}
	}
}

func TestLinesOfProseAreShort(t *testing.T) {
	for path, text := range pages(t) {
		_, prose := fences(text)
		for line := range strings.Lines(prose) {
			line = strings.TrimSpace(line)
			if len([]rune(line)) > 120 && !strings.HasPrefix(line, "|") {
				t.Errorf("%s: a line has more than 120 characters: %s", path, line)
			}
		}
	}
}

// TestManifestsAreValid decodes what the pages tell people to apply: YAML blocks,
// and documents that are fed to a command.
func TestManifestsAreValid(t *testing.T) {
	found := 0
	for path, text := range pages(t) {
		blocks, _ := fences(text)
		for _, b := range blocks {
			_, documents := script(b.lines)
			if b.language == "yaml" {
				documents = []string{strings.Join(b.lines, "\n")}
			}
			for _, d := range documents {
				if !strings.Contains(d, "apiVersion:") {
					continue
				}
				found++
				_, err := api.Decode([]byte(d), "default")
				if wrong := strings.Contains(d, "# wrong"); wrong && err == nil {
					t.Errorf("%s: this is said to be wrong, and passes:\n%s", path, d)
				} else if !wrong && err != nil {
					t.Errorf("%s: %v\n%s", path, err, d)
				}
			}
		}
	}
	if found == 0 {
		t.Error("no manifest was found")
	}
}

func TestEveryKindIsDescribed(t *testing.T) {
	text := pages(t)["docs/reference/kinds.md"]
	for _, k := range api.Kinds() {
		if !strings.Contains(text, "## "+k.Name+"\n") || !strings.Contains(text, "`"+k.APIVersion()+"`") {
			t.Errorf("docs/reference/kinds.md has no section %s with `%s`", k.Name, k.APIVersion())
		}
	}
}

// TestCommandsExist checks the command lines of all pages against the reference
// pages, which tests beside the commands keep true.
func TestCommandsExist(t *testing.T) {
	all := pages(t)
	known := commandFlags(all["docs/reference/commands.md"])
	lab := commandFlags(all["docs/reference/lab.md"])
	if len(known) < 10 || len(lab) < 10 {
		t.Fatalf("%d and %d commands in the reference", len(known), len(lab))
	}
	for command, flags := range lab {
		known[command] = flags
	}
	found := 0
	for path, text := range all {
		blocks, _ := fences(text)
		for _, b := range blocks {
			if slices.Contains([]string{"text", "yaml", "json"}, b.language) {
				continue
			}
			lines, _ := script(b.lines)
			for _, line := range lines {
				for _, call := range calls(line) {
					found++
					if problem := check(call, known); problem != "" {
						t.Errorf("%s: %s: %s", path, line, problem)
					}
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d command lines were found", found)
	}
}

var flagUsage = regexp.MustCompile(`^ +(?:(-\w), )?(--[\w-]+)`)

// commandFlags reads a reference page: command → its flags.
func commandFlags(page string) map[string][]string {
	known := map[string][]string{}
	command := ""
	for line := range strings.Lines(page) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			command = strings.TrimSpace(name)
			known[command] = []string{"-h", "--help"}
		}
		if m := flagUsage.FindStringSubmatch(line); m != nil {
			known[command] = append(known[command], m[1:]...)
		}
	}
	return known
}

var hereDocument = regexp.MustCompile(`<<'?(\w+)'?`)

// script splits a block into its command lines, continued lines joined, and the
// documents that it feeds to them.
func script(lines []string) (commands, documents []string) {
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		for strings.HasSuffix(line, "\\") && i+1 < len(lines) {
			i++
			line = strings.TrimSuffix(line, "\\") + lines[i]
		}
		commands = append(commands, line)
		m := hereDocument.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		end := slices.Index(lines[i+1:], m[1])
		if end < 0 {
			continue
		}
		documents = append(documents, strings.Join(lines[i+1:i+1+end], "\n"))
		i += 1 + end
	}
	return commands, documents
}

var (
	callStart = regexp.MustCompile(`(?:^|\$\(|[|;&] )\s*(?:\$ )?(?:sudo )?(?:[A-Z_]+=\S+ )*(?:bin/)?(twill(?: .*|$))`)
	callEnd   = regexp.MustCompile(`[|;&<>)]| #`)
)

// calls are the calls of twill in a command line, each as its words.
func calls(line string) (all [][]string) {
	for line != "" {
		m := callStart.FindStringSubmatchIndex(line)
		if m == nil {
			return all
		}
		call := line[m[2]:]
		line = ""
		// A nested call is not a word of the outer one.
		if nested := strings.Index(call[1:], "$("); nested >= 0 {
			call, line = call[:nested+1], call[nested+1:]
		}
		if end := callEnd.FindStringIndex(call); end != nil {
			call, line = call[:end[0]], call[end[0]:]+line
		}
		all = append(all, strings.Fields(call))
	}
	return all
}

// check says what is wrong with a call, or nothing.
func check(words []string, known map[string][]string) string {
	command, allowed := "twill", slices.Clone(known["twill"])
	rest := words[1:]
	for len(rest) > 0 {
		if known[command+" "+rest[0]] == nil {
			break
		}
		command += " " + rest[0]
		allowed = append(allowed, known[command]...)
		rest = rest[1:]
	}
	if command == "twill lab kubectl" {
		return "" // the rest is kubectl's
	}
	isGroup := false
	for other := range known {
		isGroup = isGroup || strings.HasPrefix(other, command+" ")
	}
	if isGroup && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") && rest[0] != "completion" && rest[0] != "COMMAND" {
		return command + " has no command " + rest[0]
	}
	for _, word := range rest {
		name, _, _ := strings.Cut(word, "=")
		if word == "--" {
			break
		}
		if len(word) > 1 && word[0] == '-' && !slices.Contains(allowed, name) && name != "--version" {
			return command + " has no flag " + name
		}
	}
	return ""
}
