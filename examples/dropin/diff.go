package main

import (
	"fmt"
	"strings"
)

// diff returns the lines that differ between two texts, with some lines around them, and how many were added and removed.
func diff(a, b string, around int) (text string, added, removed int) {
	old, now := strings.Split(a, "\n"), strings.Split(b, "\n")
	// common[i][j] is the length of the longest common subsequence of old[i:] and now[j:].
	common := make([][]int, len(old)+1)
	for i := range common {
		common[i] = make([]int, len(now)+1)
	}
	for i := len(old) - 1; i >= 0; i-- {
		for j := len(now) - 1; j >= 0; j-- {
			if old[i] == now[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var lines []string
	for i, j := 0, 0; i < len(old) || j < len(now); {
		switch {
		case i < len(old) && j < len(now) && old[i] == now[j]:
			lines = append(lines, " "+old[i])
			i, j = i+1, j+1
		case j == len(now) || i < len(old) && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, "-"+old[i])
			removed++
			i++
		default:
			lines = append(lines, "+"+now[j])
			added++
			j++
		}
	}
	var out strings.Builder
	shown := -1
	for i, line := range lines {
		if !near(lines, i, around) {
			continue
		}
		if i != shown+1 {
			fmt.Fprintln(&out, "@@")
		}
		fmt.Fprintln(&out, strings.ReplaceAll(line, "\t", "    "))
		shown = i
	}
	return out.String(), added, removed
}

// near reports whether a line that differs is at most around lines away.
func near(lines []string, i, around int) bool {
	for k := max(0, i-around); k <= min(len(lines)-1, i+around); k++ {
		if lines[k][0] != ' ' {
			return true
		}
	}
	return false
}
