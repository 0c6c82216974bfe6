package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// The peers in other languages. Their programs take the job and print the result as this one does.
//
//go:embed peers/java/pom.xml peers/java/src peers/python
var sources embed.FS

// A language builds its program once per change of its sources, and returns how to start it.
type language struct {
	name     string
	needs    []string                       // programs on the path
	build    func(dir string) [][]string    // commands, run in dir
	command  func(dir string) []string      // that starts the program
	versions func(dir string) []string      // of what it measures
	ready    func() (dir string, err error) // builds; the same directory each time
}

var (
	java = newLanguage(language{
		name: "java", needs: []string{"java", "mvn"},
		build: func(string) [][]string {
			return [][]string{{"mvn", "-B", "-q", "compile", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=target/libs"}}
		},
		command: func(dir string) []string {
			classes := filepath.Join(dir, "target", "classes") + string(os.PathListSeparator) + filepath.Join(dir, "target", "libs", "*")
			return []string{"java", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=off", "-cp", classes, "bench.Main"}
		},
		versions: func(dir string) (found []string) {
			for _, name := range []string{"parallel-consumer-core", "spring-kafka", "kafka-clients"} {
				jars, _ := filepath.Glob(filepath.Join(dir, "target", "libs", name+"-*.jar"))
				for _, jar := range jars {
					found = append(found, name+" "+strings.TrimSuffix(strings.TrimPrefix(filepath.Base(jar), name+"-"), ".jar"))
				}
			}
			// Its first line is like "openjdk 25.0.1 2025-10-21 LTS".
			if text, err := exec.Command("java", "--version").Output(); err == nil {
				if words := strings.Fields(string(text)); len(words) > 1 {
					found = append(found, "Java "+words[1])
				}
			}
			return found
		},
	})
	python = newLanguage(language{
		name: "python", needs: []string{"python3"},
		build: func(string) [][]string {
			return [][]string{
				{"python3", "-m", "venv", "venv"},
				{filepath.Join("venv", "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"},
			}
		},
		command: func(dir string) []string {
			return []string{filepath.Join(dir, "venv", "bin", "python"), filepath.Join(dir, "main.py")}
		},
		versions: func(dir string) (found []string) {
			text, _ := os.ReadFile(filepath.Join(dir, "requirements.txt"))
			for line := range strings.Lines(string(text)) {
				name, version, _ := strings.Cut(strings.TrimSpace(line), "==")
				name, _, _ = strings.Cut(name, "[")
				if name == "faststream" || name == "aiokafka" {
					found = append(found, name+" "+version)
				}
			}
			return found
		},
	})
)

func newLanguage(l language) *language {
	l.ready = sync.OnceValues(func() (dir string, err error) {
		defer func() {
			if err != nil {
				fmt.Fprintf(os.Stderr, "without the %s peers: %v\n", l.name, err)
			}
		}()
		for _, program := range l.needs {
			if _, err := exec.LookPath(program); err != nil {
				return "", fmt.Errorf("%s is not there", program)
			}
		}
		root, err := cacheRoot()
		if err != nil {
			return "", err
		}
		files, err := fs.Sub(sources, "peers/"+l.name)
		if err != nil {
			return "", err
		}
		return prepare(root, l.name, files, l.build)
	})
	return &l
}

// cacheRoot is where scripts/kafka.sh keeps its jars, too.
func cacheRoot() (string, error) {
	root := os.Getenv("XDG_CACHE_HOME")
	if root == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		root = filepath.Join(home, ".cache")
	}
	return filepath.Join(root, "watermill-ackpolicy", "peers"), nil
}

// prepare copies the files to a separate folder and builds them there, unless an
// earlier bench has. The folder's name has a hash of the files.
func prepare(root, name string, files fs.FS, build func(dir string) [][]string) (string, error) {
	sum, err := hash(files)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, name+"-"+sum)
	built := filepath.Join(dir, "built") // written last: an interrupted build leaves none
	if _, err := os.Stat(built); err == nil {
		return dir, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	if err := os.CopyFS(dir, files); err != nil {
		return "", err
	}
	fmt.Fprintf(os.Stderr, "building the %s peers (once)\n", name)
	for _, command := range build(dir) {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", command[0], err, reason(string(out)))
		}
	}
	return dir, os.WriteFile(built, nil, 0o644)
}

func hash(files fs.FS) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, name)
		fmt.Fprintf(h, "%s %d\n", name, len(text))
		h.Write(text)
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:12], err
}

// reason is the line of a build's output that says why it failed.
func reason(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	if i := slices.IndexFunc(lines, func(l string) bool { return strings.Contains(l, "ERROR") }); i >= 0 {
		return lines[i]
	}
	return lines[len(lines)-1]
}
