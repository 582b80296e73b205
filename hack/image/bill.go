package main

import (
	"cmp"
	"debug/buildinfo"
	"os"
	"path/filepath"
	"slices"

	"github.com/CycloneDX/cyclonedx-go"
)

// writeBill writes which modules are in the executables, as these themselves tell.
func writeBill(out, dir, version string) error {
	modules := map[string]cyclonedx.Component{}
	for _, name := range executables {
		info, err := buildinfo.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		modules["go"] = cyclonedx.Component{Type: cyclonedx.ComponentTypePlatform, Name: "go", Version: info.GoVersion}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			modules[m.Path] = cyclonedx.Component{
				Type: cyclonedx.ComponentTypeLibrary, Name: m.Path, Version: m.Version,
				PackageURL: "pkg:golang/" + m.Path + "@" + m.Version,
			}
		}
	}
	var components []cyclonedx.Component
	for _, c := range modules {
		components = append(components, c)
	}
	slices.SortFunc(components, func(a, b cyclonedx.Component) int { return cmp.Compare(a.Name, b.Name) })
	bill := cyclonedx.NewBOM()
	bill.Metadata = &cyclonedx.Metadata{Component: &cyclonedx.Component{Type: cyclonedx.ComponentTypeContainer, Name: "twill", Version: version}}
	bill.Components = &components
	file, err := os.Create(out)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := cyclonedx.NewBOMEncoder(file, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bill); err != nil {
		return err
	}
	return file.Close()
}
