package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/twill-net/twill/api"
)

// readManifests reads and decodes the files, directories and standard input
// ("-") that -f named, in the order in which they are to be applied. All
// problems of all files are in the error.
func readManifests(cmd *cobra.Command, paths []string, namespace string) ([]api.Object, error) {
	files, err := manifestFiles(paths)
	if err != nil {
		return nil, err
	}
	var objects []api.Object
	var errs []error
	found := map[string]string{} // object → file
	for _, file := range files {
		text, err := readManifest(cmd, file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		decoded, err := api.Decode(text, namespace)
		errs = append(errs, inFile(file, err)...)
		for _, d := range decoded {
			id := d.Kind.Name + " " + api.KeyOf(d.Object).String()
			if other, ok := found[id]; ok {
				errs = append(errs, fmt.Errorf("%s: %s stands in %s, too", file, id, other))
				continue
			}
			found[id] = file
			if cmd.Flags().Changed("namespace") && d.Kind.Namespaced && d.Object.GetNamespace() != namespace {
				errs = append(errs, fmt.Errorf("%s: %s is not in namespace %q, which --namespace asks for", file, id, namespace))
			}
			objects = append(objects, d.Object)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(objects) == 0 {
		return nil, fmt.Errorf("no objects in %v", paths)
	}
	order := api.Kinds()
	slices.SortStableFunc(objects, func(a, b api.Object) int {
		return slices.Index(order, api.KindOf(a)) - slices.Index(order, api.KindOf(b))
	})
	return objects, nil
}

func inFile(file string, err error) []error {
	var manifest *api.ManifestError
	if !errors.As(err, &manifest) {
		return nil
	}
	var errs []error
	for _, p := range manifest.Problems {
		errs = append(errs, fmt.Errorf("%s: %s", file, p))
	}
	return errs
}

func readManifest(cmd *cobra.Command, file string) ([]byte, error) {
	if file != "-" {
		return os.ReadFile(file)
	}
	text, err := io.ReadAll(cmd.InOrStdin())
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	return text, nil
}

// manifestFiles lists the files, and those in the directories (not below) that
// end in .yaml, .yml or .json.
func manifestFiles(paths []string) ([]string, error) {
	var files []string
	for _, path := range paths {
		info, err := os.Stat(path)
		switch {
		case path == "-":
			files = append(files, path)
		case err != nil:
			return nil, err
		case !info.IsDir():
			files = append(files, path)
		default:
			entries, err := os.ReadDir(path)
			if err != nil {
				return nil, err
			}
			before := len(files)
			for _, e := range entries {
				if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
					files = append(files, filepath.Join(path, e.Name()))
				}
			}
			if len(files) == before {
				return nil, fmt.Errorf("%s: no .yaml, .yml or .json file in this directory", path)
			}
		}
	}
	return files, nil
}
