// Package tree says what a file tree is.
package tree
