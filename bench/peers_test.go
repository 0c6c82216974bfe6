package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// builder appends a line to the file "log" beside the root at each build.
func builder(root, then string) func(string) [][]string {
	return func(string) [][]string {
		return [][]string{{"sh", "-c", "test -f main.py && echo built >> " + filepath.Join(root, "log") + "; " + then}}
	}
}

func builds(t *testing.T, root string) int {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(root, "log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(log), "built")
}

func TestPreparedOnceAChangeOfTheSources(t *testing.T) {
	root := t.TempDir()
	build := func(text string) string {
		t.Helper()
		dir, err := prepare(root, "x", fstest.MapFS{"main.py": {Data: []byte(text)}}, builder(root, "true"))
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	first := build("a")
	if again := build("a"); again != first || builds(t, root) != 1 {
		t.Errorf("the same sources: %s and %s, %d builds", first, again, builds(t, root))
	}
	if other := build("b"); other == first || builds(t, root) != 2 {
		t.Errorf("other sources: %s and %s, %d builds", first, other, builds(t, root))
	}
}

func TestFailedBuildTellsWhyAndIsTriedAgain(t *testing.T) {
	root := t.TempDir()
	files := fstest.MapFS{"main.py": {Data: []byte("a")}}
	_, err := prepare(root, "x", files, builder(root, "echo before; echo ERROR: no such version; echo after; exit 1"))
	if err == nil || !strings.Contains(err.Error(), "ERROR: no such version") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	dir, err := prepare(root, "x", files, builder(root, "true"))
	if err != nil || builds(t, root) != 2 {
		t.Errorf("tried again: %v, %d builds", err, builds(t, root))
	}
	if _, err := os.Stat(filepath.Join(dir, "main.py")); err != nil {
		t.Error(err)
	}
}

func TestMissingProgramIsNoFailure(t *testing.T) {
	l := newLanguage(language{name: "java", needs: []string{"no-such-program"}})
	if _, err := l.ready(); err == nil || !strings.Contains(err.Error(), "no-such-program is not there") {
		t.Errorf("got %v", err)
	}
}

func TestSourcesAreComplete(t *testing.T) {
	for _, file := range []string{"java/pom.xml", "java/src/main/java/bench/Main.java", "python/main.py", "python/requirements.txt"} {
		if _, err := fs.Stat(sources, "peers/"+file); err != nil {
			t.Error(err)
		}
	}
}
