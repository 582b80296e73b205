// Command tool is the lab's small programs without a lab, for images: it is the
// one by whose name it is called.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/twill-net/twill/lab/tool"
)

func main() {
	name := filepath.Base(os.Args[0])
	code, found := tool.Run(name, os.Args[1:], os.Stdout, os.Stderr)
	if !found {
		fmt.Fprintf(os.Stderr, "error: there is no program %q: link this one to one of %v\n", name, tool.Names())
		os.Exit(64)
	}
	os.Exit(code)
}
