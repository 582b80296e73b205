package cli

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completeWait bounds how long a shell waits for names.
const completeWait = 2 * time.Second

// completeObjects offers kinds, then the names of the objects of that kind. It
// offers nothing where the store can't be reached.
func (s *Session) completeObjects(sel *selection) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return kindWords(), cobra.ShellCompDirectiveNoFileComp
		}
		kind := lookupKind(args[0])
		if kind == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWait)
		defer cancel()
		st, err := s.OpenStore(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer st.Close()
		list, err := st.List(ctx, kind, sel.in(kind))
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var names []string
		for _, obj := range list.Items {
			names = append(names, printable(obj.GetName()))
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeLab asks the lab's executable.
func completeLab(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	exe, err := siblingExecutable("twill-lab")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	words := append(append([]string{cobra.ShellCompRequestCmd}, args...), toComplete)
	out, err := exec.CommandContext(cmd.Context(), exe, words...).Output()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	// The last line is the directive, after a colon.
	directive, err := strconv.Atoi(strings.TrimPrefix(lines[len(lines)-1], ":"))
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return lines[:len(lines)-1], cobra.ShellCompDirective(directive)
}
