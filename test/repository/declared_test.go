package repository_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ackpolicy/watermill-ackpolicy/internal/testkit"
)

// sources returns all Go files of the repository.
func sources(t *testing.T) (files []string) {
	t.Helper()
	testkit.Check(t, filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != "." && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		case strings.HasSuffix(path, ".go"):
			files = append(files, path)
		}
		return nil
	}))
	return files
}

// declared returns what a file, or the files of a package, declare: functions, types, constants
// and variables by their names, methods and fields as Type.Name.
func declared(t *testing.T, path string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		files, err := filepath.Glob(path + "/*.go")
		testkit.Check(t, err)
		for _, file := range files {
			for name := range declared(t, file) {
				names[name] = true
			}
		}
		return names
	}
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	testkit.Check(t, err)
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			if d.Recv != nil {
				name = base(d.Recv.List[0].Type) + "." + name
			}
			names[name] = true
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					names[spec.Name.Name] = true
					fields := &ast.FieldList{}
					switch of := spec.Type.(type) {
					case *ast.StructType:
						fields = of.Fields
					case *ast.InterfaceType:
						fields = of.Methods
					}
					for _, field := range fields.List {
						for _, name := range field.Names {
							names[spec.Name.Name+"."+name.Name] = true
						}
						if len(field.Names) == 0 {
							names[spec.Name.Name+"."+base(field.Type)] = true
						}
					}
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						names[name.Name] = true
					}
				}
			}
		}
	}
	return names
}

// base returns the name of a type without its pointer, its package and its parameters.
func base(of ast.Expr) string {
	switch of := of.(type) {
	case *ast.Ident:
		return of.Name
	case *ast.StarExpr:
		return base(of.X)
	case *ast.SelectorExpr:
		return of.Sel.Name
	case *ast.IndexExpr:
		return base(of.X)
	case *ast.IndexListExpr:
		return base(of.X)
	}
	return ""
}
